//! Transactions, on a cluster in memory.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use milonga_wire::{Role, StreamId};

use super::*;
use crate::object::map::MapState;
use crate::object::{Counter, Keys, Map, OperationError, View};
use crate::testing::Cluster;

/// A process with maps of these names open.
pub(in crate::object) fn process<const N: usize>(
    cluster: &Cluster,
    names: [&str; N],
) -> (Objects, [Map; N]) {
    let objects = Objects::new(&cluster.client(Role::Writer));
    let maps = names.map(|name| Map::of(objects.host(StreamId::of_name(name))));
    (objects, maps)
}

pub(in crate::object) fn number(value: Option<&Bytes>) -> i64 {
    value.map_or(0, |value| String::from_utf8_lossy(value).parse().unwrap())
}

pub(in crate::object) fn text(number: i64) -> Bytes {
    Bytes::from(number.to_string())
}

pub(in crate::object) async fn value(map: &Map, key: &str) -> i64 {
    let found = map.get(key.as_bytes()).await.unwrap();
    number(found.map(|found| found.value).as_ref())
}

/// Moves one from a key of one map to the same key of another.
pub(in crate::object) async fn move_one(
    objects: &Objects,
    [from, to]: [&Map; 2],
    key: &'static str,
) {
    let moved = objects.transact(|txn| {
        let (here, there) = (txn.get(from, key.as_bytes())?, txn.get(to, key.as_bytes())?);
        txn.put(from, key, text(number(here.as_ref()) - 1));
        txn.put(to, key, text(number(there.as_ref()) + 1));
        Ok::<_, PlayError>(())
    });
    moved.await.unwrap();
}

/// Appends a transaction whose writer dies before it tells what became of it.
pub(in crate::object) async fn append_untold(
    objects: &Objects,
    body: impl FnOnce(&mut Transaction<'_>),
) -> Position {
    objects.sync().await.unwrap();
    let sealed = {
        let world = objects.world();
        let mut txn = Transaction::new(&world, Isolation::Serializable);
        body(&mut txn);
        let (checks, writes) = txn.finish().unwrap();
        writes.sealed(checks, None).unwrap()
    };
    let log = objects.log();
    log.append(sealed.record, &sealed.streams).await.unwrap()
}

/// X3, O8; Tango (SOSP '13), "Transactions": whoever hosts what, and however terms change, nothing is made or lost.
#[tokio::test(start_paused = true)]
async fn what_moves_between_maps_is_neither_made_nor_lost_and_all_replicas_agree() {
    let cluster = Cluster::new(2, 2, 3);
    let names = ["a", "b", "c"];
    let writers: Vec<_> = (0..4).map(|_| process(&cluster, names)).collect();
    let halves: Vec<_> = names.iter().map(|name| process(&cluster, [name])).collect();
    let moving = writers
        .iter()
        .enumerate()
        .map(|(number, (objects, maps))| async move {
            for round in 0..12 {
                let (from, to) = ((number + round) % 3, (number + round * 2 + 1) % 3);
                if from != to {
                    let key = ["x", "y"][round % 2];
                    move_one(objects, [&maps[from], &maps[to]], key).await;
                }
            }
        });
    let changing = async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
            cluster.next_term().await;
        }
    };
    let reading = halves.iter().map(|(_, [map])| async move {
        for _ in 0..10 {
            map.get(b"x").await.unwrap();
        }
    });
    join(join(join_all(moving), changing), join_all(reading)).await;

    let whole = &writers[0].1;
    for key in ["x", "y"] {
        let mut sum = 0;
        for map in whole {
            sum += value(map, key).await;
        }
        assert_eq!(sum, 0, "{key}");
    }
    for (map, (_, [half])) in whole.iter().zip(&halves) {
        half.view().sync().await.unwrap();
        let expected = map.view().read(Clone::clone).await.unwrap();
        assert!(!expected.is_empty());
        assert_eq!(half.view().read_stale(Clone::clone), expected);
        for (_, others) in &writers[1..] {
            let other = others
                .iter()
                .find(|other| other.view().stream() == map.view().stream());
            assert_eq!(
                other.unwrap().view().read(Clone::clone).await.unwrap(),
                expected
            );
        }
    }
}

