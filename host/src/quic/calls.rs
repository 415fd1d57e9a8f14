//! The calls in flight on one stream: who waits for which reply, until when, and what they hold.
//!
//! - N1 A reply reaches only the call it answers: ids are never used twice.
//! - N2 [`Outcome::NotSent`] only for a frame that no writer has taken.
//! - B1 Bytes of requests that are queued or unanswered stay below the lane's limit; callers wait for room in turn.
//!
//! Knows nothing of connections: tasks around it move bytes in and out.

use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use milonga_wire::Frame;
use tokio::sync::{Notify, Semaphore};

use super::queue::Queue;
use crate::Moment;
use crate::net::Request;

/// Bits of an id that say which slot; the rest count the slot's calls.
const SLOT_BITS: u32 = 20;
/// Calls in flight on one stream.
pub(super) const CALLS_MAX: usize = 1 << SLOT_BITS;

/// What became of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Whoever waits decodes it.
    Reply(Frame),
    NotSent(Arc<str>),
    Lost(Arc<str>),
    Deadline,
    Protocol(String),
}

/// One stream's calls and the bytes that wait to be written to it.
#[derive(Debug)]
pub(super) struct Lane {
    state: Mutex<State>,
    /// There is something to write, or the lane has failed.
    ready: Notify,
    /// A deadline is sooner than all before, or the lane has failed.
    sooner: Notify,
    /// B1, in bytes.
    room: Semaphore,
    limit: u32,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    /// Bytes that the writer has passed on.
    written: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    waiting: usize,
    /// How many calls there ever were.
    calls: u64,
    /// The soonest deadline that the sweeper knows of.
    soonest: Option<Moment>,
    /// What calls that were given up still hold, by the end of their frames: B1 counts it until it is written.
    given_up: BTreeMap<u64, u32>,
    failed: Option<Arc<str>>,
}

