//! What is kept, on a cluster in memory; and its state.

use milonga_wire::{Request, Role, Span, UnitRequest};
use proptest::prelude::*;

use super::*;
use crate::object::cursors::If;
use crate::object::directory::DirectoryState;
use crate::object::map::MapState;
use crate::object::transact::tests::{append_untold, value};
use crate::object::{Cursors, Map, codec, snapshot};
use crate::testing::{Cluster, Fault};

fn mark(wall_ms: u64, end: u64, bytes: u64) -> Mark {
    let end = Position(end);
    Mark {
        wall_ms,
        end,
        bytes,
    }
}

fn noted(marks: &[Mark]) -> KeepingState {
    let mut state = KeepingState::default();
    for (position, mark) in (0..).map(Position).zip(marks) {
        state.apply(position, Update::Mark(*mark));
    }
    state
}

#[test]
fn a_time_is_a_position_at_most_one_mark_too_low() {
    let state = noted(&[
        mark(100, 10, 0),
        mark(200, 20, 1_000),
        mark(150, 99, 0),
        mark(300, 30, 5_000),
    ]);
    let at = |wall_ms| state.position_at(wall_ms).0;
    assert_eq!(
        [at(99), at(100), at(199), at(200), at(9_999)],
        [0, 10, 10, 20, 30]
    );
}

#[test]
fn what_may_go_is_what_any_limit_gives_up() {
    let mut state = noted(&[mark(100, 10, 0), mark(200, 20, 1_000), mark(300, 30, 5_000)]);
    assert_eq!(state.retained_from(10_000), Position::FIRST);
    for (age_ms, bytes, expected) in [
        (Some(150), None, 10),
        (Some(0), None, 30),
        (None, Some(4_000), 20),
        (None, Some(4_001), 10),
        (None, Some(9_000), 0),
        (Some(150), Some(4_000), 20),
    ] {
        state.apply(Position(9), Update::Retain(Retention { age_ms, bytes }));
        assert_eq!(state.retained_from(310).0, expected, "{age_ms:?} {bytes:?}");
    }
}

proptest! {
    /// However many are noted: the state stays small, what it says stays in order, and it comes back from its image.
    #[test]
    fn marks_thin_out_and_stay_in_order(steps in prop::collection::vec((0_u64..3, 0_u64..3), 0..9_000)) {
        let mut state = KeepingState::default();
        let (mut wall_ms, mut end) = (0, 0);
        for (time, growth) in steps {
            wall_ms += time;
            end += growth;
            state.apply(Position(0), Update::Mark(mark(wall_ms, end, end)));
        }
        prop_assert!(state.marks.len() <= MARKS_MAX);
        prop_assert!(state.marks.windows(2).all(|pair| pair[0].wall_ms < pair[1].wall_ms && pair[0].end <= pair[1].end));
        let mut image = ImageWriter::default();
        state.snapshot(&mut image);
        let mut image = ImageReader::new(image.finish().0);
        prop_assert_eq!(KeepingState::restore(&mut image).unwrap(), state);
    }
}