/// X1, X2.
#[tokio::test(start_paused = true)]
async fn who_only_reads_appends_nothing_and_who_only_writes_plays_nothing() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [one, other]) = process(&cluster, ["a", "b"]);
    let mut writes = Writes::new();
    writes.put(&one, "k", "1");
    writes.put(&other, "k", "2");
    let position = objects.append(writes).await.unwrap();
    assert_eq!(cluster.seen("q", "end") + cluster.seen("u", "read"), 0);

    let read = objects.transact(|txn| {
        Ok::<_, PlayError>((txn.get(&one, b"k")?, txn.get_versioned(&other, b"k")?))
    });
    cluster.forget();
    let read = read.await.unwrap();
    assert_eq!(cluster.seen("u", "write"), 0);
    assert_eq!((read.position, read.attempts), (None, 1));
    let (here, there) = read.value;
    assert_eq!(here, Some(Bytes::from("1")));
    assert_eq!(there.unwrap().version, position);
}

/// Two that each read what the other writes: serializable, one of them takes place; the weaker modes say that both may.
#[tokio::test(start_paused = true)]
async fn write_skew_is_prevented_where_it_is_promised() {
    for (isolation, expected) in [
        (Isolation::Serializable, 1),
        (Isolation::Snapshot, 2),
        (Isolation::WriteWrite, 2),
    ] {
        let cluster = Cluster::new(1, 2, 3);
        let both = [0, 1].map(|_| process(&cluster, ["a"]));
        for (_, [map]) in &both {
            map.put("on duty 0", "1").await.unwrap();
            map.put("on duty 1", "1").await.unwrap();
        }
        for (objects, _) in &both {
            objects.sync().await.unwrap();
        }
        let leaves = both.iter().enumerate().map(|(own, (objects, [map]))| {
            let transaction = objects.transaction().isolation(isolation);
            let body = move |txn: &mut Transaction<'_>| {
                let duty = [0, 1].map(|who| txn.get(map, format!("on duty {who}").as_bytes()));
                let duty: Result<Vec<_>, _> = duty.into_iter().collect();
                let on_duty: i64 = duty?.iter().map(|one| number(one.as_ref())).sum();
                if on_duty > 1 {
                    txn.put(map, format!("on duty {own}"), "0");
                }
                Ok::<_, PlayError>(on_duty > 1)
            };
            async move { transaction.run(body).await.unwrap().value }
        });
        let left = join_all(leaves)
            .await
            .into_iter()
            .filter(|left| *left)
            .count();
        assert_eq!(left, expected, "{isolation:?}");
    }
}

/// No mode loses an update of what was read and written.
#[tokio::test(start_paused = true)]
async fn no_update_is_lost_in_any_mode() {
    for isolation in [
        Isolation::Serializable,
        Isolation::Snapshot,
        Isolation::WriteWrite,
    ] {
        let cluster = Cluster::new(1, 2, 3);
        let all: Vec<_> = (0..5).map(|_| process(&cluster, ["a"])).collect();
        let counting = all.iter().map(|(objects, [map])| async move {
            for _ in 0..6 {
                let transaction = objects.transaction().isolation(isolation);
                let body = |txn: &mut Transaction<'_>| {
                    let now = txn.get(map, b"n")?;
                    txn.put(map, "n", text(number(now.as_ref()) + 1));
                    Ok::<_, PlayError>(())
                };
                transaction.run(body).await.unwrap();
            }
        });
        join_all(counting).await;
        assert_eq!(value(&all[0].1[0], "n").await, 30, "{isolation:?}");
    }
}

