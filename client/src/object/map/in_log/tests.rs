//! Values that stay in the log: by the rules alone, and on a cluster in memory.

use std::time::Duration;

use milonga_wire::Role;
use proptest::prelude::*;

use super::*;
use crate::object::cursors::If;
use crate::object::directory::DirectoryState;
use crate::object::keeping::{Keeper, Retention};
use crate::object::map::state::tests::written;
use crate::object::map::{Cas, Expect, Lease, Outcome};
use crate::object::transact::tests::process;
use crate::object::{
    Cursors, ImageReader, ImageWriter, Isolation, Keeping, Keys, Object, Part, Transaction, Writes,
};
use crate::testing::Cluster;

/// Long enough to stay in the log.
fn long(fill: &str) -> Bytes {
    Bytes::from(fill.repeat(1_000))
}

fn update() -> impl Strategy<Value = Update> {
    let key = prop::collection::vec(0_u8..3, 0..2).prop_map(Bytes::from);
    prop_oneof![
        8 => written(),
        1 => prop::option::of(0_u64..3).prop_map(|from_bytes| Update::KeepInLog { from_bytes }),
        1 => (key, 0_u64..40, 40_u64..50).prop_map(|(key, from, to)| {
            let (from, to) = (Position(from), Position(to));
            Update::Moved { values: vec![Moved { key, from, to: Some(to) }] }
        }),
    ]
}

fn restored(state: &MapState) -> MapState {
    let mut image = ImageWriter::default();
    state.snapshot(&mut image);
    MapState::restore(&mut ImageReader::new(image.finish().0)).unwrap()
}

proptest! {
    /// Z1, Z3, O1: where values are changes nothing that can be seen, and a snapshot says where each is.
    #[test]
    fn a_map_is_the_same_wherever_its_values_are(
        updates in prop::collection::vec(update(), 0..60),
        past in 0_usize..60,
    ) {
        let (mut state, mut plain) = (MapState::default(), MapState::default());
        let (mut before, mut plain_before) = (MapState::default(), MapState::default());
        for (number, update) in updates.iter().enumerate() {
            let position = Position(number as u64);
            let outcome = state.apply(position, update.clone());
            if number == past {
                before = restored(&state);
                plain_before = plain.clone();
                if !matches!(update, Update::KeepInLog { .. } | Update::Moved { .. }) {
                    plain_before.apply(position, update.clone());
                }
            }
            if matches!(update, Update::KeepInLog { .. } | Update::Moved { .. }) {
                prop_assert_eq!(outcome, Outcome::Kept);
                continue;
            }
            let expected = plain.apply(position, update.clone());
            match (outcome, expected) {
                (Outcome::Conflict { found }, Outcome::Conflict { found: expected }) => {
                    prop_assert!(are_same(found.as_ref(), expected.as_ref()));
                }
                (outcome, expected) => prop_assert_eq!(outcome, expected),
            }
        }
        for _ in 0..2 {
            let (page, expected) = (state.scan(&Keys::all(), 99), plain.scan(&Keys::all(), 99));
            prop_assert_eq!(page.entries.len(), expected.entries.len());
            for ((key, held), (same, expected)) in page.entries.iter().zip(&expected.entries) {
                prop_assert!(key == same && are_same(Some(held), Some(expected)));
            }
            let all = Part::Keys(Keys::all());
            prop_assert_eq!(state.seen(&all), plain.seen(&all));
            prop_assert_eq!(&restored(&state), &state);
            let lowest = state.values().filter_map(|(_, value)| Some(value.stored()?.at)).min();
            prop_assert_eq!(state.refers_to(), lowest);
            state.reset(Position(99), before.clone());
            plain.reset(Position(99), plain_before.clone());
        }
    }

    /// Z4: of whatever a record holds, only the value itself is found in it.
    #[test]
    fn a_record_gives_the_value_that_is_meant_or_none(
        values in prop::collection::vec("[ab]{0,3}", 1..5),
        wanted in "[ab]{0,3}",
    ) {
        let mut writes = Writes::new();
        let map = StreamId::of_name("m");
        for value in &values {
            let put = Update::Put { key: Bytes::from("k"), value: Bytes::from(value.clone()) };
            writes.push_for_test(map, MapState::KIND, &put);
        }
        let record = writes.sealed(vec![], None).unwrap().record;
        let held = Value::put(Position(1), Bytes::from(wanted.clone()), Some(0));
        let found = held.stored().unwrap().find_in(&record, &Bytes::from("k"));
        let expected = values.contains(&wanted).then(|| Bytes::from(wanted));
        prop_assert_eq!(found, expected);
        prop_assert_eq!(held.stored().unwrap().find_in(&record, &Bytes::from("other")), None);
    }
}

