//! Streams: walks prove themselves, scans are told what they miss.

use proptest::prelude::*;

use milonga_wire::Role;

use super::*;
use crate::options::Options;
use crate::testing::Cluster;

const STREAM: StreamId = StreamId([7; 16]);

fn positions(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.position.0).collect()
}

async fn read(log: &Log, from: u64) -> Vec<Entry> {
    let end = log.end_of(&[STREAM]).await.unwrap();
    let span = Span::new(Position(from), end.counter);
    let last = &end.streams[0].before;
    log.read_stream(STREAM, span, Some(last)).await.unwrap()
}

/// C8; Tango (SOSP '13), "Streaming CORFU": what lies between is not read, however much of it there is.
#[tokio::test(start_paused = true)]
async fn a_sparse_stream_is_walked_and_not_scanned() {
    let cluster = Cluster::new(2, 2, 4);
    let log = cluster.client(Role::Writer);
    let mut expected = vec![];
    for _ in 0..10 {
        expected.push(log.append("a", &[STREAM]).await.unwrap().0);
        cluster.burn(&log, 3_000, &[]).await;
    }
    cluster.forget();

    assert_eq!(positions(&read(&log, 0).await), expected);
    assert_eq!(positions(&read(&log, 4_000).await), expected[2..]);
    assert_eq!(positions(&read(&log, 29_000).await), []);
    // Not one of the 30,000 holes was settled.
    assert_eq!(cluster.seen("u", "fill"), 0);
    assert!(cluster.seen("u", "read") < 60);
}

/// C8: more than K burnt positions in a row hide the way back; then everything is looked at.
#[tokio::test(start_paused = true)]
async fn a_stream_whose_way_back_is_hidden_by_junk_is_scanned() {
    let cluster = Cluster::new(2, 2, 4);
    let log = cluster.client(Role::Writer);
    let first = log.append("a", &[STREAM]).await.unwrap().0;
    cluster.burn(&log, 6_000, &[]).await;
    let second = log.append("a", &[STREAM]).await.unwrap().0;
    cluster.burn(&log, 1, &[STREAM]).await;
    cluster.burn(&log, 5_000, &[]).await;
    cluster.burn(&log, 5, &[STREAM]).await;

    assert_eq!(positions(&read(&log, 0).await), [first, second]);
}

/// C8: a burnt position or two are stepped over.
#[tokio::test(start_paused = true)]
async fn a_walk_steps_over_a_burnt_position() {
    let cluster = Cluster::new(2, 2, 4);
    let log = cluster.client(Role::Writer);
    let mut expected = vec![];
    for _ in 0..6 {
        expected.push(log.append("a", &[STREAM]).await.unwrap().0);
        cluster.burn(&log, 2, &[STREAM]).await;
        cluster.burn(&log, 3_000, &[]).await;
    }
    assert_eq!(positions(&read(&log, 0).await), expected);
    // The heads fill the burnt positions one by one; of the foreign ones, what keeps the settled mark down.
    let fills = cluster.seen("u-00", "fill") + cluster.seen("u-10", "fill");
    assert!((12..=16).contains(&fills), "{fills}");
}

/// C8, O5: the sequencer's last positions may have been issued again, in a later term, to other records.
#[tokio::test(start_paused = true)]
async fn a_walk_from_positions_that_were_issued_again_misses_nothing() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Writer);
    for _ in 0..2 {
        log.append("a", &[STREAM]).await.unwrap();
    }
    cluster.burn(&log, 6_000, &[]).await;
    log.append("of nobody", &[]).await.unwrap();
    cluster.burn(&log, 4, &[]).await;
    cluster.burn(&log, 1, &[STREAM]).await;
    let end = log.end_of(&[STREAM]).await.unwrap();
    cluster.restart_sequencer("q-0");
    cluster.next_term().await;
    for _ in 0..5 {
        log.append("b", &[STREAM]).await.unwrap();
    }
    let expected = [0, 1, 6_003, 6_004, 6_005, 6_006, 6_007];

    let span = Span::new(Position::FIRST, end.counter);
    let last = &end.streams[0].before;
    let entries = log.read_stream(STREAM, span, Some(last)).await.unwrap();
    assert_eq!(positions(&entries), expected);
}

/// C9, H26.
#[tokio::test(start_paused = true)]
async fn trimmed_positions_are_told_only_where_the_stream_may_have_had_some() {
    let cluster = Cluster::new(2, 2, 4);
    let log = cluster.client(Role::Control);
    let other = StreamId([8; 16]);
    let mut own = vec![];
    for number in 0..20 {
        let stream = if number % 5 == 0 { STREAM } else { other };
        let position = log.append("a", &[stream]).await.unwrap();
        if stream == STREAM {
            own.push(position.0);
        }
    }
    assert_eq!(own, [0, 5, 10, 15]);
    log.trim(Position(9)).await.unwrap();

    // Behind the last one trimmed, nothing is missing; before it, something is.
    let kinds = |entries: Vec<Entry>| -> Vec<(u64, bool)> {
        entries
            .iter()
            .map(|entry| (entry.position.0, entry.kind == Kind::Trimmed))
            .collect()
    };
    assert_eq!(kinds(read(&log, 6).await), [(10, false), (15, false)]);
    assert_eq!(
        kinds(read(&log, 5).await),
        [(5, true), (10, false), (15, false)]
    );
    assert_eq!(
        kinds(read(&log, 0).await),
        [(0, true), (10, false), (15, false)]
    );
    log.trim(Position(18)).await.unwrap();
    assert_eq!(kinds(read(&log, 16).await), []);
    assert_eq!(kinds(read(&log, 11).await), [(11, true)]);
}