#[derive(Debug)]
struct Slot {
    count: u64,
    charge: u32,
    end: u64,
    deadline: Option<Moment>,
    phase: Phase,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Slots are few and reused: a box per reply would cost more.
enum Phase {
    Free,
    Waiting(Waker),
    Over(Outcome),
}

impl Lane {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            state: Mutex::default(),
            ready: Notify::new(),
            sooner: Notify::new(),
            room: Semaphore::new(limit as usize),
            limit,
        }
    }

    /// Waits for room for a frame of `bytes` (B1). Nothing if the lane fails meanwhile.
    pub(super) async fn admit(self: &Arc<Self>, bytes: usize) -> Option<Room> {
        let bytes = self.charge(bytes);
        let permit = self.room.acquire_many(bytes).await.ok()?;
        permit.forget();
        Some(Room(self.clone(), bytes))
    }

    /// [`Lane::admit`] if there is room at once.
    pub(super) fn try_admit(self: &Arc<Self>, bytes: usize) -> Option<Room> {
        let bytes = self.charge(bytes);
        let permit = self.room.try_acquire_many(bytes).ok()?;
        permit.forget();
        Some(Room(self.clone(), bytes))
    }

    /// A frame over the whole limit goes when it is alone.
    fn charge(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).map_or(self.limit, |bytes| bytes.min(self.limit))
    }

    /// Waits for bytes to write and moves them to `parts`; nothing once the lane has failed. Call [`Lane::written`] next.
    pub(super) async fn take(&self, parts: &mut Vec<Bytes>) -> Option<u64> {
        loop {
            {
                let mut state = self.state();
                if state.failed.is_some() {
                    return None;
                }
                if !state.queue.is_empty() {
                    return Some(state.queue.take(parts));
                }
            }
            self.ready.notified().await;
        }
    }

    /// `bytes` more of what was taken have been passed on.
    pub(super) fn written(&self, bytes: u64) {
        let mut released = 0;
        {
            let mut state = self.state();
            state.written += bytes;
            let written = state.written;
            while let Some(entry) = state.given_up.first_entry() {
                if *entry.key() > written {
                    break;
                }
                released += entry.remove() as usize;
            }
        }
        self.release(released);
    }

    /// Hands outcomes to the calls they are for. Empties `outcomes`; `wakers` is scratch.
    pub(super) fn deliver(&self, outcomes: &mut Vec<(u64, Outcome)>, wakers: &mut Vec<Waker>) {
        let mut released = 0;
        {
            let mut state = self.state();
            for (id, outcome) in outcomes.drain(..) {
                let Some(slot) = state.slot(id) else { continue };
                if !matches!(slot.phase, Phase::Waiting(_)) {
                    continue;
                }
                if let Phase::Waiting(waker) = mem::replace(&mut slot.phase, Phase::Over(outcome)) {
                    released += mem::take(&mut slot.charge) as usize;
                    wakers.push(waker);
                    state.waiting -= 1;
                }
            }
        }
        self.release(released);
        wakers.drain(..).for_each(Waker::wake);
    }

    /// Ends the calls whose deadline has passed, and says how many and when the next one is due.
    pub(super) fn expire(&self, now: Moment) -> (usize, Option<Moment>) {
        let mut wakers = vec![];
        let mut released = 0;
        let soonest;
        {
            let mut state = self.state();
            let state = &mut *state;
            state.soonest = None;
            for slot in &mut state.slots {
                let (Phase::Waiting(_), Some(deadline)) = (&slot.phase, slot.deadline) else {
                    continue;
                };
                if deadline > now {
                    let soonest = state.soonest.get_or_insert(deadline);
                    *soonest = deadline.min(*soonest);
                    continue;
                }
                let over = Phase::Over(Outcome::Deadline);
                if let Phase::Waiting(waker) = mem::replace(&mut slot.phase, over) {
                    wakers.push(waker);
                }
                state.waiting -= 1;
                released += give_up(slot, state.written, &mut state.given_up);
            }
            soonest = state.soonest;
        }
        self.release(released);
        let expired = wakers.len();
        wakers.into_iter().for_each(Waker::wake);
        (expired, soonest)
    }

    /// Waits until a deadline is sooner than the one [`Lane::expire`] gave, or the lane has failed.
    pub(super) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// Ends every call: what is known of each follows from whether its frame was taken (N2).
    pub(super) fn fail(&self, why: &Arc<str>) {
        let mut wakers = vec![];
        {
            let mut state = self.state();
            if state.failed.is_some() {
                return;
            }
            state.failed = Some(why.clone());
            let taken = state.queue.taken();
            for slot in &mut state.slots {
                if !matches!(slot.phase, Phase::Waiting(_)) {
                    continue;
                }
                let outcome = if slot.end > taken {
                    Outcome::NotSent(why.clone())
                } else {
                    Outcome::Lost(why.clone())
                };
                if let Phase::Waiting(waker) = mem::replace(&mut slot.phase, Phase::Over(outcome)) {
                    wakers.push(waker);
                }
            }
            state.waiting = 0;
            state.queue = Queue::default();
        }
        self.room.close();
        self.ready.notify_one();
        self.sooner.notify_one();
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn failed(&self) -> Option<Arc<str>> {
        self.state().failed.clone()
    }

    /// How many calls wait now, and how many there ever were.
    pub(super) fn usage(&self) -> (usize, u64) {
        let state = self.state();
        (state.waiting, state.calls)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.room.add_permits(bytes);
        }
    }
}

/// Room for one frame (B1), until it is queued or given back.
#[derive(Debug)]
pub(super) struct Room(Arc<Lane>, u32);

