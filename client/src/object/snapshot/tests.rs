//! Snapshots, on a cluster in memory.

use bytes::Bytes;
use milonga_wire::{Position, Refusal, Request, Role, StreamId, UnitRequest};

use super::{manifests, stream_of, write};
use crate::object::codec;
use crate::object::counter::CounterState;
use crate::object::counter::Update as Add;
use crate::object::map::Update;
use crate::object::second_index_tests::Count;
use crate::object::transact::tests::{move_one, process, text, value};
use crate::object::{Keys, Objects, Once, PlayError, Writes};
use crate::testing::{Cluster, Fault};

/// A snapshot and what follows it is the same as the whole history: for who starts from it, with and without a trim, and for the
/// table of idempotency keys.
#[tokio::test(start_paused = true)]
async fn who_starts_from_a_snapshot_has_what_a_replay_has() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map, other]) = process(&cluster, ["a", "b"]);
    let once = Once {
        key: Bytes::from("once"),
        lives: 1_000,
    };
    let put = |value: &'static str| Update::Put {
        key: Bytes::from("o"),
        value: Bytes::from(value),
    };
    map.view()
        .update_once(once.clone(), &put("first"))
        .await
        .unwrap();
    for round in 0..20 {
        move_one(&objects, [&map, &other], ["x", "y"][round % 2]).await;
    }
    let snapshot = map.view().snapshot().await.unwrap();
    other.view().snapshot().await.unwrap();
    for _ in 0..5 {
        move_one(&objects, [&map, &other], "x").await;
    }
    let expected = map.view().read(Clone::clone).await.unwrap();
    let (_, [from_start, _]) = process(&cluster, ["a", "b"]);
    assert_eq!(
        from_start.view().read(Clone::clone).await.unwrap(),
        expected
    );
    let control = cluster.client(Role::Control);
    control.trim(snapshot.needs).await.unwrap();

    let (late, [again]) = process(&cluster, ["a"]);
    assert_eq!(again.view().read(Clone::clone).await.unwrap(), expected);
    let (_, applied) = again
        .view()
        .update_once(once, &put("second"))
        .await
        .unwrap();
    assert!(
        matches!(applied, crate::object::Applied::Repeated { .. }),
        "{applied:?}"
    );
    // As of the snapshot and later it can be read; before, nothing is left.
    assert!(map.at(snapshot.as_of).await.is_ok());
    let gone = map.at(Position(snapshot.as_of.0 - 2)).await;
    assert!(
        matches!(
            gone,
            Err(crate::object::AtError::Play(PlayError::Trimmed(_)))
        ),
        "{:?}",
        gone.err()
    );
    drop(late);
}

/// O3: what a snapshot holds is not applied again, and what it does not hold is; beside an object without one, too.
#[tokio::test(start_paused = true)]
async fn who_starts_from_a_snapshot_applies_each_update_once() {
    let cluster = Cluster::new(1, 2, 3);
    let stream = StreamId::of_name("counted");
    let (objects, []) = process(&cluster, []);
    let sum = objects.host::<CounterState>(stream);
    let mut last = Position::FIRST;
    for _ in 0..3 {
        (last, _) = sum.update(&Add::Add(1)).await.unwrap();
    }

    let snapshot = sum.snapshot().await.unwrap();
    sum.update(&Add::Add(1)).await.unwrap();

    assert_eq!(snapshot.as_of, last.next());
    let (late, []) = process(&cluster, []);
    let restored = late.host::<CounterState>(stream);
    let replayed = late.host::<Count<Add>>(stream);
    assert_eq!(restored.read(|sum| sum.value()).await.unwrap(), 4);
    assert_eq!(replayed.read(Count::value).await.unwrap(), 4);
    let (late, []) = process(&cluster, []);
    let restored = late.host::<CounterState>(stream);
    let replayed = late.host::<Count<Add>>(stream);
    late.sync().await.unwrap();
    assert_eq!(restored.read(|sum| sum.value()).await.unwrap(), 4);
    assert_eq!(replayed.read(Count::value).await.unwrap(), 4);
}