/// Z3: a copy of a value is none of what was put since, and so is the loss of one.
#[test]
fn a_value_that_was_put_again_meanwhile_stays_where_it_is() {
    let mut state = MapState::default();
    state.apply(
        Position(0),
        Update::KeepInLog {
            from_bytes: Some(1),
        },
    );
    let (key, value) = (Bytes::from("k"), Bytes::from("v"));
    for position in [1, 2] {
        let (key, value) = (key.clone(), value.clone());
        state.apply(Position(position), Update::Put { key, value });
    }
    let at = |state: &MapState| {
        let (_, value) = state.values().next().unwrap();
        let stored = value.stored().unwrap();
        (stored.at.0, stored.is_gone)
    };
    for (from, to, expected) in [
        (1, Some(3), (2, false)),
        (1, None, (2, false)),
        (2, Some(3), (3, false)),
        (2, None, (3, false)),
        (3, None, (3, true)),
    ] {
        let (key, from, to) = (key.clone(), Position(from), to.map(Position));
        let values = vec![Moved { key, from, to }];
        state.apply(Position(4), Update::Moved { values });
        assert_eq!(at(&state), expected);
    }
}

fn are_same(one: Option<&Held>, other: Option<&Held>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.version == other.version && one.value.is_same(&other.value),
        (one, other) => one.is_none() && other.is_none(),
    }
}

async fn value_of(map: &Map, key: &str) -> Option<Bytes> {
    let found = map.get(key.as_bytes()).await.unwrap();
    found.map(|found| found.value)
}

/// However a value was put, it is read as it was, by whoever opens the map, and no more than the bound is in memory.
#[tokio::test(start_paused = true)]
async fn values_that_stay_in_the_log_are_read_as_they_were_put() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map, other]) = process(&cluster, ["m", "other"]);
    map.put("before", long("0")).await.unwrap();
    map.keep_in_log(Some(1_000)).await.unwrap();
    other.keep_in_log(Some(1_000)).await.unwrap();
    objects.hold(3_000);
    let from = objects.log().end().await.unwrap().counter;
    map.put("short", "s").await.unwrap();
    map.put("put", long("1")).await.unwrap();
    let cas = map.cas("cas", Expect::Absent, long("2")).await.unwrap();
    assert!(matches!(cas, Cas::Done { .. }), "{cas:?}");
    let lease: Lease = map.grant(Duration::from_secs(60)).await.unwrap();
    map.put_leased("leased", long("3"), lease.id())
        .await
        .unwrap();
    let body = |txn: &mut Transaction<'_>| {
        txn.put(&map, "txn", long("4"));
        txn.put(&map, "txn", long("5"));
        txn.put(&other, "txn", long("6"));
        Ok::<_, PlayError>(())
    };
    objects.transact(body).await.unwrap();
    let expected = [
        ("before", long("0")),
        ("cas", long("2")),
        ("leased", long("3")),
        ("put", long("1")),
        ("short", Bytes::from("s")),
        ("txn", long("5")),
    ];
    let snapshot = map.view().snapshot().await.unwrap();
    assert!(snapshot.bytes < 2_000, "{snapshot:?}");
    assert!(snapshot.needs < snapshot.as_of, "{snapshot:?}");

    let (_, [late]) = process(&cluster, ["m"]);
    for map in [&map, &late] {
        for (key, value) in &expected {
            assert_eq!(value_of(map, key).await.as_ref(), Some(value), "{key}");
        }
        let page = map.scan(&Keys::all(), 9).await.unwrap();
        let all: Vec<_> = page
            .entries
            .into_iter()
            .map(|(key, found)| (String::from_utf8(key.to_vec()).unwrap(), found.value))
            .collect();
        let whole = expected.iter();
        let whole: Vec<_> = whole
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        assert_eq!(all, whole);
    }
    assert_eq!(value_of(&other, "txn").await, Some(long("6")));
    assert!(objects.cache().bytes() <= 3_000);

    // By what they are.
    let wrong = map.cas("put", Expect::value(long("9")), "x").await.unwrap();
    let Cas::Conflict { found, .. } = wrong else {
        panic!("{wrong:?}");
    };
    assert!(found.unwrap().value.is(&long("1")));
    let right = map
        .cas("put", Expect::value(long("1")), long("7"))
        .await
        .unwrap();
    assert!(matches!(right, Cas::Done { .. }), "{right:?}");

    let mut watch = late.watch(Keys::prefix("put"), from);
    let told = [watch.next().await.unwrap(), watch.next().await.unwrap()];
    assert_eq!(
        told.map(|change| change.value),
        [Some(long("1")), Some(long("7"))]
    );
}

