//! The map, on a cluster in memory.

use std::time::Duration;

use futures_util::future::join_all;
use milonga_wire::{Role, Span};

use super::*;
use crate::log::Log;
use crate::object::{Object, OperationError};
use crate::options::Options;
use crate::testing::{Cluster, Fault, Gate, once};

fn writer(cluster: &Cluster) -> (Log, Map) {
    let log = cluster.client(Role::Writer);
    let map = map_of(&log, "m");
    (log, map)
}

fn map_of(log: &Log, name: &str) -> Map {
    Map::of(Objects::new(log).host(milonga_wire::StreamId::of_name(name)))
}

#[allow(clippy::unnecessary_wraps, reason = "it is what reads answer")]
fn found(value: &str, version: u64) -> Option<Versioned> {
    Some(Versioned {
        value: Bytes::copy_from_slice(value.as_bytes()),
        version: Position(version),
    })
}

/// O4; Tango (SOSP '13), "Tango Objects": an accessor plays to the end first.
#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_to_one_client_is_read_by_every_other() {
    let cluster = Cluster::new(2, 2, 1);
    let ((_, one), (_, other)) = (writer(&cluster), writer(&cluster));

    let version = one.put("k", "a").await.unwrap();
    assert_eq!(other.get(b"k").await.unwrap(), found("a", version.0));
    let version = other.put("k", "b").await.unwrap();
    assert_eq!(one.get(b"k").await.unwrap(), found("b", version.0));
    one.delete("k").await.unwrap();
    assert_eq!(other.get_stale(b"k"), found("a", 0).map(Held::from));
    assert_eq!(other.get(b"k").await.unwrap(), None);
}

/// O6: the order in the log decides, not who asked first.
#[tokio::test(start_paused = true)]
async fn of_many_conditional_writes_one_wins_and_every_replica_says_which() {
    let cluster = Cluster::new(2, 2, 4);
    let maps: Vec<Map> = (0..5).map(|_| writer(&cluster).1).collect();

    let writes = maps.iter().zip(["a", "b", "c", "d", "e"]);
    let outcomes = join_all(writes.map(|(map, value)| map.cas("lock", Expect::Absent, value)));
    let outcomes: Vec<Cas> = outcomes.await.into_iter().map(Result::unwrap).collect();

    let won: Vec<usize> = (0..5)
        .filter(|index| matches!(outcomes[*index], Cas::Done { .. }))
        .collect();
    assert_eq!(won.len(), 1, "{outcomes:?}");
    let held = maps[0].get(b"lock").await.unwrap();
    for (index, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Cas::Done { position } => assert_eq!(held.as_ref().unwrap().version, *position),
            Cas::Conflict { found, position } => {
                assert_eq!(*found, held.clone().map(Held::from));
                let again = maps[won[0]].cas_at(*position).await.unwrap();
                assert_eq!(again, Some(outcome.clone()), "{index}");
            }
        }
    }
}

/// O6: with a compare and set for each step, nothing counted is lost.
#[tokio::test(start_paused = true)]
async fn counting_with_compare_and_set_loses_nothing() {
    let cluster = Cluster::new(2, 2, 2);
    let maps: Vec<Map> = (0..4).map(|_| writer(&cluster).1).collect();
    maps[0].put("n", "0").await.unwrap();

    let count = |map: Map| async move {
        for _ in 0..5 {
            loop {
                let now = map.get(b"n").await.unwrap().unwrap();
                let number: u32 = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
                let next = (number + 1).to_string();
                let done = map.cas("n", Expect::Version(now.version), next).await;
                if matches!(done.unwrap(), Cas::Done { .. }) {
                    break;
                }
            }
        }
    };
    join_all(maps.iter().cloned().map(count)).await;

    let total = maps[3].get(b"n").await.unwrap().unwrap();
    assert_eq!(total.value, "20");
}

#[tokio::test(start_paused = true)]
async fn a_conditional_delete_removes_only_what_was_expected() {
    let cluster = Cluster::new(1, 2, 1);
    let (_, map) = writer(&cluster);
    map.put("", "of the empty key").await.unwrap();
    map.get(b"").await.unwrap();
    cluster.forget();

    let wrong = map.delete_if("", Expect::value("other")).await.unwrap();
    let right = map
        .delete_if("", Expect::Version(Position(0)))
        .await
        .unwrap();

    let conflict = Cas::Conflict {
        position: Position(1),
        found: found("of the empty key", 0).map(Held::from),
    };
    assert_eq!(wrong, conflict);
    assert_eq!(
        right,
        Cas::Done {
            position: Position(2)
        }
    );
    // Each was told by playing up to it, and nothing was replayed for it.
    assert_eq!(cluster.seen("q", "end"), 2);
    assert_eq!(map.get(b"").await.unwrap(), None);
}