/// A record that takes objects back to snapshots does so in all of them at once; versions never come back, only values do.
#[tokio::test(start_paused = true)]
async fn objects_go_back_to_snapshots_together_and_versions_do_not() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [one, other]) = process(&cluster, ["a", "b"]);
    let kept = one.put("kept", "1").await.unwrap();
    one.put("changed", "1").await.unwrap();
    other.put("gone later", "1").await.unwrap();
    let mut watch = one.watch(Keys::all(), Position::FIRST);
    let [here, there] = [
        one.view().snapshot().await.unwrap(),
        other.view().snapshot().await.unwrap(),
    ];
    one.put("changed", "2").await.unwrap();
    one.put("new", "2").await.unwrap();
    other.delete("gone later").await.unwrap();

    let mut writes = Writes::new();
    writes.reset(one.view().named(), here.manifest);
    writes.reset(other.view().named(), there.manifest);
    let position = objects.append(writes).await.unwrap();

    let (_, [fresh, _]) = process(&cluster, ["a", "b"]);
    for map in [&one, &fresh] {
        let all = map.scan(&Keys::all(), 9).await.unwrap().entries;
        let all: Vec<_> = all
            .iter()
            .map(|(key, found)| (&key[..], &found.value[..], found.version))
            .collect();
        assert_eq!(
            all,
            [
                (&b"changed"[..], &b"1"[..], position),
                (b"kept", b"1", kept)
            ]
        );
    }
    assert_eq!(
        other.get(b"gone later").await.unwrap().unwrap().version,
        position
    );
    let mut told = vec![];
    while let Some(change) = watch.next_ready().await.unwrap() {
        told.push((
            String::from_utf8_lossy(&change.key).into_owned(),
            change.value.map(|value| value[0]),
        ));
    }
    let change = |key: &str, value: Option<u8>| (key.to_owned(), value);
    let expected = [
        change("kept", Some(b'1')),
        change("changed", Some(b'1')),
        change("changed", Some(b'2')),
        change("new", Some(b'2')),
        change("changed", Some(b'1')),
        change("new", None),
    ];
    assert_eq!(told, expected);
}

/// Nobody starts from parts that are not what their manifest says.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_not_what_its_manifest_says_is_passed_over() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    map.put("k", "1").await.unwrap();
    map.view().snapshot().await.unwrap();
    let log = objects.log();
    let manifests = manifests(log, map.view().named()).await.unwrap();
    let (_, mut wrong) = manifests.into_iter().next().unwrap();
    map.put("k", "2").await.unwrap();
    wrong.crc ^= 1;
    wrong.as_of = log.end().await.unwrap().counter;
    let record = codec::manifest(wrong).unwrap();
    let stream = stream_of(map.view().named());
    log.append(record, &[stream]).await.unwrap();
    let (_, [late]) = process(&cluster, ["a"]);
    assert_eq!(value(&late, "k").await, 2);
}

/// Units that take smaller records than others get smaller parts.
#[tokio::test(start_paused = true)]
async fn a_snapshot_is_cut_as_small_as_units_want_it() {
    let cluster = Cluster::new(2, 2, 3);
    let (_, [map]) = process(&cluster, ["a"]);
    for key in 0..20 {
        map.put(key.to_string(), vec![b'v'; 900]).await.unwrap();
    }
    let limit = 1_000;
    cluster.rule(move |_, request| match request {
        Request::Unit(UnitRequest::Write { pieces, .. }) => {
            let mut lengths = pieces.iter().flat_map(|piece| &piece.lengths);
            let large = lengths.find(|length| **length > limit)?;
            let refusal = Refusal::too_large("bytes in a record", *large as usize, limit);
            Some(Fault::Refuse(refusal))
        }
        _ => None,
    });
    let snapshot = map.view().snapshot().await.unwrap();
    assert!(snapshot.bytes > 18_000);
    cluster
        .client(Role::Control)
        .trim(snapshot.needs)
        .await
        .unwrap();
    let (_, [late]) = process(&cluster, ["a"]);
    let all = late.scan(&Keys::all(), 99).await.unwrap().entries;
    assert_eq!(all.len(), 20);
}