/// A transaction is run again once the values that it wants are here, and reads what it reads as one state.
#[tokio::test(start_paused = true)]
async fn transactions_read_values_that_stay_in_the_log() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map]) = process(&cluster, ["m"]);
    map.keep_in_log(Some(1_000)).await.unwrap();
    for (key, fill) in [("a", "1"), ("b", "2"), ("c", "3")] {
        map.put(key, long(fill)).await.unwrap();
    }
    for isolation in [
        Isolation::Serializable,
        Isolation::Snapshot,
        Isolation::WriteWrite,
    ] {
        let body = |txn: &mut Transaction<'_>| {
            let a = txn.get(&map, b"a")?;
            let page = txn.scan(&map, &Keys::all(), 9)?;
            txn.put(&map, "sum", a.clone().unwrap_or_default());
            Ok::<_, PlayError>((a, page.entries.len(), txn.get(&map, b"sum")?))
        };
        let (_, [other]) = process(&cluster, ["m"]);
        other.delete("sum").await.unwrap();
        map.view().sync().await.unwrap();
        let transact = objects.transaction().isolation(isolation);
        let done = transact.run(body).await.unwrap();
        assert_eq!(done.value, (Some(long("1")), 3, Some(long("1"))));
        assert_eq!(done.attempts, 1);
    }
    assert_eq!(value_of(&map, "sum").await, Some(long("1")));
    objects.hold(2_000);
    let body = |txn: &mut Transaction<'_>| txn.scan(&map, &Keys::all(), 9).map(drop);
    let too_much = objects.transact(body).await;
    assert!(
        matches!(
            too_much,
            Err(crate::object::TransactError::Play(PlayError::TooMuch {
                asked: 3_000,
                limit: 2_000
            }))
        ),
        "{too_much:?}"
    );
}

/// Z2, Z3: what lies around a value is trimmed once the value was brought forward; who did not know reads it at its new place.
#[tokio::test(start_paused = true)]
async fn values_are_brought_forward_before_what_lies_around_them_is_trimmed() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let log = objects.log().clone();
    let map = Map::open(&objects, "m").await.unwrap();
    map.keep_in_log(Some(1_000)).await.unwrap();
    let first = map.put("k", long("1")).await.unwrap();
    map.put("gone", long("2")).await.unwrap();
    let slow = Objects::new(&cluster.client(Role::Writer));
    let behind = Map::open(&slow, "m").await.unwrap();
    assert!(behind.get_stale(b"k").is_none());
    behind.view().sync().await.unwrap();
    let seen = behind.get_stale(b"k").unwrap();
    map.delete("gone").await.unwrap();

    let stream = StreamId::of_name(DirectoryState::KIND);
    let directory = objects.host::<DirectoryState>(stream);
    let keeping = Keeping::open(&objects);
    objects.sync().await.unwrap();
    directory.snapshot().await.unwrap();
    map.view().snapshot().await.unwrap();
    let end = log.end().await.unwrap().counter;
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(kept.held_by.as_ref().unwrap().from, first, "{kept:?}");
    assert_eq!(kept.trimmed, first);

    let cursors = Cursors::open(&objects);
    cursors.move_to("c", end, If::Always).await.unwrap();
    keeping
        .retain(Retention {
            age_ms: None,
            bytes: Some(1),
        })
        .await
        .unwrap();
    let mut keeper = Keeper::new(&objects);
    for _ in 0..3 {
        log.host().clock.sleep(Duration::from_secs(11)).await;
        for _ in 0..9 {
            log.append("more", &[]).await.unwrap();
        }
        keeper.work().await.unwrap();
    }
    assert!(log.read(first).await.unwrap().payload().is_none());
    let now = map.get_stale(b"k").unwrap();
    assert!(now.value.stored().unwrap().at > end);
    assert_eq!(now.version, first);
    assert_eq!(value_of(&behind, "k").await, Some(long("1")));
    // Of a state that is not the present one it is gone.
    let old = Page::one(b"k", Some(seen));
    slow.hold(0);
    let gone = behind.fetch(old).await;
    assert!(
        matches!(gone, Err(PlayError::Gone(at)) if at == first),
        "{gone:?}"
    );
    let late = Objects::new(&cluster.client(Role::Reader));
    let again = Map::open(&late, "m").await.unwrap();
    assert_eq!(value_of(&again, "k").await, Some(long("1")));
}