/// One question for the end serves all who wait; but H43: never one that began before its reader came.
#[tokio::test(start_paused = true)]
async fn readers_share_rounds_that_begin_after_them() {
    let cluster = Cluster::new(1, 2, 1);
    let ((_, reader), (_, other)) = (writer(&cluster), writer(&cluster));
    other.put("k", "old").await.unwrap();
    reader.get(b"k").await.unwrap();
    cluster.forget();

    // A first reader's round has its end confirmed, but the answer is slow.
    let gate = Gate::new();
    cluster.rule(once("q", "end", Fault::HoldReply(gate.clone())));
    let early = reader.clone();
    let early = tokio::spawn(async move { early.get(b"k").await });
    gate.arrived().await;
    other.put("k", "new").await.unwrap();
    let late: Vec<_> = (0..50)
        .map(|_| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.get(b"k").await })
        })
        .collect();
    tokio::task::yield_now().await;
    gate.open();

    for late in late {
        assert_eq!(late.await.unwrap().unwrap(), found("new", 1));
    }
    early.await.unwrap().unwrap();
    assert_eq!(cluster.seen("q", "end"), 2);
}

/// A leader of a round that is dropped hands it to the next; nothing is applied twice or left out.
#[tokio::test(start_paused = true)]
async fn a_read_that_is_given_up_leaves_the_view_as_it_should_be() {
    let cluster = Cluster::new(2, 2, 1);
    let ((_, reader), (_, other)) = (writer(&cluster), writer(&cluster));
    for number in 0..20 {
        other.put("k", number.to_string()).await.unwrap();
    }
    for micros in (50..2_000).step_by(100) {
        let given_up = Duration::from_micros(micros);
        let clock = other.view().log().host().clock.clone();
        let _ = clock.within(given_up, reader.get(b"k")).await;
        assert!(reader.view().applied() <= Some(Position(19)));
    }
    assert_eq!(reader.get(b"k").await.unwrap(), found("19", 19));
}

/// O3: skipping what it cannot read would leave this replica with another state than a newer program has.
#[tokio::test(start_paused = true)]
async fn an_operation_of_a_newer_program_stops_the_map_there() {
    let cluster = Cluster::new(1, 2, 1);
    let (log, map) = writer(&cluster);
    map.put("k", "a").await.unwrap();
    let newer = Bytes::from_static(&[2, 0, 0, 0]);
    let position = log.append(newer, &[map.view().stream()]).await.unwrap();
    map.put("k", "b").await.unwrap();

    for _ in 0..2 {
        let stopped = map.get(b"k").await;
        assert!(
            matches!(
                stopped,
                Err(PlayError::Operation {
                    position: at,
                    why: OperationError::Newer { found: 2 }
                }) if at == position
            ),
            "{stopped:?}"
        );
        assert_eq!(map.get_stale(b"k"), found("a", 0).map(Held::from));
    }
    let undecided = map.cas("k", Expect::Absent, "c").await;
    assert!(
        matches!(
            undecided,
            Err(DecideError::Undecided {
                position: Position(3),
                ..
            })
        ),
        "{undecided:?}"
    );
}

/// Holes of writers that died, in the map's own stream, are settled and passed by.
#[tokio::test(start_paused = true)]
async fn holes_in_the_stream_of_a_map_do_not_stop_it() {
    let cluster = Cluster::new(2, 2, 2);
    let ((log, map), (_, other)) = (writer(&cluster), writer(&cluster));
    map.put("k", "a").await.unwrap();
    cluster.burn(&log, 3, &[map.view().stream()]).await;
    map.put("k", "b").await.unwrap();
    cluster.burn(&log, 2, &[map.view().stream()]).await;

    assert_eq!(other.get(b"k").await.unwrap(), found("b", 4));
    assert_eq!(other.view().played(), Position(7));
}

