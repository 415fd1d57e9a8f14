//! Going back, on a cluster in memory.

use milonga_wire::{Position, Role, StreamId};

use super::*;
use crate::Options;
use crate::object::codec::{BACK_WITHIN, Record, decode};
use crate::object::directory::DirectoryState;
use crate::object::transact::tests::{move_one, value};
use crate::object::{Counter, Map, Object, keeping};
use crate::testing::{Cluster, Fault};

/// Several objects go back at once, to any position, and forth again; whoever joins later has the same.
#[tokio::test(start_paused = true)]
async fn objects_go_back_to_any_position_and_forth_again() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Writer));
    let [one, other] = [
        Map::open(&objects, "one").await.unwrap(),
        Map::open(&objects, "other").await.unwrap(),
    ];
    let count = Counter::open(&objects, "count").await.unwrap();
    move_one(&objects, [&one, &other], "x").await;
    let mark = count.add(5).await.unwrap();
    move_one(&objects, [&one, &other], "x").await;
    let last = count.add(5).await.unwrap();
    let names = ["one", "other", "count"];

    let end = objects.log().end().await.unwrap().counter;
    let position = objects.roll_back(&names, mark).await.unwrap();
    // All that it wrote lies behind a pin, and that is gone.
    let pin = objects.log().read(end).await.unwrap();
    let pin = Record::parse(pin.payload().unwrap());
    let Ok(Record::Update(pin)) = pin else {
        panic!("{pin:?}");
    };
    let pin: keeping::Update = decode(pin).unwrap();
    assert!(matches!(pin, keeping::Update::Pin(pin) if pin.from == end));
    let pins = Keeping::open(&objects);
    let pins = pins.view().read(|state| state.pins().count());
    assert_eq!(pins.await.unwrap(), 0);
    let late = Objects::new(&cluster.client(Role::Writer));
    for objects in [&objects, &late] {
        let [one, other] = [
            Map::open(objects, "one").await.unwrap(),
            Map::open(objects, "other").await.unwrap(),
        ];
        let count = Counter::open(objects, "count").await.unwrap();
        assert_eq!((value(&one, "x").await, value(&other, "x").await), (-1, 1));
        assert_eq!(count.get().await.unwrap(), 5);
        let version = one.get(b"x").await.unwrap().unwrap().version;
        assert_eq!(version, position);
    }
    objects.roll_back(&names, last).await.unwrap();
    assert_eq!((value(&one, "x").await, value(&other, "x").await), (-2, 2));
    assert_eq!(count.get().await.unwrap(), 10);
    // To before they were.
    objects.roll_back(&["one"], Position::FIRST).await.unwrap();
    assert_eq!((value(&one, "x").await, value(&other, "x").await), (0, 2));

    let beyond = objects.roll_back(&["one"], Position(9_999)).await;
    assert!(matches!(
        beyond,
        Err(RollBackError::At(AtError::BeyondEnd { .. }))
    ));
    let unknown = objects.roll_back(&["two"], mark).await;
    assert!(matches!(unknown, Err(RollBackError::NotFound(name)) if name == "two"));
}

/// R3: what was gone back to stays until a later snapshot needs it no more, and then whoever was left behind starts from that.
#[tokio::test(start_paused = true)]
async fn what_was_gone_back_to_is_kept_while_somebody_may_need_it() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Control));
    let log = objects.log().clone();
    let map = Map::open(&objects, "m").await.unwrap();
    let before = map.put("k", "1").await.unwrap();
    map.put("k", "2").await.unwrap();
    let slow = Objects::new(&cluster.client(Role::Writer));
    let behind = Map::open(&slow, "m").await.unwrap();
    assert_eq!(value(&behind, "k").await, 2);

    let back = objects.roll_back(&["m"], before).await.unwrap();
    let stream = StreamId::of_name(DirectoryState::KIND);
    let directory = objects.host::<DirectoryState>(stream);
    let keeping = Keeping::open(&objects);
    map.view().sync().await.unwrap();
    directory.snapshot().await.unwrap();
    keeping.view().snapshot().await.unwrap();
    map.view().snapshot().await.unwrap();
    let need = async || {
        let needs = keeping.needs().await.unwrap();
        needs.into_iter().find(|need| need.what == "object m")
    };
    assert!(need().await.unwrap().from < back, "{:?}", need().await);

    // Much later: nobody goes back to it any more.
    let sequencer_goes_on = BACK_WITHIN / 1_000 + 1;
    for _ in 0..sequencer_goes_on {
        cluster.burn(&log, 1_000, &[]).await;
    }
    map.put("other", "1").await.unwrap();
    directory.snapshot().await.unwrap();
    keeping.view().snapshot().await.unwrap();
    map.view().snapshot().await.unwrap();
    assert!(need().await.unwrap().from > back);
}

/// A record that goes back to what was written too long ago takes place nowhere, and its writer is told.
#[tokio::test(start_paused = true)]
async fn going_back_too_late_does_nothing() {
    let cluster = Cluster::new(2, 2, 3);
    let objects = Objects::new(&cluster.client(Role::Writer));
    let map = Map::open(&objects, "m").await.unwrap();
    map.put("k", "1").await.unwrap();
    let snapshot = map.view().snapshot().await.unwrap();
    map.put("k", "2").await.unwrap();
    for _ in 0..=BACK_WITHIN / 1_000 {
        cluster.burn(objects.log(), 1_000, &[]).await;
    }
    let mut writes = Writes::new();
    writes.reset(map.view().named(), snapshot.manifest);
    let Ok((_, verdict)) = objects.transaction().commit(writes).await else {
        panic!("it is decided");
    };
    assert_eq!(verdict, Verdict::Conflict(Conflict::Late));
    assert_eq!(value(&map, "k").await, 2);
}

/// Nor does one whose pin may be over: others may have trimmed what it goes back to.
#[tokio::test(start_paused = true)]
async fn who_was_away_for_too_long_goes_back_to_nothing() {
    let cluster = Cluster::new(2, 2, 3);
    let options = Options {
        deadline: PINNED,
        ..Options::default()
    };
    let objects = Objects::new(&cluster.client_with(Role::Writer, options));
    let map = Map::open(&objects, "m").await.unwrap();
    let before = map.put("k", "1").await.unwrap();
    map.put("k", "2").await.unwrap();
    let clock = objects.log().host().clock.clone();
    let began = clock.now();
    cluster.rule(move |_, request| {
        let is_away = clock.now().since(began) <= PINNED / 2;
        (is_away && request.verb() == "write").then_some(Fault::LoseRequest)
    });
    let back = objects.roll_back(&["m"], before).await;
    assert!(matches!(back, Err(RollBackError::Late)), "{back:?}");
    assert_eq!(value(&map, "k").await, 2);
}
