//! Streams: walks prove themselves, scans are told what they miss.

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
    // A head fills the burnt positions one by one, and nothing of the foreign ones.
    assert_eq!(
        cluster.seen("u-00", "fill") + cluster.seen("u-10", "fill"),
        12
    );
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