/// A reader that settles nothing is told of a hole, which may be one of the stream's own entries in flight.
#[tokio::test(start_paused = true)]
async fn a_reader_that_settles_nothing_is_told_of_holes() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Writer);
    log.append("a", &[STREAM]).await.unwrap();
    cluster.burn(&log, 1, &[STREAM]).await;
    let careful = log.with_options(Options {
        settle: false,
        ..Options::default()
    });
    let entries = read(&careful, 0).await;
    assert_eq!(entries[1].kind, Kind::Unwritten);
    assert_eq!(cluster.seen("u", "fill"), 0);
}

/// What happens to a log.
#[derive(Clone, Debug)]
enum Event {
    /// Appended to these of three streams.
    Append(u8),
    /// Burnt for these.
    Burn(u32, u8),
    /// The sequencer starts again, and a term begins.
    Term,
    /// The tail of one chain forgets where a record is, as after a restart that lost it.
    ForgetIndex(u64),
    Trim(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0_u8..8).prop_map(Event::Append),
        4 => (1_u32..7, 0_u8..8).prop_map(|(count, streams)| Event::Burn(count, streams)),
        1 => Just(Event::Term),
        3 => (0_u64..60).prop_map(Event::ForgetIndex),
        1 => (0_u64..40).prop_map(Event::Trim),
    ]
}

fn streams_of(bits: u8) -> Vec<StreamId> {
    let all = (0..3).filter(|number| bits & (1 << number) != 0);
    all.map(|number| StreamId([7 + number; 16])).collect()
}

/// Appends, burns and trims as `events` say; returns the records of [`STREAM`], trimmed ones too, and the trim point.
async fn make(cluster: &Cluster, log: &Log, events: &[Event]) -> (Vec<u64>, u64) {
    let (mut own, mut trimmed) = (vec![], 0);
    for event in events {
        match event {
            Event::Append(streams) => {
                let streams = streams_of(*streams);
                let position = log.append("a", &streams).await.unwrap();
                if streams.contains(&STREAM) {
                    own.push(position.0);
                }
            }
            Event::Burn(count, streams) => {
                cluster.burn(log, *count, &streams_of(*streams)).await;
            }
            Event::Term => {
                cluster.restart_sequencer("q-0");
                cluster.next_term().await;
                log.newest_layout().await.unwrap();
            }
            Event::ForgetIndex(position) => {
                for unit in ["u-01", "u-11"] {
                    cluster.forget_index(unit, *position);
                }
            }
            Event::Trim(to) => {
                let end = log.end().await.unwrap().counter;
                trimmed = log
                    .trim(end.min(Position(*to)))
                    .await
                    .unwrap()
                    .0
                    .max(trimmed);
            }
        }
    }
    (own, trimmed)
}

async fn in_bulk(log: &Log, span: Span, last: Option<&Before>) -> Vec<Entry> {
    let mut reader = StreamReader::new(log, STREAM, span, last.cloned());
    reader.short = 0;
    let mut entries = vec![];
    while let Some(some) = reader.next().await.unwrap() {
        entries.extend(some);
    }
    entries
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// C8, C9: whatever the indexes leave out, and wherever the sequencer's positions were issued again.
    #[test]
    fn in_bulk_a_stream_is_what_a_scan_finds(
        events in prop::collection::vec(event(), 0..40),
        from in 0_u64..50,
        length in 0_u64..60,
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::new(2, 2, 4);
            let log = cluster.client(Role::Control);
            let (own, trimmed) = make(&cluster, &log, &events).await;
            let end = log.end_of(&[STREAM]).await.unwrap();
            let all = Span::new(Position(from), end.counter.max(Position(from)));
            let part = Span::new(all.start, all.start.plus(length).min(all.end));
            for (span, last) in [(all, Some(&end.streams[0].before)), (all, None), (part, None)] {
                let entries = in_bulk(&log, span, last).await;
                let records: Vec<u64> = entries
                    .iter()
                    .filter(|entry| matches!(entry.kind, Kind::Data { .. }))
                    .map(|entry| entry.position.0)
                    .collect();
                let kept = |position: &u64| span.contains(Position(*position)) && *position >= trimmed;
                let expected: Vec<u64> = own.iter().copied().filter(kept).collect();
                assert_eq!(records, expected, "{span} trimmed {trimmed}: {entries:?}");
                let told = entries.iter().any(|entry| entry.kind == Kind::Trimmed);
                let missing = own.iter().any(|at| *at < trimmed && span.contains(Position(*at)));
                assert!(told || !missing, "{span} trimmed {trimmed}: {entries:?}");
                assert!(!told || from < trimmed, "nothing is trimmed in {span}");
            }
        });
    }
}