/// Found by `sim --scenario transactions` at seed 83: what a scan or a read of all brought was read, too.
#[tokio::test(start_paused = true)]
async fn what_was_scanned_and_written_is_protected_in_every_mode() {
    for isolation in [
        Isolation::Serializable,
        Isolation::Snapshot,
        Isolation::WriteWrite,
    ] {
        let cluster = Cluster::new(1, 2, 3);
        let (objects, [map]) = process(&cluster, ["a"]);
        let world = objects.join(None).await.map(|()| objects.world());
        let mut txn = Transaction::new(world.as_ref().unwrap(), isolation);
        txn.scan(&map, &Keys::all(), 10).unwrap();
        txn.put(&map, "k", "1");
        let (checks, _) = txn.finish().unwrap();
        assert_eq!(checks.len(), 1, "{isolation:?}");
    }
}

/// What a scan did not find is a part of what it read.
#[tokio::test(start_paused = true)]
async fn a_key_that_came_in_between_is_a_conflict_for_who_scanned() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    let (_, [other]) = process(&cluster, ["a"]);
    for key in ["k1", "k2", "k3"] {
        map.put(key, "v").await.unwrap();
    }
    let (mut seen, intruder) = (vec![], &other);
    let mut intrusions = ["k15", "k4", "z"].into_iter();
    for _ in 0..3 {
        let intrusion = intrusions.next().unwrap();
        let mut pages = 0;
        // The body cannot wait, so the intrusion comes between the body and the append: by the clock of the sequencer.
        let gate = crate::testing::Gate::new();
        let hold = crate::testing::once(
            "q",
            "take tokens",
            crate::testing::Fault::Hold(gate.clone()),
        );
        cluster.rule(hold);
        let running = objects.transact(|txn| {
            let page = txn.scan(&map, &Keys::prefix("k"), 2)?;
            pages = page.entries.len();
            txn.put(&map, "out", "v");
            Ok::<_, PlayError>(())
        });
        let intruding = async {
            gate.arrived().await;
            intruder.put(intrusion, "v").await.unwrap();
            gate.open();
        };
        let (done, ()) = join(running, intruding).await;
        assert_eq!(pages, 2);
        seen.push(done.unwrap().attempts);
        cluster.heal();
    }
    // k15 lies among the two that were read; k4 lies behind them, and z is none of those keys.
    assert_eq!(seen, [2, 1, 1]);
}

/// The record of a transaction whose writer died before it told anybody.
async fn orphan(
    objects: &Objects,
    checked: &Map,
    version: Option<Position>,
    written: &Map,
) -> Position {
    let mut writes = Writes::new();
    writes.put(written, "by", "the dead");
    let object = writes.number_of(checked.view().named());
    let check = super::super::codec::Check {
        object,
        part: Part::Key(Bytes::from("k")),
        seen: Seen::one(version),
    };
    let sealed = writes.sealed(vec![check], None).unwrap();
    assert!(sealed.needs_decision);
    objects
        .log()
        .append(sealed.record, &sealed.streams)
        .await
        .unwrap()
}

/// X4; Tango (SOSP '13): whoever hosts what was written but not what was read waits for the writer, and not for ever.
#[tokio::test(start_paused = true)]
async fn a_transaction_whose_writer_died_is_decided_by_those_who_need_to_know() {
    for takes_place in [true, false] {
        let cluster = Cluster::new(2, 2, 3);
        let (objects, [read, written]) = process(&cluster, ["read", "written"]);
        let version = read.put("k", "1").await.unwrap();
        if !takes_place {
            read.put("k", "2").await.unwrap();
        }
        let position = orphan(&objects, &read, Some(version), &written).await;
        written.put("later", "v").await.unwrap();

        let (_, [half]) = process(&cluster, ["written"]);
        let clock = cluster.client(Role::Reader).host().clock.clone();
        let began = clock.now();
        let found = half.get(b"by").await.unwrap();
        let took = clock.now().since(began);
        assert_eq!(
            found.map(|found| found.version),
            takes_place.then_some(position)
        );
        assert!(
            took >= Duration::from_millis(500) && took < Duration::from_secs(2),
            "{took:?}"
        );
        // Who hosts both never asks anybody.
        assert_eq!(written.get(b"by").await.unwrap().is_some(), takes_place);
        // It was told: the next one needs not wait, and the log is not filled with decisions.
        let (_, [late]) = process(&cluster, ["written"]);
        let began = clock.now();
        assert_eq!(late.get(b"by").await.unwrap().is_some(), takes_place);
        assert!(clock.now().since(began) < Duration::from_millis(200));
        assert_eq!(late.get(b"later").await.unwrap().unwrap().value, "v");
        assert_eq!(
            late.view().log().end().await.unwrap().position,
            position.plus(3)
        );
    }
}