impl Room {
    /// Sends `request` and waits for its reply until `deadline`.
    pub(super) fn exchange(self, request: Request, deadline: Moment) -> Exchange {
        Exchange {
            step: Step::Queue(self, request),
            deadline,
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.release(self.1 as usize);
    }
}

/// One call. Dropping it gives the call up.
#[derive(Debug)]
pub(super) struct Exchange {
    step: Step,
    deadline: Moment,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // It is made once per call and not moved: a box would cost more.
enum Step {
    Queue(Room, Request),
    Wait(Arc<Lane>, u64),
    Done,
}

impl Future for Exchange {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.get_mut();
        match &mut this.step {
            Step::Queue(room, request) => {
                let charge = mem::take(&mut room.1);
                match room
                    .0
                    .queue(request, charge, this.deadline, context.waker())
                {
                    Ok(id) => {
                        this.step = Step::Wait(room.0.clone(), id);
                        Poll::Pending
                    }
                    Err(outcome) => {
                        room.0.release(charge as usize);
                        this.step = Step::Done;
                        Poll::Ready(*outcome)
                    }
                }
            }
            Step::Wait(lane, id) => match lane.poll_outcome(*id, context.waker()) {
                Poll::Ready(outcome) => {
                    this.step = Step::Done;
                    Poll::Ready(outcome)
                }
                Poll::Pending => Poll::Pending,
            },
            Step::Done => Poll::Pending,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Step::Wait(lane, id) = &self.step {
            lane.abandon(*id);
        }
    }
}

impl Lane {
    fn queue(
        &self,
        request: &mut Request,
        charge: u32,
        deadline: Moment,
        waker: &Waker,
    ) -> Result<u64, Box<Outcome>> {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(why) = &state.failed {
            return Err(Outcome::NotSent(why.clone()).into());
        }
        let index = match state.free.pop() {
            Some(index) => index,
            None if state.slots.len() < CALLS_MAX => {
                state.slots.push(Slot {
                    count: 0,
                    charge: 0,
                    end: 0,
                    deadline: None,
                    phase: Phase::Free,
                });
                state.slots.len() as u32 - 1
            }
            None => {
                let why = format!("{CALLS_MAX} calls are in flight; wait for replies");
                return Err(Outcome::NotSent(why.into()).into());
            }
        };
        let slot = &mut state.slots[index as usize];
        slot.count += 1;
        let id = (slot.count << SLOT_BITS) | u64::from(index);
        let was_empty = state.queue.is_empty();
        request.head.id = id;
        if let Err(error) = state.queue.push(&request.head, &request.payload) {
            state.free.push(index);
            return Err(Outcome::Protocol(error.to_string()).into());
        }
        slot.charge = charge;
        slot.end = state.queue.queued();
        slot.deadline = Some(deadline);
        slot.phase = Phase::Waiting(waker.clone());
        state.waiting += 1;
        state.calls += 1;
        if was_empty {
            self.ready.notify_one();
        }
        if state.soonest.is_none_or(|soonest| deadline < soonest) {
            state.soonest = Some(deadline);
            self.sooner.notify_one();
        }
        Ok(id)
    }

    fn poll_outcome(&self, id: u64, waker: &Waker) -> Poll<Outcome> {
        let mut state = self.state();
        let slot = state.slot(id).expect("a slot is freed by its call alone");
        if let Phase::Waiting(old) = &mut slot.phase {
            old.clone_from(waker);
            return Poll::Pending;
        }
        match state.free_slot(id) {
            Phase::Over(outcome) => Poll::Ready(outcome),
            Phase::Waiting(_) | Phase::Free => unreachable!("its phase was just seen"),
        }
    }

    fn abandon(&self, id: u64) {
        let mut released = 0;
        {
            let mut state = self.state();
            let state = &mut *state;
            let Some(slot) = state.slot(id) else { return };
            if matches!(slot.phase, Phase::Waiting(_)) {
                state.waiting -= 1;
                let slot = &mut state.slots[index_of(id)];
                released = give_up(slot, state.written, &mut state.given_up);
            }
            state.free_slot(id);
        }
        self.release(released);
    }
}

impl State {
    /// N1: the slot of this very call, while it is in use.
    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index_of(id))?;
        let same = slot.count == id >> SLOT_BITS && !matches!(slot.phase, Phase::Free);
        same.then_some(slot)
    }

    fn free_slot(&mut self, id: u64) -> Phase {
        let index = index_of(id);
        self.free.push(index as u32);
        mem::replace(&mut self.slots[index].phase, Phase::Free)
    }
}

fn index_of(id: u64) -> usize {
    (id & ((1 << SLOT_BITS) - 1)) as usize
}