/// A reader that stood still while what it had not played was trimmed loads a snapshot and goes on.
#[tokio::test(start_paused = true)]
async fn a_view_that_missed_what_was_trimmed_starts_again_from_a_snapshot() {
    let cluster = Cluster::new(2, 2, 3);
    let (_, [map]) = process(&cluster, ["a"]);
    let (paused, [slow, quiet]) = process(&cluster, ["a", "quiet"]);
    map.put("k", "1").await.unwrap();
    quiet.put("k", "v").await.unwrap();
    assert_eq!(value(&slow, "k").await, 1);
    paused.sync().await.unwrap();
    for round in 2..10 {
        map.put("k", text(round)).await.unwrap();
    }
    let snapshot = map.view().snapshot().await.unwrap();
    map.put("k", "10").await.unwrap();
    cluster
        .client(Role::Control)
        .trim(snapshot.needs)
        .await
        .unwrap();

    assert_eq!(value(&slow, "k").await, 10);
    assert!(quiet.get_stale(b"k").unwrap().value.is(b"v"));
    assert_eq!(quiet.get(b"k").await.unwrap().unwrap().value, "v");
}

/// Who starts from a snapshot and writes another, or watches, before anything new came has no less than the snapshot.
#[tokio::test(start_paused = true)]
async fn a_copy_that_came_from_a_snapshot_stands_where_that_does() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [quiet, map]) = process(&cluster, ["quiet", "a"]);
    let stream = StreamId::of_name("counter");
    let counter = objects.host::<CounterState>(stream);
    quiet.put("k", "v").await.unwrap();
    counter.append(&Add::Add(5)).await.unwrap();
    let put = map.put("k", "1").await.unwrap();
    let earlier = counter.snapshot().await.unwrap();
    map.view().snapshot().await.unwrap();

    let (objects, [_quiet, map]) = process(&cluster, ["quiet", "a"]);
    let counter = objects.host::<CounterState>(stream);
    let again = counter.snapshot().await.unwrap();
    assert!(again.as_of >= earlier.as_of, "{again:?} {earlier:?}");
    let late = Objects::new(&cluster.client(Role::Writer));
    let counter = late.host::<CounterState>(stream);
    assert_eq!(counter.read(|state| state.value()).await.unwrap(), 5);

    assert_eq!(value(&map, "k").await, 1);
    let mut watch = map.watch(Keys::all(), put.next());
    assert_eq!(watch.next_ready().await.unwrap(), None);
}

/// Of several snapshots the one that holds most is used, though one that holds less was finished later.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_written_slowly_hides_no_newer_one() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    map.put("k", "1").await.unwrap();
    map.view().sync().await.unwrap();
    let (as_of, image) = {
        let world = objects.world();
        let object = world.object(map.view().named()).unwrap();
        (world.behind(object), object.snapshot())
    };
    map.put("k", "2").await.unwrap();
    let newer = map.view().snapshot().await.unwrap();
    cluster
        .client(Role::Control)
        .trim(newer.needs)
        .await
        .unwrap();
    let slow = write(
        map.view().log(),
        map.view().named().clone(),
        as_of,
        false,
        image,
        None,
    )
    .await;
    assert!(slow.unwrap().manifest > newer.manifest);

    let (_, [late]) = process(&cluster, ["a"]);
    assert_eq!(value(&late, "k").await, 2);
}

/// A transaction starts again from a snapshot, as a read does.
#[tokio::test(start_paused = true)]
async fn a_transaction_over_what_missed_a_trim_starts_again_from_a_snapshot() {
    let cluster = Cluster::new(2, 2, 3);
    let (_, [map]) = process(&cluster, ["a"]);
    let (slow, [late, other]) = process(&cluster, ["a", "b"]);
    map.put("x", "1").await.unwrap();
    slow.sync().await.unwrap();
    map.put("x", "2").await.unwrap();
    let snapshot = map.view().snapshot().await.unwrap();
    let control = cluster.client(Role::Control);
    control.trim(snapshot.needs).await.unwrap();

    move_one(&slow, [&late, &other], "x").await;
    assert_eq!((value(&map, "x").await, value(&other, "x").await), (1, 1));
}