/// O8: while an update of one object is stuck, its other objects show nothing of it either.
#[tokio::test(start_paused = true)]
async fn nobody_sees_half_of_a_transaction() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [one, other]) = process(&cluster, ["a", "b"]);
    let watch = || {
        let both = objects
            .transact(|txn| Ok::<_, PlayError>([txn.get(&one, b"k")?, txn.get(&other, b"k")?]));
        async { both.await.unwrap().value }
    };
    let (writer, [to_one, to_other]) = process(&cluster, ["a", "b"]);
    let writing = async {
        for round in 0..30 {
            let mut writes = Writes::new();
            writes.put(&to_one, "k", text(round));
            writes.put(&to_other, "k", text(round));
            writer.append(writes).await.unwrap();
        }
    };
    let watching = async {
        for _ in 0..60 {
            let [here, there] = watch().await;
            assert_eq!(here, there);
        }
    };
    join(writing, watching).await;
}

/// An abort says which key, which position and whose write it was; also where the write left nothing behind.
#[tokio::test(start_paused = true)]
async fn an_abort_explains_itself() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    let (intruder, [other]) = process(&cluster, ["a"]);
    for removes in [false, true] {
        map.put("k", "v").await.unwrap();
        objects.sync().await.unwrap();
        let gate = crate::testing::Gate::new();
        cluster.rule(crate::testing::once(
            "q",
            "take tokens",
            crate::testing::Fault::Hold(gate.clone()),
        ));
        let once = objects.transaction().attempts(1);
        let running = once.run(|txn| {
            txn.get(&map, b"k")?;
            txn.put(&map, "out", "v");
            Ok::<_, PlayError>(())
        });
        let intruding = async {
            gate.arrived().await;
            let position = if removes {
                other.delete("k").await.unwrap()
            } else {
                other.put("k", "w").await.unwrap()
            };
            other.put("other", "v").await.unwrap();
            gate.open();
            position
        };
        let (done, position) = join(running, intruding).await;
        let Err(TransactError::Conflict(abort)) = done else {
            panic!("{done:?}");
        };
        assert_eq!(abort.part, Part::Key(Bytes::from("k")));
        assert_eq!(abort.position, Some(position), "{abort}");
        assert_eq!(abort.by.unwrap().session, intruder.log().session());
        assert!(abort.to_string().contains("`k` of the map"), "{abort}");
        cluster.heal();
    }
    assert_eq!(map.get(b"out").await.unwrap(), None);
}

/// A body that gives up leaves nothing behind, and what it wrote itself is what it reads.
#[tokio::test(start_paused = true)]
async fn a_body_reads_its_own_writes_and_may_give_up() {
    #[derive(Debug, thiserror::Error)]
    #[error("gives up")]
    struct GivesUp;
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    let given_up = objects.transact(|txn| {
        txn.put(&map, "k", "v");
        assert_eq!(txn.get(&map, b"k").unwrap(), Some(Bytes::from("v")));
        txn.delete(&map, "k");
        assert_eq!(txn.get(&map, b"k").unwrap(), None);
        Err::<(), _>(GivesUp)
    });
    assert!(matches!(given_up.await, Err(TransactError::Body(GivesUp))));
    assert_eq!(objects.log().end().await.unwrap().position, Position::FIRST);
}

