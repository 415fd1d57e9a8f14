//! Operations on their way over one or more bare servers, in turn.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use milonga_host::quic::Transport;
use milonga_host::{Host, Moment, Peer};
use tokio::sync::Notify;

use super::frames::{HEAD, ID};
use super::link::{Answer, Link, Opened};
use crate::bench::append::record;
use crate::bench::meter::{Meter, Plan, Sample, closed_loop};

/// Bytes of a bare token.
const TOKEN: u32 = 16;

/// The bare servers that an operation visits, in turn.
pub(super) struct Route {
    hops: Mutex<Vec<Opened>>,
    /// Whether what the first answers is sent to the others: its number is the position.
    numbered: bool,
}

impl Route {
    /// To one server and back.
    pub(super) async fn echo(
        transport: &Transport,
        peer: &Peer,
        asked: u32,
        answered: u32,
    ) -> Result<Self, String> {
        let record = record(asked.saturating_sub(HEAD as u32));
        let answered = answered.max(ID as u32);
        let hop = Opened::new(transport, peer, record, answered).await?;
        Ok(Self {
            hops: Mutex::new(vec![hop]),
            numbered: false,
        })
    }

    /// A number from the first server, then a record of `bytes` to each of `units`.
    pub(super) async fn append(
        transport: &Transport,
        sequencer: &Peer,
        units: &[Peer],
        bytes: u32,
    ) -> Result<Self, String> {
        let mut hops = vec![Opened::new(transport, sequencer, Bytes::new(), TOKEN).await?];
        for unit in units {
            hops.push(Opened::new(transport, unit, record(bytes), ID as u32).await?);
        }
        Ok(Self {
            hops: Mutex::new(hops),
            numbered: true,
        })
    }

    /// A route carries one round.
    fn take(&self) -> Vec<Opened> {
        std::mem::take(&mut *self.hops.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// ---- One task per operation ----

/// A hop whose answers wake tasks.
struct Hop {
    link: Arc<Link>,
    slots: Arc<Mutex<Vec<Slot>>>,
}

#[derive(Default)]
struct Slot {
    answer: Option<u64>,
    waker: Option<Waker>,
}

impl Hop {
    fn start(host: &Host, opened: Opened, concurrency: u32) -> Self {
        let slots: Vec<Slot> = (0..concurrency).map(|_| Slot::default()).collect();
        let slots = Arc::new(Mutex::new(slots));
        let link = opened.link.clone();
        let shared = slots.clone();
        let mut wakers = vec![];
        opened.start(&host.tasks, move |answers: &[Answer]| {
            let mut slots = lock(&shared);
            for (id, number) in answers {
                let slot = &mut slots[*id as usize];
                slot.answer = Some(*number);
                wakers.extend(slot.waker.take());
            }
            drop(slots);
            wakers.drain(..).for_each(Waker::wake);
        });
        Self { link, slots }
    }

    async fn ask(&self, id: u32, number: Option<u64>) -> u64 {
        self.link.ask(u64::from(id), number);
        poll_fn(|context| {
            let slot = &mut lock(&self.slots)[id as usize];
            if let Some(answer) = slot.answer.take() {
                return Poll::Ready(answer);
            }
            slot.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn by_tasks(
    host: &Host,
    route: &Route,
    concurrency: u32,
    plan: Plan,
) -> Result<Sample, String> {
    let numbered = route.numbered;
    let hops: Arc<[Hop]> = route
        .take()
        .into_iter()
        .map(|opened| Hop::start(host, opened, concurrency))
        .collect();
    let operation = {
        let hops = hops.clone();
        move |id| {
            let hops = hops.clone();
            async move {
                let mut number = None;
                for hop in hops.iter() {
                    let answer = hop.ask(id, number).await;
                    number = numbered.then_some(number.unwrap_or(answer));
                }
                true
            }
        }
    };
    let sample = closed_loop(host, concurrency, plan, operation).await;
    let links: Vec<Arc<Link>> = hops.iter().map(|hop| hop.link.clone()).collect();
    drop(hops);
    end(&links);
    Ok(sample)
}

// ---- One driver for all operations ----

struct Driver {
    links: Vec<Arc<Link>>,
    numbered: bool,
    meter: Arc<Meter>,
    state: Mutex<Running>,
    over: Notify,
}

struct Running {
    began: Vec<Moment>,
    numbers: Vec<u64>,
    live: u32,
}

impl Driver {
    /// Moves the operations on whose answers came from `hop`.
    fn advance(&self, hop: usize, answers: &[Answer]) {
        let mut running = lock(&self.state);
        for (id, number) in answers {
            let index = *id as usize;
            if hop == 0 {
                running.numbers[index] = *number;
            }
            if let Some(link) = self.links.get(hop + 1) {
                let number = self.numbered.then(|| running.numbers[index]);
                link.ask(*id, number);
                continue;
            }
            let now = self.meter.end(running.began[index], true);
            match self.meter.begin(now) {
                Some(began) => {
                    running.began[index] = began;
                    self.links[0].ask(*id, None);
                }
                None => running.live -= 1,
            }
        }
        if running.live == 0 {
            self.over.notify_one();
        }
    }
}

pub(super) async fn by_driver(
    host: &Host,
    route: &Route,
    concurrency: u32,
    plan: Plan,
) -> Result<Sample, String> {
    let opened = route.take();
    let links: Vec<Arc<Link>> = opened.iter().map(|opened| opened.link.clone()).collect();
    let meter = Meter::start(&host.clock, plan);
    let driver = Arc::new(Driver {
        links: links.clone(),
        numbered: route.numbered,
        meter: meter.clone(),
        state: Mutex::new(Running {
            began: vec![host.clock.now(); concurrency as usize],
            numbers: vec![0; concurrency as usize],
            live: concurrency,
        }),
        over: Notify::new(),
    });
    for (hop, opened) in opened.into_iter().enumerate() {
        let driver = Arc::downgrade(&driver);
        opened.start(&host.tasks, move |answers: &[Answer]| {
            if let Some(driver) = driver.upgrade() {
                driver.advance(hop, answers);
            }
        });
    }
    for id in 0..u64::from(concurrency) {
        links[0].ask(id, None);
    }
    driver.over.notified().await;
    drop(driver);
    end(&links);
    Ok(meter.sample())
}

/// Closes the streams: each writer ends when it alone holds its link.
fn end(links: &[Arc<Link>]) {
    for link in links {
        link.end();
    }
}
