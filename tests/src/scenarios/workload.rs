//! A client process that appends, reads, asks for the end and trims, in several loops at once, and writes down all of it.
//!
//! It is a machine like the servers: when it crashes, its operations are never told (they stay open for ever), and when
//! it starts again it is another client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use milonga_client::{
    AppendError, Entry, EntryKind, Log, Options, Producer, Resumed, SavedAppend, TrimError,
};
use milonga_host::{BoxFuture, Host, Random, Responder, Service, net::Request};
use milonga_wire::{Address, Caller, Position, Refusal, Role, ServerName, Span, StreamId};

use crate::history::{Call, Fate, History, Seen, Told, Value};
use crate::sim::faults::{chance, pick};
use crate::sim::{Machine, World};

/// The streams that records are appended to: none of them, the first, or both.
pub const STREAMS: [&str; 2] = ["a", "b"];

/// What all client processes of a run share.
#[derive(Clone)]
pub struct Workload {
    /// The world.
    pub world: World,
    /// What they were told.
    pub history: History,
    /// Where the layout servers listen.
    pub layout: Vec<Address>,
    /// They stop before their next operation.
    pub stop: Arc<AtomicBool>,
    /// Numbers client processes and producers.
    pub processes: Arc<AtomicU64>,
    /// Whether they trim.
    pub trims: bool,
}

impl Workload {
    /// The workload of a run that has just begun.
    pub fn new(world: &World, layout: &[Address], trims: bool) -> Self {
        Self {
            world: world.clone(),
            history: History::default(),
            layout: layout.to_vec(),
            stop: Arc::new(AtomicBool::new(false)),
            processes: Arc::new(AtomicU64::new(1)),
            trims,
        }
    }
}

/// One client's machine.
pub struct ClientMachine {
    /// What it does.
    pub workload: Workload,
    /// Its name.
    pub name: ServerName,
    /// Its role.
    pub role: Role,
}

/// A client serves nobody.
pub struct NoService;

impl Service for NoService {
    fn serve(&self, _: &Caller, _: Request, respond: Responder) {
        respond.send(Err(Refusal::Draining));
    }
}

impl Machine for ClientMachine {
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>> {
        let process = self.workload.processes.fetch_add(1, Ordering::Relaxed);
        let caller = Caller {
            cluster: self.workload.world.cluster(),
            role: self.role,
            name: self.name.clone(),
        };
        let random = self
            .workload
            .world
            .random(&format!("client process {process}"));
        let options = Options {
            deadline: *pick(
                &random,
                &[
                    Duration::from_secs(1),
                    Duration::from_secs(5),
                    Duration::from_secs(20),
                ],
            ),
            call: *pick(
                &random,
                &[Duration::from_millis(200), Duration::from_secs(1)],
            ),
            mend: random.below(4) > 0,
            // The sooner a hole is filled, the more often its writer comes at the same moment.
            hole_wait_min: Duration::from_millis(*pick(&random, &[0, 1, 20])),
            hole_wait_max: Duration::from_millis(*pick(&random, &[20, 500])),
            ..Options::default()
        };
        let tasks = host.tasks.clone();
        let log = Log::new(host, caller, self.workload.layout.clone(), options);
        for number in 0..=random.below(3) {
            let client = Client {
                workload: self.workload.clone(),
                process,
                producer: (process << 8) | number,
                log: log.clone(),
                random: self
                    .workload
                    .world
                    .random(&format!("client loop {process} {number}")),
                pause: Duration::from_millis(*pick(&random, &[1, 20, 100])),
            };
            tasks.spawn(client.run());
        }
        Box::pin(std::future::ready(Ok(
            Arc::new(NoService) as Arc<dyn Service>
        )))
    }

    fn crashed(&self, _: &Random) {}
}

/// One loop of a client process.
pub struct Client {
    workload: Workload,
    process: u64,
    producer: u64,
    log: Log,
    random: Random,
    pause: Duration,
}

impl Client {
    /// A client that does what it is told, one thing after the other.
    pub fn new(workload: Workload, process: u64, log: Log) -> Self {
        let random = workload.world.random(&format!("client loop {process}"));
        Self {
            workload,
            process,
            producer: process << 8,
            log,
            random,
            pause: Duration::ZERO,
        }
    }