/// Exactly once, across processes: for updates and for transactions, whether one object is written or several.
#[tokio::test(start_paused = true)]
async fn what_has_an_idempotency_key_takes_place_once() {
    let cluster = Cluster::new(2, 2, 3);
    let key = || Once {
        key: Bytes::from("payment 7"),
        lives: 100,
    };
    let mut firsts = vec![];
    for _ in 0..3 {
        let (objects, [one, other]) = process(&cluster, ["a", "b"]);
        let add = |txn: &mut Transaction<'_>| {
            for map in [&one, &other] {
                let now = txn.get(map, b"n")?;
                txn.put(map, "n", text(number(now.as_ref()) + 1));
            }
            Ok::<_, PlayError>(())
        };
        let done = objects.transaction().once(key()).run(add).await.unwrap();
        firsts.push(done.repeats.or(done.position));
        let counter: View<crate::object::counter::CounterState> =
            objects.host(StreamId::of_name("c"));
        let add = crate::object::counter::Update::Add(5);
        let (_, applied) = counter.update_once(key(), &add).await.unwrap();
        let (crate::object::Applied::First(sum)
        | crate::object::Applied::Repeated {
            outcome: Some(sum), ..
        }) = applied
        else {
            panic!("{applied:?}");
        };
        assert_eq!(sum, 5);
    }
    assert!(
        firsts.windows(2).all(|pair| pair[0] == pair[1]),
        "{firsts:?}"
    );
    // Who plays one of the two alone was told.
    let (_, [half]) = process(&cluster, ["b"]);
    assert_eq!(value(&half, "n").await, 1);
    // The log has grown by as much as was asked for: it may take place again.
    let (objects, _) = process(&cluster, ["a"]);
    cluster.burn(objects.log(), 100, &[]).await;
    let counter: View<crate::object::counter::CounterState> = objects.host(StreamId::of_name("c"));
    let (_, applied) = counter
        .update_once(key(), &crate::object::counter::Update::Add(5))
        .await
        .unwrap();
    assert_eq!(applied, crate::object::Applied::First(10));
}

/// O3: an object that meets a newer program's record stops; others of the same process, and transactions on them, go on.
#[tokio::test(start_paused = true)]
async fn an_object_that_stops_stops_no_other() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [stopped, other]) = process(&cluster, ["a", "b"]);
    stopped.put("k", "v").await.unwrap();
    let newer = Bytes::from_static(&[2, 0, 0, 0]);
    objects
        .log()
        .append(newer, &[stopped.view().stream()])
        .await
        .unwrap();
    other.put("k", "v").await.unwrap();

    let read = stopped.get(b"k").await;
    assert!(
        matches!(
            read,
            Err(PlayError::Operation {
                why: OperationError::Newer { found: 2 },
                ..
            })
        ),
        "{read:?}"
    );
    assert_eq!(other.get(b"k").await.unwrap().unwrap().value, "v");
    let both = objects.transact(|txn| {
        txn.put(&other, "k", "w");
        txn.get(&stopped, b"k")
    });
    assert!(matches!(
        both.await,
        Err(TransactError::Body(PlayError::Operation { .. }))
    ));
    objects
        .transact(|txn| {
            txn.put(&other, "k", "w");
            Ok::<_, PlayError>(())
        })
        .await
        .unwrap();
    assert_eq!(other.get(b"k").await.unwrap().unwrap().value, "w");
}