/// R1: objects that have names, cursors and pins keep what they need, and it is told what does.
#[tokio::test(start_paused = true)]
async fn nothing_is_trimmed_that_somebody_needs() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let log = objects.log().clone();
    let keeping = Keeping::open(&objects);
    for _ in 0..5 {
        log.append("of nobody", &[]).await.unwrap();
    }
    // The directory comes into being here, and is the first that needs anything.
    let map = Map::open(&objects, "m").await.unwrap();
    for number in 0..10 {
        map.put("k", number.to_string()).await.unwrap();
    }
    let end = log.end().await.unwrap().counter;
    let trimmed = |kept: &Kept| {
        let held_by = kept.held_by.as_ref().map(|need| need.what.clone());
        (kept.trimmed.0, held_by.unwrap_or_default())
    };
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(trimmed(&kept), (5, "object directory".to_owned()));

    let stream = StreamId::of_name(DirectoryState::KIND);
    let directory = objects.host::<DirectoryState>(stream);
    map.view().sync().await.unwrap();
    directory.snapshot().await.unwrap();
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(trimmed(&kept), (5, "object m".to_owned()));

    let snapshot = map.view().snapshot().await.unwrap();
    let cursors = Cursors::open(&objects);
    cursors.move_to("c", Position(9), If::Always).await.unwrap();
    let lease = Duration::from_secs(5);
    let pin = keeping.pin(Position(8), lease).await.unwrap();
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(trimmed(&kept), (8, format!("pin {pin}")));
    keeping.unpin(pin).await.unwrap();
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(trimmed(&kept), (9, "cursor c".to_owned()));
    cursors.remove("c", If::Always).await.unwrap();
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(trimmed(&kept), (end.0, String::new()));
    assert!(end <= snapshot.needs);

    let late = Objects::new(&cluster.client(Role::Writer));
    let again = Map::open(&late, "m").await.unwrap();
    assert_eq!(again.get(b"k").await.unwrap().unwrap().value, "9");

    // What is left of the directory's records begins behind its snapshot now, which is needed all the same.
    Map::open(&late, "n").await.unwrap();
    let end = log.end().await.unwrap().counter;
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(trimmed(&kept).1, "object directory");
    let late = Objects::new(&cluster.client(Role::Reader));
    assert!(Map::find(&late, "m").await.unwrap().is_some());
}

/// R5: what was told before a snapshot need not be decided again by who replays what lies below it.
#[tokio::test(start_paused = true)]
async fn who_decides_finds_what_was_decided_below_a_snapshot() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let maps = ["a", "x", "y"].map(|name| Map::open(&objects, name));
    let [a, x, y] = futures_util::future::join_all(maps)
        .await
        .try_into()
        .ok()
        .unwrap();
    let [a, x, y]: [Map; 3] = [a.unwrap(), x.unwrap(), y.unwrap()];
    for map in [&a, &x, &y] {
        map.put("k", "1").await.unwrap();
    }
    let stream = StreamId::of_name(DirectoryState::KIND);
    let directory = objects.host::<DirectoryState>(stream);
    for map in [&y, &x] {
        y.put("other", "0").await.unwrap();
        objects.sync().await.unwrap();
        map.view().snapshot().await.unwrap();
    }
    let copy = async |from: &Map, to: &Map| {
        append_untold(&objects, |txn| {
            let value = txn.get(from, b"k").unwrap().unwrap();
            txn.put(to, "k", value);
        })
        .await
    };
    y.put("k", "2").await.unwrap();
    copy(&y, &x).await;
    y.put("k", "3").await.unwrap();
    for _ in 0..2 {
        y.view().snapshot().await.unwrap();
        directory.snapshot().await.unwrap();
        a.view().snapshot().await.unwrap();
        y.put("other", "1").await.unwrap();
    }
    let last = copy(&x, &a).await;
    x.put("k", "4").await.unwrap();
    x.view().snapshot().await.unwrap();
    let end = objects.log().end().await.unwrap().counter;
    let kept = Keeping::open(&objects).trim(end).await.unwrap();
    assert!(kept.trimmed < last, "{kept:?}");
    let late = Objects::new(&cluster.client(Role::Reader));
    let again = Map::open(&late, "a").await.unwrap();
    assert_eq!(value(&again, "k").await, 2);
}