    async fn run(self) {
        let streams = STREAMS.map(StreamId::of_name);
        let streams = &streams[..self.random.below(3) as usize];
        let mut producer = self.log.producer(streams);
        let mut producers = self.producer << 8;
        while !self.workload.stop.load(Ordering::Relaxed) {
            match self.random.below(20) {
                0..6 => self.append(1, streams).await,
                // Now and then so many that streams are walked, not scanned.
                6..8 if self.random.below(100) == 0 => {
                    self.append(500 + self.random.below(1_000), streams).await;
                }
                6..8 => self.append(1 + self.random.below(12), streams).await,
                8..11 => {
                    if !self
                        .append_in_order(&mut producer, producers, streams)
                        .await
                    {
                        // After an unknown outcome the handle is done with.
                        producer = self.log.producer(streams);
                        producers += 1;
                    }
                }
                11..16 => self.read_somewhere().await,
                16 => {
                    let stream = StreamId::of_name(pick::<&str>(&self.random, &STREAMS));
                    self.read_stream(stream, self.random.below(20) == 0).await;
                }
                17..19 => drop(self.end().await),
                _ if self.workload.trims => self.trim().await,
                _ => self.read_somewhere().await,
            }
            let pause = self.random.jittered(self.pause);
            self.log.host().clock.sleep(pause).await;
        }
    }

    fn values(&self, count: u64) -> (Vec<Value>, Vec<Bytes>) {
        let values: Vec<Value> = (0..count).map(|_| self.workload.history.value()).collect();
        let size = match *pick(&self.random, &[0, 10, 100, 3_000]) {
            large if large * values.len() > 100_000 => 0,
            size => size,
        };
        let records = values.iter().map(|value| value.record(size)).collect();
        (values, records)
    }

    /// Appends records with one token.
    pub async fn append(&self, count: u64, streams: &[StreamId]) {
        let (values, records) = self.values(count);
        let call = Call::Append {
            producer: None,
            streams: streams.to_vec(),
            values,
        };
        let asked = self.workload.history.ask(self.process, call);
        let told = match self.log.append_batch(&records, streams).await {
            Ok(appended) => Told::Fates(appended.positions.into_iter().map(Fate::At).collect()),
            Err(error) => self.fates(error, records.len()).await.0,
        };
        self.workload.history.tell(&asked, told);
    }

    /// Appends records with an ordered producer; false if the handle takes no more.
    async fn append_in_order(
        &self,
        producer: &mut Producer,
        number: u64,
        streams: &[StreamId],
    ) -> bool {
        let (values, records) = self.values(1 + self.random.below(3));
        let call = Call::Append {
            producer: Some(number),
            streams: streams.to_vec(),
            values,
        };
        let asked = self.workload.history.ask(self.process, call);
        let (told, usable) = match producer.append(&records).await {
            Ok(positions) => {
                let fates = positions.into_iter().map(Fate::At).collect();
                (Told::Fates(fates), true)
            }
            Err(error) => self.fates(error, records.len()).await,
        };
        self.workload.history.tell(&asked, told);
        usable
    }

    /// What an append that failed says of each record; and whether all of it is known without asking again.
    async fn fates(&self, error: AppendError, count: usize) -> (Told, bool) {
        let known = |positions: Vec<Option<Position>>| -> Vec<Fate> {
            let fates = positions.into_iter();
            fates
                .map(|position| position.map_or(Fate::Nowhere, Fate::At))
                .collect()
        };
        match error {
            AppendError::NotAppended { why } => {
                self.count("append: not appended", &why);
                (Told::Fates(vec![Fate::Nowhere; count]), true)
            }
            AppendError::Partly { positions, why } => {
                self.count("append: partly", &why);
                (Told::Fates(known(positions)), true)
            }
            AppendError::Unknown {
                saved,
                positions,
                why,
            } => {
                self.count("append: unknown", &why);
                let first = first_of_run(&positions, &saved);
                let mut fates = known(positions);
                for placed in &saved.placed {
                    for record in placed.record..placed.record + placed.count {
                        fates[first + record as usize] = Fate::Open;
                    }
                }
                if chance(&self.random, 700_000) {
                    self.resume(&saved, &mut fates[first..]).await;
                }
                (Told::Fates(fates), false)
            }
        }
    }

    fn count(&self, what: &'static str, why: &impl std::fmt::Display) {
        self.workload.world.note(&format!("{what}: {why}"));
        self.workload.world.count(what);
    }

    async fn resume(&self, saved: &SavedAppend, fates: &mut [Fate]) {
        // As another process would: from its text.
        let saved: SavedAppend = match saved.to_string().parse() {
            Ok(saved) => saved,
            Err(error) => return self.workload.world.violation(format!("{error}")),
        };
        let Ok(outcomes) = self.log.resume(&saved).await else {
            return self.workload.world.count("resume: not known yet");
        };
        self.workload.world.count("resume: known");
        for (record, outcome) in outcomes {
            fates[record as usize] = match outcome {
                Resumed::Appended(position) => Fate::At(position),
                Resumed::NotAppended => Fate::Nowhere,
                Resumed::Unknown => Fate::Open,
            };
        }
    }