/// O5: a sequencer that was lost forgets what it issued in vain, and its successor issues that again.
#[tokio::test(start_paused = true)]
async fn positions_that_are_issued_again_are_played_though_the_view_had_passed_them() {
    let cluster = Cluster::new(2, 2, 2);
    let ((log, map), (_, reader)) = (writer(&cluster), writer(&cluster));
    map.put("k", "a").await.unwrap();
    cluster.burn(&log, 9, &[]).await;
    reader.get(b"k").await.unwrap();
    assert_eq!(reader.view().played(), Position(10));

    cluster.restart_sequencer("q-0");
    let layout = cluster.next_term().await;
    assert_eq!(layout.open_segment().start, Position(1));
    let other = cluster.client(Role::Writer);
    for _ in 0..11 {
        other.append("of nobody", &[]).await.unwrap();
    }
    reader.get(b"k").await.unwrap();
    let version = map.put("k", "b").await.unwrap();

    assert_eq!(version, Position(12));
    assert_eq!(reader.get(b"k").await.unwrap(), found("b", 12));

    // And again, this time the stream's own entry is where the view has been.
    cluster.burn(&log, 5, &[]).await;
    reader.get(b"k").await.unwrap();
    cluster.restart_sequencer("q-0");
    cluster.next_term().await;
    assert_eq!(map.put("k", "c").await.unwrap(), Position(13));
    cluster.burn(&log, 20, &[]).await;
    assert_eq!(reader.get(b"k").await.unwrap(), found("c", 13));
}

/// H26: a map that was idle while the log was trimmed has lost nothing; one that was not played before the trim has.
#[tokio::test(start_paused = true)]
async fn a_trim_stops_only_a_view_that_missed_something() {
    let cluster = Cluster::new(2, 2, 2);
    let ((log, map), (_, idle), (_, late)) = (writer(&cluster), writer(&cluster), writer(&cluster));
    let (_, elsewhere) = writer(&cluster);
    let elsewhere = map_of(elsewhere.view().log(), "elsewhere");
    map.put("k", "a").await.unwrap();
    assert_eq!(idle.get(b"k").await.unwrap(), found("a", 0));
    for _ in 0..10 {
        log.append("of nobody", &[]).await.unwrap();
    }
    elsewhere.put("x", "y").await.unwrap();
    cluster
        .client(Role::Control)
        .trim(Position(8))
        .await
        .unwrap();
    let version = map.put("k", "b").await.unwrap();

    assert_eq!(idle.get(b"k").await.unwrap(), found("b", version.0));
    assert_eq!(elsewhere.get(b"x").await.unwrap(), found("y", 11));
    let stopped = late.get(b"k").await;
    assert!(
        matches!(stopped, Err(PlayError::Trimmed(Position(0)))),
        "{stopped:?}"
    );
    let at = idle.get_at(b"k", Position(9)).await;
    assert!(
        matches!(at, Err(AtError::Play(PlayError::Trimmed(_)))),
        "{at:?}"
    );
    let watched = idle.watch(Keys::all(), Position(0)).next_ready().await;
    assert!(matches!(watched, Err(PlayError::Trimmed(_))), "{watched:?}");
    // Everything that the copy has lies below: nothing can be missed.
    let mut watch = idle.watch(Keys::all(), version.next());
    assert_eq!(watch.next_ready().await.unwrap(), None);
}

/// H32, O3.
#[tokio::test(start_paused = true)]
async fn a_lost_update_stops_the_map_and_is_named() {
    let cluster = Cluster::new(1, 2, 1);
    let ((_, map), (_, reader)) = (writer(&cluster), writer(&cluster));
    map.put("k", "a").await.unwrap();
    assert_eq!(reader.get(b"k").await.unwrap(), found("a", 0));
    for value in ["b", "c"] {
        map.put("k", value).await.unwrap();
    }
    cluster.damage("u-00", 1);
    cluster.damage("u-01", 1);

    let stopped = reader.get(b"k").await;
    assert!(
        matches!(stopped, Err(PlayError::Lost(Position(1)))),
        "{stopped:?}"
    );
    assert_eq!(reader.get_stale(b"k"), found("a", 0).map(Held::from));
}

#[tokio::test(start_paused = true)]
async fn a_map_can_be_read_as_it_was_at_any_position() {
    let cluster = Cluster::new(2, 2, 2);
    let (log, map) = writer(&cluster);
    map.put("k", "a").await.unwrap();
    log.append("of nobody", &[]).await.unwrap();
    map.delete("k").await.unwrap();
    map.put("k", "c").await.unwrap();

    let mut was = vec![];
    for position in (0..4).map(Position) {
        was.push(map.get_at(b"k", position).await.unwrap());
    }
    assert_eq!(was, [found("a", 0), found("a", 0), None, found("c", 3)]);
    let beyond = map.at(Position(4)).await;
    assert!(
        matches!(
            beyond,
            Err(AtError::BeyondEnd {
                end: Position(4),
                ..
            })
        ),
        "{beyond:?}"
    );
    assert_eq!(cluster.seen("u", "fill"), 0);
}