/// R5: who decided in a dead writer's place, and could not tell, tells before a snapshot that holds what came of it.
#[tokio::test(start_paused = true)]
async fn what_was_found_out_and_not_told_is_told_before_a_snapshot() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let checked = Map::open(&objects, "checked").await.unwrap();
    let written = Map::open(&objects, "written").await.unwrap();
    checked.put("k", "1").await.unwrap();
    let orphan = append_untold(&objects, |txn| {
        txn.get(&checked, b"k").unwrap();
        txn.put(&written, "k", "2");
    });
    let orphan = orphan.await;
    let half = Objects::new(&cluster.client(Role::Control));
    let half = Map::open(&half, "written").await.unwrap();
    cluster.rule(|_, request| match request {
        Request::Unit(UnitRequest::Write { .. }) => Some(Fault::LoseRequest),
        _ => None,
    });
    assert_eq!(value(&half, "k").await, 2);
    cluster.heal();
    let log = half.view().log().clone();
    let told = async || {
        let end = log.end().await.unwrap().counter;
        let all = log.read_range(Span::new(orphan, end)).await.unwrap();
        let records = all.iter().filter_map(|it| it.payload());
        let tells = |record: &[u8]| match codec::Record::parse(record) {
            Ok(codec::Record::Decision(found)) => found.of == orphan,
            _ => false,
        };
        records.filter(|it| tells(it)).count()
    };
    assert_eq!(told().await, 0);
    half.view().snapshot().await.unwrap();
    assert_eq!(told().await, 1);
}

/// R4: what a transaction had checked stays for as long as somebody may have to decide it in its writer's place. Who comes to it
/// after that starts from where it is decided.
#[tokio::test(start_paused = true)]
async fn what_decides_a_transaction_that_nobody_told_is_kept() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let log = objects.log().clone();
    let checked = Map::open(&objects, "checked").await.unwrap();
    let written = Map::open(&objects, "written").await.unwrap();
    checked.put("k", "1").await.unwrap();
    written.put("k", "1").await.unwrap();
    let stream = StreamId::of_name(DirectoryState::KIND);
    let directory = objects.host::<DirectoryState>(stream);
    objects.sync().await.unwrap();
    directory.snapshot().await.unwrap();
    written.view().snapshot().await.unwrap();
    let slow = Objects::new(&cluster.client(Role::Writer));
    let behind = Map::open(&slow, "written").await.unwrap();
    assert_eq!(value(&behind, "k").await, 1);

    let untold = append_untold(&objects, |txn| {
        txn.get(&checked, b"k").unwrap();
        txn.put(&written, "k", "2");
    });
    let untold = untold.await;
    checked.put("k", "3").await.unwrap();
    checked.view().snapshot().await.unwrap();
    let keeping = Keeping::open(&objects);
    let end = log.end().await.unwrap().counter;
    let kept = keeping.trim(end).await.unwrap();
    assert!(kept.trimmed < untold, "{kept:?}");
    let late = Objects::new(&cluster.client(Role::Reader));
    let again = Map::open(&late, "written").await.unwrap();
    assert_eq!(value(&again, "k").await, 2);

    // Now it is in the snapshots of all; it itself stays because of somebody else.
    for _ in 0..2 {
        checked.put("k", "4").await.unwrap();
        directory.snapshot().await.unwrap();
        written.view().snapshot().await.unwrap();
        checked.view().snapshot().await.unwrap();
    }
    let cursors = Cursors::open(&objects);
    cursors.move_to("c", untold, If::Always).await.unwrap();
    let kept = keeping.trim(end).await.unwrap();
    assert_eq!(kept.trimmed, untold);
    assert_eq!(value(&behind, "k").await, 2);
}

