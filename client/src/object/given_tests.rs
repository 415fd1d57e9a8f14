//! The small objects, on a cluster in memory.

use bytes::Bytes;
use futures_util::future::join_all;
use milonga_wire::{Position, Role};

use crate::object::queue::QueueState;
use crate::object::{
    Counter, Object, Objects, Part, PlayError, Queue, Register, Seen, Set, Transaction, counter,
    queue, register, set,
};
use crate::testing::Cluster;

fn objects(cluster: &Cluster) -> Objects {
    Objects::new(&cluster.client(Role::Writer))
}

#[tokio::test(start_paused = true)]
async fn a_counter_counts_what_all_add() {
    let cluster = Cluster::new(1, 2, 3);
    let mut counters = vec![];
    for _ in 0..4 {
        counters.push(Counter::open(&objects(&cluster), "c").await.unwrap());
    }
    join_all(counters.iter().map(|counter| counter.add(5))).await;
    let sums = join_all(counters.iter().map(|counter| counter.add_and_get(-1))).await;
    let mut sums: Vec<i64> = sums.into_iter().map(Result::unwrap).collect();
    sums.sort_unstable();
    assert_eq!(sums, [16, 17, 18, 19]);
    counters[0].set(i64::MAX).await.unwrap();
    assert_eq!(counters[1].add_and_get(1).await.unwrap(), i64::MAX);
    assert_eq!(counters[2].get().await.unwrap(), i64::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_register_is_set_by_the_first_of_those_who_saw_the_same() {
    let cluster = Cluster::new(1, 2, 3);
    let register = Register::open(&objects(&cluster), "r").await.unwrap();
    assert_eq!(register.get().await.unwrap(), None);
    let first = register.set_if(None, "a").await.unwrap().unwrap();
    let late = register
        .set_if(None, "b")
        .await
        .unwrap()
        .unwrap_err()
        .unwrap();
    assert_eq!((late.version, &late.value[..]), (first, &b"a"[..]));
    let second = register.set_if(Some(first), "b").await.unwrap().unwrap();
    let third = register.set("c").await.unwrap();
    assert!(second < third);
    assert_eq!(register.get().await.unwrap().unwrap().version, third);
}

#[tokio::test(start_paused = true)]
async fn of_many_that_insert_one_element_one_is_told_that_it_is_new() {
    let cluster = Cluster::new(1, 2, 3);
    let mut sets = vec![];
    for _ in 0..4 {
        sets.push(Set::open(&objects(&cluster), "s").await.unwrap());
    }
    let inserted = join_all(sets.iter().map(|set| set.insert("x"))).await;
    assert_eq!(
        inserted
            .into_iter()
            .filter(|new| *new.as_ref().unwrap())
            .count(),
        1
    );
    sets[0].add("y").await.unwrap();
    assert!(sets[1].take("x").await.unwrap() && !sets[2].take("x").await.unwrap());
    sets[3].remove("nothing").await.unwrap();
    assert!(!sets[0].contains(b"x").await.unwrap() && sets[1].contains(b"y").await.unwrap());
}

/// Each element is taken by one; who takes in a transaction takes only if it also does what it wants.
#[tokio::test(start_paused = true)]
async fn every_element_of_a_queue_is_taken_once() {
    let cluster = Cluster::new(2, 2, 3);
    let mut workers = vec![];
    for _ in 0..4 {
        let objects = objects(&cluster);
        let queue = Queue::open(&objects, "q").await.unwrap();
        workers.push((queue, Set::open(&objects, "done").await.unwrap()));
    }
    for number in 0..20 {
        workers[0].0.push(number.to_string()).await.unwrap();
    }
    let working = workers
        .iter()
        .enumerate()
        .map(|(worker, (queue, done))| async move {
            let mut taken = vec![];
            loop {
                if worker % 2 == 0 {
                    let Some(element) = queue.pop().await.unwrap() else {
                        return taken;
                    };
                    taken.push(element.value);
                    continue;
                }
                let take = |txn: &mut Transaction<'_>| {
                    let front = txn.read(queue.view(), |queue| queue.front().cloned())?;
                    if let Some(front) = &front {
                        txn.update(queue.view(), &queue::Update::PopIf(front.version));
                        txn.update(
                            done.view(),
                            &crate::object::set::Update::Add(front.value.clone()),
                        );
                    }
                    Ok::<_, PlayError>(front)
                };
                match queue.view().objects().transact(take).await.unwrap().value {
                    Some(element) => taken.push(element.value),
                    None => return taken,
                }
            }
        });
    let taken = join_all(working).await;
    let done = workers[0]
        .1
        .view()
        .read(crate::object::set::SetState::len)
        .await
        .unwrap();
    assert_eq!(done, taken[1].len() + taken[3].len());
    let mut all: Vec<Bytes> = taken.into_iter().flatten().collect();
    all.sort_unstable_by_key(|value| String::from_utf8_lossy(value).parse::<u32>().unwrap());
    let expected: Vec<Bytes> = (0..20)
        .map(|number: u32| Bytes::from(number.to_string()))
        .collect();
    assert_eq!(all, expected);
    assert!(workers[3].0.is_empty().await.unwrap());
}

/// What is restored is what was written, and plays on alike; of all of them.
#[test]
fn small_objects_come_back_from_their_images() {
    fn check<O: Object + PartialEq + std::fmt::Debug>(updates: Vec<O::Update>) {
        let mut state = O::default();
        for (position, update) in (0..).map(Position).zip(updates) {
            state.apply(position, update);
            let mut image = crate::object::ImageWriter::default();
            state.snapshot(&mut image);
            let mut image = crate::object::ImageReader::new(image.finish().0);
            assert_eq!(O::restore(&mut image).unwrap(), state);
        }
    }
    let bytes = Bytes::from_static;
    check::<QueueState>(vec![
        queue::Update::Push(bytes(b"a")),
        queue::Update::Push(bytes(b"b")),
        queue::Update::Pop,
    ]);
    check::<counter::CounterState>(vec![counter::Update::Add(7)]);
    check::<register::RegisterState>(vec![register::Update::Set(bytes(b"a"))]);
    check::<set::SetState>(vec![
        set::Update::Add(bytes(b"a")),
        set::Update::Add(bytes(b"b")),
        set::Update::Remove(bytes(b"a")),
    ]);
}

/// A set that goes back to an earlier state tells its elements apart from those of then.
#[test]
fn positions_of_elements_never_come_back() {
    use crate::object::set::{SetState, Update};
    let element = Bytes::from_static(b"a");
    let mut set = SetState::default();
    set.apply(Position(1), Update::Add(element.clone()));
    let before = set.clone();
    set.apply(Position(2), Update::Remove(element.clone()));
    set.reset(Position(3), before);
    assert_eq!(
        set.seen(&Part::Key(element)),
        Some(Seen::one(Some(Position(3))))
    );
}