/// A user's object whose code panics is stopped where it does; the process and other objects go on.
#[tokio::test(start_paused = true)]
async fn an_object_whose_code_panics_is_stopped_there() {
    #[derive(Default)]
    struct Fragile(u8);
    impl crate::object::Object for Fragile {
        const KIND: &'static str = "fragile";
        type Update = u8;
        type Outcome = ();
        fn apply(&mut self, _: Position, update: u8) {
            assert!(update < 3, "it is more than three");
            self.0 += update;
        }
        fn snapshot(&self, to: &mut crate::object::ImageWriter) {
            to.write(&self.0);
        }
        fn restore(
            from: &mut crate::object::ImageReader,
        ) -> Result<Self, crate::object::ImageError> {
            Ok(Self(from.read()?.unwrap_or_default()))
        }
    }
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [other]) = process(&cluster, ["a"]);
    let fragile: View<Fragile> = objects.host(StreamId::of_name("f"));
    fragile.append(&2).await.unwrap();
    let position = fragile.append(&3).await.unwrap();
    fragile.append(&1).await.unwrap();
    let stopped = fragile.read(|state| state.0).await;
    let Err(PlayError::Operation {
        position: at,
        why: OperationError::Panicked { why },
    }) = stopped
    else {
        panic!("{stopped:?}");
    };
    assert_eq!((at, why.as_str()), (position, "it is more than three"));
    other.put("k", "v").await.unwrap();
    assert_eq!(other.get(b"k").await.unwrap().unwrap().value, "v");
}

#[tokio::test(start_paused = true)]
async fn transactions_over_a_limit_are_refused_and_large_ones_are_not() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    let keys = |count: usize, value: usize| {
        let mut writes = Writes::new();
        for key in 0..count {
            writes.put(&map, format!("key {key}"), vec![0; value]);
        }
        writes
    };
    objects.append(keys(10_000, 60)).await.unwrap();
    assert_eq!(map.view().read(MapState::len).await.unwrap(), 10_000);
    let read_all = objects.transact(|txn| {
        for key in 0..10_000 {
            let key = format!("key {key}");
            txn.get(&map, key.as_bytes())?;
            txn.put(&map, key, "v");
        }
        Ok::<_, PlayError>(())
    });
    assert_eq!(read_all.await.unwrap().attempts, 1);

    let large = objects.append(keys(2_000, 1_000)).await;
    assert!(
        matches!(
            large,
            Err(UpdateError::TooLarge {
                what: "a transaction",
                ..
            })
        ),
        "{large:?}"
    );
    let mut many = Writes::new();
    for number in 0..65 {
        let stream = StreamId::of_name(&format!("many {number}"));
        many.put(&Map::of(objects.host(stream)), "k", "v");
    }
    let many = objects.append(many).await;
    assert!(
        matches!(
            many,
            Err(UpdateError::TooMany {
                asked: 65,
                limit: 64
            })
        ),
        "{many:?}"
    );
    let mut long = Writes::new();
    long.put(&map, vec![0; 70_000], "v");
    let long = objects.append(long).await;
    assert!(
        matches!(long, Err(UpdateError::TooLarge { what: "a key", .. })),
        "{long:?}"
    );
}

/// Names stand for one kind of object; who opens the same name gets the same object.
#[tokio::test(start_paused = true)]
async fn objects_are_opened_by_name_and_only_as_what_they_are() {
    let cluster = Cluster::new(1, 2, 3);
    let objects = [0, 1].map(|_| Objects::new(&cluster.client(Role::Writer)));
    let maps = join_all(objects.iter().map(|objects| Map::open(objects, "users"))).await;
    let [one, other] = [0, 1].map(|number| maps[number].as_ref().unwrap());
    one.put("k", "v").await.unwrap();
    assert_eq!(other.get(b"k").await.unwrap().unwrap().value, "v");
    let counter = Counter::open(&objects[0], "users").await.err();
    let text = counter.unwrap().to_string();
    assert_eq!(text, "`users` is a map, not a counter; use another name");
    let all = objects[1].all().await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].0.as_str(), all[0].1.kind.as_str()),
        ("users", "map")
    );

    // A name that was given up and is given again stands for a new object.
    objects[0].remove("users").await.unwrap();
    let anew = Counter::open(&Objects::new(&cluster.client(Role::Writer)), "users")
        .await
        .unwrap();
    assert_eq!(anew.add_and_get(2).await.unwrap(), 2);
    let long = Map::open(&objects[0], &"x".repeat(300))
        .await
        .err()
        .unwrap();
    assert_eq!(long.to_string(), "a name of 300 bytes; the limit is 255");
}