fn told(change: &Change) -> (u64, String, Option<String>) {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    (
        change.position.0,
        text(&change.key),
        change.value.as_ref().map(text),
    )
}

async fn all_ready(watch: &mut Watch) -> Vec<(u64, String, Option<String>)> {
    let mut changes = vec![];
    while let Some(change) = watch.next_ready().await.unwrap() {
        changes.push(told(&change));
    }
    changes
}

/// Each change once, in order, none missed; what changed nothing is no change.
#[tokio::test(start_paused = true)]
async fn a_watch_tells_each_change_once_from_where_it_was_asked_to() {
    let cluster = Cluster::new(2, 2, 2);
    let ((log, map), (_, other)) = (writer(&cluster), writer(&cluster));
    let mut whole = other.watch(Keys::prefix("k"), Position::FIRST);
    map.put("k1", "a").await.unwrap();
    map.delete("k2").await.unwrap();
    map.cas("k1", Expect::Absent, "lost").await.unwrap();
    map.cas("k1", Expect::value("a"), "b").await.unwrap();
    cluster.burn(&log, 1, &[map.view().stream()]).await;
    map.put("j", "of no interest").await.unwrap();
    map.delete("k1").await.unwrap();

    let change =
        |position, value: Option<&str>| (position, "k1".to_owned(), value.map(ToOwned::to_owned));
    let changes = [change(0, Some("a")), change(3, Some("b")), change(6, None)];
    assert_eq!(all_ready(&mut whole).await, changes);
    assert_eq!(all_ready(&mut whole).await, []);
    let mut late = other.watch(Keys::prefix("k"), Position(1));
    assert_eq!(all_ready(&mut late).await, changes[1..]);
    // It starts with a copy: nothing is read again.
    cluster.forget();
    let mut ahead = other.watch(Keys::prefix("k"), Position(7));
    assert_eq!(all_ready(&mut ahead).await, []);
    assert_eq!(cluster.seen("u", "read"), 0);

    map.put("k1", "c").await.unwrap();
    for watch in [&mut whole, &mut late, &mut ahead] {
        assert_eq!(all_ready(watch).await, [change(7, Some("c"))]);
    }
}