    async fn read_somewhere(&self) {
        let Some(end) = self.end().await else { return };
        let from = match self.random.below(4) {
            0 => Position(self.random.below(end.0 + 2)),
            // What is being written right now is where it is interesting.
            _ => Position((end.0 + 1).saturating_sub(self.random.below(12))),
        };
        if self.random.below(3) == 0 {
            self.read_from(from, 1 + self.random.below(50)).await;
        } else {
            self.read(from).await;
        }
    }

    /// Reads one position.
    pub async fn read(&self, from: Position) {
        let asked = self.workload.history.ask(self.process, Call::Read { from });
        let told = match self.log.read(from).await {
            Ok(entry) => Told::Entries(vec![self.seen(&entry)]),
            Err(error) => Told::Failed(error.to_string()),
        };
        self.workload.history.tell(&asked, told);
    }

    /// Reads the positions from one on; returns where to go on, if it got anywhere.
    pub async fn read_from(&self, from: Position, count: u64) -> Option<Position> {
        let asked = self.workload.history.ask(self.process, Call::Read { from });
        let span = Span::new(from, from.plus(count));
        let (told, next) = match self.log.read_some(span).await {
            Ok(entries) => {
                let next = entries.last().map(|entry| entry.position.next());
                (self.entries(&entries), next)
            }
            Err(error) => (Told::Failed(error.to_string()), None),
        };
        self.workload.history.tell(&asked, told);
        next
    }

    /// Reads all that a stream has, from the first position or from one near the end.
    pub async fn read_stream(&self, stream: StreamId, from_first: bool) {
        let Ok(end) = self.log.end_of(&[stream]).await else {
            return;
        };
        let from = if from_first {
            Position::FIRST
        } else {
            Position(end.counter.0.saturating_sub(self.random.below(500)))
        };
        // What the sequencer said of the stream holds up to its counter, not up to what this session saw before.
        let span = Span::new(from, end.counter);
        let asked = self
            .workload
            .history
            .ask(self.process, Call::ReadStream { stream, span });
        let last = end.streams.first().map(|link| &link.before);
        let told = match self.log.read_stream(stream, span, last).await {
            Ok(entries) => {
                self.workload.world.count("stream read");
                self.entries(&entries)
            }
            Err(error) => Told::Failed(error.to_string()),
        };
        self.workload.history.tell(&asked, told);
    }

    /// Asks for the end.
    pub async fn end(&self) -> Option<Position> {
        let asked = self.workload.history.ask(self.process, Call::End);
        let (told, end) = match self.log.end().await {
            Ok(end) => (
                Told::End {
                    end: end.position,
                    counter: end.counter,
                    term: end.term,
                },
                Some(end.position),
            ),
            Err(error) => (Told::Failed(error.to_string()), None),
        };
        self.workload.history.tell(&asked, told);
        end
    }

    fn entries(&self, entries: &[Entry]) -> Told {
        Told::Entries(entries.iter().map(|entry| self.seen(entry)).collect())
    }

    /// What an entry shows.
    fn seen(&self, entry: &Entry) -> (Position, Seen) {
        let what = match &entry.kind {
            EntryKind::Data {
                payload, streams, ..
            } => {
                self.workload.history.link(entry.position, streams);
                Value::of_record(payload).map_or(Seen::Damaged, Seen::Data)
            }
            EntryKind::Junk { .. } => Seen::Junk,
            EntryKind::Trimmed => Seen::Trimmed,
            EntryKind::Unwritten => Seen::Unwritten,
            EntryKind::Unknown => Seen::Unknown,
        };
        (entry.position, what)
    }

    async fn trim(&self) {
        let Some(end) = self.end().await else { return };
        let to = Position(self.random.below(end.0 / 2 + 1));
        let asked = self.workload.history.ask(self.process, Call::Trim { to });
        let told = match self.log.trim(to).await {
            Ok(achieved) => {
                self.workload.world.count("trim");
                Told::Trimmed(achieved)
            }
            Err(TrimError::BeyondEnd { .. }) => Told::Failed("beyond the end".to_owned()),
            Err(TrimError::Unavailable(error)) => Told::Failed(error.to_string()),
        };
        self.workload.history.tell(&asked, told);
    }
}

/// Which record of a call is the first of the run that `saved` counts its records in: an ordered producer makes several
/// runs of one call, one after the other, so all that lies before the first open record is appended.
fn first_of_run(positions: &[Option<Position>], saved: &SavedAppend) -> usize {
    let open = positions.iter().position(Option::is_none);
    let counted = saved.placed.iter().map(|placed| placed.record).min();
    open.unwrap_or_default()
        .saturating_sub(counted.unwrap_or_default() as usize)
}