/// However long keys are, what says where their values are by now fits a record.
#[tokio::test(start_paused = true)]
async fn values_of_long_keys_are_brought_forward_too() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map]) = process(&cluster, ["m"]);
    map.keep_in_log(Some(1_000)).await.unwrap();
    for number in 0..20_u8 {
        let key = vec![b'a' + number; 60 << 10];
        map.put(key, long("1")).await.unwrap();
    }
    map.view().sync().await.unwrap();
    let end = objects.log().end().await.unwrap().counter;
    bring_forward(&objects, map.view().stream(), end)
        .await
        .unwrap();
    let lowest = map.view().read(Object::refers_to).await.unwrap();
    assert!(lowest.unwrap() >= end);
    cluster.client(Role::Control).trim(end).await.unwrap();
    let page = map.scan(&Keys::all(), 99).await.unwrap();
    assert!(
        page.entries
            .iter()
            .all(|(_, found)| found.value == long("1"))
    );
}

/// Who goes back takes the values along: nothing that it refers to afterwards need stay for what came before.
#[tokio::test(start_paused = true)]
async fn values_are_taken_along_when_a_map_goes_back() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let map = Map::open(&objects, "m").await.unwrap();
    map.keep_in_log(Some(1_000)).await.unwrap();
    let then = map.put("k", long("1")).await.unwrap();
    map.put("k", long("2")).await.unwrap();
    let mut watch = map.watch(Keys::all(), then.next());
    let end = objects.log().end().await.unwrap().counter;
    let back = objects.roll_back(&["m"], then).await.unwrap();
    let at = map.view().read(Object::refers_to).await.unwrap().unwrap();
    assert!(at >= end && at < back, "{at}");
    assert_eq!(value_of(&map, "k").await, Some(long("1")));
    let told = [watch.next().await.unwrap(), watch.next().await.unwrap()];
    assert_eq!(
        told.map(|change| change.value),
        [Some(long("2")), Some(long("1"))]
    );

    objects.log().trim(end).await.unwrap();
    let stream = StreamId::of_name(DirectoryState::KIND);
    let directory = objects.host::<DirectoryState>(stream);
    directory.snapshot().await.unwrap();
    let snapshot = map.view().snapshot().await.unwrap();
    assert_eq!(snapshot.needs, at);
    let late = Objects::new(&cluster.client(Role::Reader));
    let again = Map::open(&late, "m").await.unwrap();
    assert_eq!(value_of(&again, "k").await, Some(long("1")));
}

/// A value that was trimmed by force is a typed error, and nothing else is lost.
#[tokio::test(start_paused = true)]
async fn what_was_trimmed_by_force_is_told() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map]) = process(&cluster, ["m"]);
    map.keep_in_log(Some(1_000)).await.unwrap();
    map.put("old", long("1")).await.unwrap();
    let mark = map.put("new", long("2")).await.unwrap();
    map.view().snapshot().await.unwrap();
    cluster.client(Role::Control).trim(mark).await.unwrap();
    let gone = map.get(b"old").await;
    assert!(matches!(gone, Err(PlayError::Gone(_))), "{gone:?}");
    assert_eq!(value_of(&map, "new").await, Some(long("2")));
    let body = |txn: &mut Transaction<'_>| txn.get(&map, b"old").map(drop);
    let gone = objects.transact(body).await;
    assert!(
        matches!(
            gone,
            Err(crate::object::TransactError::Play(PlayError::Gone(_)))
        ),
        "{gone:?}"
    );
    let (_, [late]) = process(&cluster, ["m"]);
    // All the rest is there, for newcomers too.
    assert_eq!(value_of(&late, "new").await, Some(long("2")));
    let gone = late.get(b"old").await;
    assert!(matches!(gone, Err(PlayError::Gone(_))), "{gone:?}");
    late.put("old", "there").await.unwrap();
    assert_eq!(value_of(&map, "old").await, Some(Bytes::from("there")));
}