/// What is given up by age goes by itself: objects in the way get snapshots, pins of those who are gone end, cursors stay.
#[tokio::test(start_paused = true)]
async fn what_is_old_goes_by_itself() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let log = objects.log().clone();
    let keeping = Keeping::open(&objects);
    let mut keeper = Keeper::new(&objects);
    let clock = log.host().clock.clone();
    let hour = Duration::from_secs(3_600);
    let map = Map::open(&objects, "m").await.unwrap();
    for number in 0..20 {
        map.put("k", number.to_string()).await.unwrap();
    }
    let before = log.end().await.unwrap().counter;
    assert_eq!(keeper.work().await.unwrap(), None);
    let after = log.end().await.unwrap().counter;
    assert_eq!(before, after, "nobody asked for anything");

    keeping.pin(Position(7), hour / 2).await.unwrap();
    let retention = Retention {
        age_ms: Some(hour.as_millis() as u64),
        bytes: None,
    };
    keeping.retain(retention).await.unwrap();
    let asked = log.end().await.unwrap().counter;
    assert_eq!(keeper.work().await.unwrap(), None);
    clock.sleep(hour / 4).await;
    assert_eq!(keeper.work().await.unwrap(), None);
    clock.sleep(hour).await;
    // Its lease was over long ago, and this process has watched it.
    let kept = keeper.work().await.unwrap().unwrap();
    assert_eq!(kept.held_by, None, "{kept:?}");
    assert!(kept.trimmed >= asked && kept.trimmed > Position(20));

    let cursors = Cursors::open(&objects);
    let end = log.end().await.unwrap().counter;
    cursors.move_to("c", end, If::Always).await.unwrap();
    for number in 20..40 {
        map.put("k", number.to_string()).await.unwrap();
        clock.sleep(hour / 8).await;
        keeper.work().await.unwrap();
    }
    let kept = keeper.work().await.unwrap().unwrap();
    assert_eq!(kept.trimmed, end);
    assert_eq!(kept.held_by.unwrap().what, "cursor c");
    let late = Objects::new(&cluster.client(Role::Writer));
    let again = Map::open(&late, "m").await.unwrap();
    assert_eq!(again.get(b"k").await.unwrap().unwrap().value, "39");
}

/// Of several keepers one writes the snapshot that is due, and none before it is.
#[tokio::test(start_paused = true)]
async fn snapshots_are_written_once_when_they_are_due() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Writer));
    let map = Map::open(&objects, "m").await.unwrap();
    let every = Every {
        updates: 50,
        bytes: 1 << 20,
    };
    Keeping::open(&objects).snapshot_every(every).await.unwrap();
    let mut keepers: Vec<_> = (0..3)
        .map(|_| Keeper::new(&Objects::new(&cluster.client(Role::Control))))
        .collect();
    let mut written = vec![];
    for round in 0..4 {
        for number in 0..30 {
            map.put("k", (round * 30 + number).to_string())
                .await
                .unwrap();
        }
        let works = keepers.iter_mut().map(|keeper| Box::pin(keeper.work()));
        for done in futures_util::future::join_all(works).await {
            done.unwrap();
        }
        let manifests = snapshot::manifests(objects.log(), map.view().named()).await;
        written.push(manifests.unwrap().len());
    }
    assert_eq!(written, [0, 1, 1, 2]);
    // By size, too.
    map.put("large", vec![0; 900 << 10]).await.unwrap();
    map.put("large", vec![0; 900 << 10]).await.unwrap();
    keepers[1].work().await.unwrap();
    let manifests = snapshot::manifests(objects.log(), map.view().named()).await;
    assert_eq!(manifests.unwrap().len(), 3);
}

/// Who reads a large snapshot pins it, and unpins it.
#[tokio::test(start_paused = true)]
async fn a_large_snapshot_is_pinned_while_it_is_read() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Writer));
    let map = Map::open(&objects, "m").await.unwrap();
    for number in 0..18 {
        map.put(number.to_string(), vec![0; 1_000 << 10])
            .await
            .unwrap();
    }
    let snapshot = map.view().snapshot().await.unwrap();
    let keeping = Keeping::open(&objects);
    let mut told = objects.log().follow(snapshot.manifest.next());
    let late = Objects::new(&cluster.client(Role::Writer));
    let again = Map::open(&late, "m").await.unwrap();
    assert_eq!(again.view().read(MapState::len).await.unwrap(), 18);
    let updates = [told.next().await.unwrap(), told.next().await.unwrap()];
    let updates =
        updates.map(
            |entry| match codec::Record::parse(entry.payload().unwrap()).unwrap() {
                codec::Record::Update(update) => codec::decode::<Update>(update).unwrap(),
                other => panic!("{other:?}"),
            },
        );
    let Update::Pin(pin) = updates[0] else {
        panic!("{updates:?}");
    };
    assert_eq!(pin.from, snapshot.needs);
    assert_eq!(updates[1], Update::Unpin(snapshot.manifest.next()));
    let pins = keeping.view().read(|state| state.pins().count());
    assert_eq!(pins.await.unwrap(), 0);
}