/// O3; found by `sim --scenario transactions` at seed 83: a watch that begins with a copy of the map knows the idempotency keys
/// that the map knows.
#[tokio::test(start_paused = true)]
async fn a_watch_that_begins_in_the_middle_tells_no_update_that_was_repeated() {
    let cluster = Cluster::new(1, 2, 3);
    let map = Map::of(
        Objects::new(&cluster.client(Role::Writer))
            .host::<MapState>(milonga_wire::StreamId::of_name("a")),
    );
    let once = crate::object::Once {
        key: Bytes::from("o"),
        lives: 1_000,
    };
    let put = |value: &'static str| Update::Put {
        key: Bytes::from("k"),
        value: Bytes::from(value),
    };
    let first = map.view().update_once(once.clone(), &put("1")).await;
    let mut watch = map.watch(Keys::all(), first.unwrap().0.next());
    assert_eq!(watch.next_ready().await.unwrap(), None);

    map.view().update_once(once, &put("2")).await.unwrap();
    // A watch plays nothing while the map has not changed.
    let next = map.put("other", "3").await.unwrap();

    let told = watch.next_ready().await.unwrap();
    assert_eq!(told.map(|change| change.position), Some(next));
    assert_eq!(watch.next_ready().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_waits_for_changes_and_survives_trouble() {
    let cluster = Cluster::new(1, 2, 1);
    let ((_, map), (_, other)) = (writer(&cluster), writer(&cluster));
    let mut watch = other.watch(Keys::all(), Position::FIRST);
    let writing = async {
        for number in 0..10_u32 {
            map.put("k", number.to_string()).await.unwrap();
            if number % 3 == 0 {
                cluster.next_term().await;
            }
        }
    };
    let watching = async {
        let mut positions = vec![];
        while positions.len() < 10 {
            positions.push(watch.next().await.unwrap().position);
        }
        positions
    };

    let both = futures_util::future::join(watching, writing);
    let (positions, ()) = Box::pin(both).await;

    assert!(
        positions.windows(2).all(|pair| pair[0] < pair[1]),
        "{positions:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn keys_and_values_over_a_limit_are_refused_before_anything_is_asked() {
    let cluster = Cluster::new(1, 2, 1);
    let (_, map) = writer(&cluster);
    let key = map.put(vec![0; KEY_BYTES_MAX + 1], "v").await;
    let value = map.put("k", vec![0; 1 << 20]).await;

    for refused in [key, value] {
        assert!(
            matches!(refused, Err(UpdateError::TooLarge { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(cluster.count(|_| true), 0);
    let largest = vec![0; (1 << 20) - KEY_BYTES_MAX - 16];
    map.put(vec![0; KEY_BYTES_MAX], largest).await.unwrap();
}

/// The three outcomes of an append are those of a put, and what is saved resolves the third.
#[tokio::test(start_paused = true)]
async fn a_put_of_unknown_outcome_can_be_resumed() {
    let cluster = Cluster::new(1, 2, 1);
    let options = Options {
        deadline: Duration::from_millis(300),
        call: Duration::from_millis(100),
        ..Options::default()
    };
    let map = map_of(&cluster.client_with(Role::Writer, options), "m");
    // The write reaches the head, and then the whole chain falls silent.
    let mut writes = 0;
    cluster.rule(move |to, request| {
        writes += u32::from(request.verb() == "write");
        (to.starts_with('u') && writes > 1).then_some(Fault::LoseRequest)
    });
    let unknown = map.cas("k", Expect::Absent, "v").await;
    let Err(DecideError::Update(UpdateError::Unknown { saved, .. })) = unknown else {
        panic!("{unknown:?}");
    };
    cluster.heal();

    let (other, again) = writer(&cluster);
    let outcomes = other.resume(&saved).await.unwrap();

    assert_eq!(outcomes, [(0, crate::Resumed::Appended(Position(0)))]);
    assert_eq!(
        again.cas_at(Position(0)).await.unwrap(),
        Some(Cas::Done {
            position: Position(0)
        })
    );
    assert_eq!(again.get(b"k").await.unwrap(), found("v", 0));
}

/// O2: all replicas, however they got there, and every replay, hold the same at the same position.
#[tokio::test(start_paused = true)]
async fn every_replica_and_every_replay_have_the_same_state() {
    let cluster = Cluster::new(2, 2, 3);
    let maps: Vec<Map> = (0..3).map(|_| writer(&cluster).1).collect();
    let work = |(number, map): (usize, Map)| {
        let cluster = cluster.clone();
        async move {
            for round in 0..30_usize {
                let key = format!("k{}", (round * 7 + number) % 4);
                match (round + number) % 5 {
                    0 => drop(map.delete(key).await.unwrap()),
                    1 => drop(map.cas(key, Expect::Absent, "new").await.unwrap()),
                    2 => drop(map.get(key.as_bytes()).await.unwrap()),
                    3 if round % 10 == 3 => {
                        cluster
                            .burn(map.view().log(), 2, &[map.view().stream()])
                            .await;
                    }
                    _ => drop(map.put(key, round.to_string()).await.unwrap()),
                }
            }
        }
    };
    let changing = async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
            cluster.next_term().await;
        }
    };
    let working = join_all(maps.iter().cloned().enumerate().map(work));
    futures_util::future::join(working, changing).await;

    let end = maps[0].view().log().end().await.unwrap().counter;
    let replayed = maps[1].at(Position(end.0 - 1)).await.unwrap();
    let mut updates = vec![];
    let stream = maps[0].view().stream();
    let span = Span::new(Position::FIRST, end);
    for entry in maps[2]
        .view()
        .log()
        .read_stream(stream, span, None)
        .await
        .unwrap()
    {
        let record = crate::object::codec::Record::parse(entry.payload().unwrap());
        let Ok(crate::object::codec::Record::Update(update)) = record else {
            panic!("{record:?}");
        };
        let update = crate::object::codec::decode(update).unwrap();
        updates.push((entry.position, update));
    }
    let mut by_hand = MapState::default();
    for (position, update) in updates {
        by_hand.apply(position, update);
    }
    assert_eq!(replayed, by_hand);
    for map in &maps {
        map.view().sync().await.unwrap();
        assert_eq!(map.view().read_stale(Clone::clone), by_hand);
    }
    assert!(!by_hand.is_empty());
}