/// What a call that ends without a reply gives back at once; the rest follows when its frame is written.
fn give_up(slot: &mut Slot, written: u64, given_up: &mut BTreeMap<u64, u32>) -> usize {
    let charge = mem::take(&mut slot.charge);
    if slot.end <= written {
        return charge as usize;
    }
    given_up.insert(slot.end, charge);
    0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use milonga_wire::{ClusterId, Payload, Request as Asked, RequestHead, Term};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::Clock;

    fn request(payload_bytes: usize) -> Request {
        Request {
            head: RequestHead {
                id: 0,
                cluster: ClusterId([1; 16]),
                to: None,
                term: Term(0),
                request: Asked::Describe,
            },
            payload: vec![0; payload_bytes].into(),
        }
    }

    fn answer(id: u64) -> (u64, Outcome) {
        let frame = Frame::new(&id, Payload::new()).unwrap();
        (id, Outcome::Reply(frame))
    }

    fn start(lane: &Arc<Lane>, bytes: usize, within_ms: u64) -> JoinHandle<Outcome> {
        let room = lane.try_admit(bytes).unwrap();
        let deadline = Clock::real().now().plus(Duration::from_millis(within_ms));
        tokio::spawn(room.exchange(request(bytes), deadline))
    }

    async fn ids(lane: &Lane) -> Vec<u64> {
        let mut parts = vec![];
        lane.take(&mut parts).await.unwrap();
        let mut arrived = Payload::new();
        for part in parts {
            arrived.push(part);
        }
        let mut ids = vec![];
        while let Some(frame) = Frame::take_from(&mut arrived).unwrap() {
            ids.push(frame.decode::<RequestHead>().unwrap().id);
        }
        ids
    }

    fn deliver(lane: &Lane, answers: impl IntoIterator<Item = (u64, Outcome)>) {
        lane.deliver(&mut answers.into_iter().collect(), &mut vec![]);
    }

    /// N1: a reply that comes after its call was given up must not reach the next call in the same slot.
    #[tokio::test(start_paused = true)]
    async fn a_late_reply_reaches_nobody() {
        let lane = Arc::new(Lane::new(1 << 20));
        let first = start(&lane, 10, 1_000);
        let old = ids(&lane).await[0];
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());

        let second = start(&lane, 10, 1_000);
        let right = ids(&lane).await[0];
        assert_eq!(old & 0xfffff, right & 0xfffff);
        deliver(&lane, [answer(old), answer(77)]);
        deliver(&lane, [answer(right)]);
        let Outcome::Reply(frame) = second.await.unwrap() else {
            panic!("no reply");
        };
        assert_eq!(frame.decode::<u64>(), Ok(right));
        assert_eq!(lane.usage(), (0, 2));
    }

    /// N2: who is told "not sent" may safely send again.
    #[tokio::test(start_paused = true)]
    async fn only_what_no_writer_took_is_not_sent() {
        let lane = Arc::new(Lane::new(1 << 20));
        let taken = start(&lane, 10, 1_000);
        ids(&lane).await;
        let queued = start(&lane, 10, 1_000);
        tokio::task::yield_now().await;
        lane.fail(&"gone".into());
        assert!(matches!(taken.await.unwrap(), Outcome::Lost(_)));
        assert!(matches!(queued.await.unwrap(), Outcome::NotSent(_)));
        assert!(lane.try_admit(1).is_none() && lane.admit(1).await.is_none());
        assert_eq!(lane.take(&mut vec![]).await, None);
    }

    /// B1: given up is not yet written: a caller of short patience must not fill the memory of its own process.
    #[tokio::test(start_paused = true)]
    async fn a_call_given_up_holds_its_bytes_until_they_are_written() {
        let lane = Arc::new(Lane::new(1_000));
        let call = start(&lane, 900, 10);
        tokio::task::yield_now().await;
        let mut parts = vec![];
        let bytes = lane.take(&mut parts).await.unwrap();

        let later = Clock::real().now().plus(Duration::from_millis(10));
        assert_eq!(lane.expire(later), (1, None));
        assert!(matches!(call.await.unwrap(), Outcome::Deadline));
        assert!(lane.try_admit(900).is_none());
        lane.written(bytes);
        assert!(lane.try_admit(900).is_some());
    }

    /// A frame over the limit would wait for ever.
    #[tokio::test(start_paused = true)]
    async fn a_frame_over_the_limit_goes_alone() {
        let lane = Arc::new(Lane::new(1_000));
        let all = lane.try_admit(5_000).unwrap();
        assert!(lane.try_admit(1).is_none());
        drop(all);
        assert!(lane.try_admit(1_000).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_soonest_deadline_is_known_and_each_call_ends_at_its_own() {
        let lane = Arc::new(Lane::new(1 << 20));
        let now = Clock::real().now();
        let (slow, fast) = (start(&lane, 1, 500), start(&lane, 1, 100));
        tokio::task::yield_now().await;
        let at = |ms| now.plus(Duration::from_millis(ms));
        assert_eq!(lane.expire(now), (0, Some(at(100))));
        assert_eq!(lane.expire(at(100)), (1, Some(at(500))));
        assert!(matches!(fast.await.unwrap(), Outcome::Deadline));
        assert_eq!(lane.expire(at(500)), (1, None));
        assert!(matches!(slow.await.unwrap(), Outcome::Deadline));
    }
}
