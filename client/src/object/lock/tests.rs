//! Locks, on a cluster in memory; and their state, against what must hold of it.

use futures_util::future::{join, join_all};
use milonga_wire::Role;
use proptest::prelude::*;

use super::*;
use crate::object::transact::tests::process;
use crate::object::{Map, TransactError, Transaction};
use crate::testing::{Cluster, Fault, Gate};

const LEASE: Duration = Duration::from_secs(3);

async fn lock(cluster: &Cluster) -> Lock {
    let objects = Objects::new(&cluster.client(Role::Writer));
    Lock::open(&objects, "l").await.unwrap()
}

/// J1.
#[tokio::test(start_paused = true)]
async fn of_many_one_holds_a_lock_until_it_gives_it_up() {
    let cluster = Cluster::new(1, 2, 3);
    let locks = join_all((0..5).map(|_| lock(&cluster))).await;
    let names = ["a", "b", "c", "d", "e"];
    let asked = locks
        .iter()
        .zip(names)
        .map(|(lock, name)| lock.try_acquire(name, LEASE));
    let mut held: Vec<Held> = join_all(asked)
        .await
        .into_iter()
        .filter_map(Result::unwrap)
        .collect();
    assert_eq!(held.len(), 1);
    let first = held.pop().unwrap();
    assert!(first.is_held());
    let holder = locks[4].holder().await.unwrap().unwrap();
    assert_eq!(holder.fence, first.fence());
    // It asks again: it has it.
    let index = names.iter().position(|name| *name == holder.owner).unwrap();
    let again = locks[index]
        .try_acquire(names[index], LEASE)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(again.fence(), first.fence());

    let next = names[(index + 1) % 5];
    let waiting = locks[(index + 1) % 5].acquire(next, LEASE);
    let releasing = async {
        locks[0].view().log().host().clock.sleep(LEASE * 4).await;
        assert!(first.is_held(), "it is renewed");
        first.release().await.unwrap();
    };
    let (second, ()) = Box::pin(join(waiting, releasing)).await;
    let second = second.unwrap();
    assert!(second.is_held() && second.fence() > again.fence());
}

/// J2, J3: who dies is followed by those who wait, in their order, and no sooner than its lease is over.
#[tokio::test(start_paused = true)]
async fn who_does_not_renew_is_followed_by_the_next_in_line() {
    let cluster = Cluster::new(1, 2, 3);
    let locks = join_all((0..4).map(|_| lock(&cluster))).await;
    let clock = locks[0].view().log().host().clock.clone();
    let dead = locks[0].try_acquire("dead", LEASE).await.unwrap().unwrap();
    let began = clock.now();
    drop(dead);
    let order = std::sync::Mutex::new(vec![]);
    let waiting = ["x", "y", "z"]
        .into_iter()
        .enumerate()
        .map(|(number, name)| {
            let (lock, clock, order) = (&locks[number + 1], &clock, &order);
            async move {
                clock
                    .sleep(Duration::from_millis(100 * number as u64))
                    .await;
                let held = lock.acquire(name, LEASE).await.unwrap();
                let waited = clock.now().since(began);
                order.lock().unwrap().push((name, waited));
                clock.sleep(LEASE).await;
                assert!(held.is_held());
                held.release().await.unwrap();
            }
        });
    Box::pin(join_all(waiting)).await;
    let order = order.into_inner().unwrap();
    let names: Vec<&str> = order.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["x", "y", "z"]);
    assert!(order[0].1 >= LEASE, "{order:?}");
    assert!(order[0].1 < LEASE * 2, "{order:?}");
}

/// A holder that stood still for longer than its lease does no harm: what it writes by its fence does not take place.
#[tokio::test(start_paused = true)]
async fn a_holder_that_was_followed_by_another_writes_nothing_any_more() {
    let cluster = Cluster::new(1, 2, 3);
    let [one, other] = [lock(&cluster).await, lock(&cluster).await];
    let (_, [elsewhere]) = process(&cluster, ["m"]);
    let map = Map::of(one.view().objects().host(elsewhere.view().stream()));
    let write = |fence: Position, value: &'static str| {
        let (one, map) = (one.clone(), map.clone());
        async move {
            let objects = one.view().objects().clone();
            let body = |txn: &mut Transaction<'_>| {
                txn.fence(&one, fence);
                txn.put(&map, "k", value);
                Ok::<_, PlayError>(())
            };
            objects.transact(body).await
        }
    };
    let first = one.try_acquire("one", LEASE).await.unwrap().unwrap();
    let fence = first.fence();
    write(fence, "1").await.unwrap();
    // It stands still: nothing is renewed.
    drop(first);
    let second = other.acquire("other", LEASE).await.unwrap();
    assert!(second.fence() > fence);

    let late = write(fence, "late").await;
    let Err(TransactError::Conflict(abort)) = late else {
        panic!("{late:?}");
    };
    assert_eq!(
        (abort.position, abort.attempts),
        (Some(second.fence()), 1),
        "{abort}"
    );
    // Who hosts the map alone is told.
    assert_eq!(elsewhere.get(b"k").await.unwrap().unwrap().value, "1");
    write(second.fence(), "2").await.unwrap();
    assert_eq!(elsewhere.get(b"k").await.unwrap().unwrap().value, "2");
}

/// Whose turn came and was taken for gone before it noticed does not hold the lock, and goes on waiting.
#[tokio::test(start_paused = true)]
async fn a_turn_that_was_over_before_it_was_noticed_is_not_taken() {
    let cluster = Cluster::new(1, 2, 3);
    let [one, other] = [lock(&cluster).await, lock(&cluster).await];
    drop(one.try_acquire("dead", LEASE).await.unwrap().unwrap());
    // It asks, it ends the turn of the dead one, it renews its own.
    let gate = Gate::new();
    let (mut tokens, held) = (0, gate.clone());
    cluster.rule(move |to, request| {
        tokens += usize::from(to.starts_with('q') && request.verb() == "take tokens");
        (tokens == 3 && request.verb() == "take tokens").then(|| Fault::Hold(held.clone()))
    });
    let expiring = async {
        gate.arrived().await;
        let holder = other.holder().await.unwrap().unwrap();
        assert_eq!(holder.owner, "x");
        let (fence, renewed) = (holder.fence, holder.renewed);
        let expire = Update::Expire { fence, renewed };
        cluster.rule(|_, _| None);
        other.view().append(&expire).await.unwrap();
        gate.open();
        fence
    };
    let (held, over) = Box::pin(join(one.acquire("x", LEASE), expiring)).await;
    let held = held.unwrap();
    assert!(held.fence() > over && held.is_held());
    let holder = other.holder().await.unwrap().unwrap();
    assert_eq!((holder.fence, &holder.owner[..]), (held.fence(), &b"x"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_a_crash_would_end_is_refused() {
    let cluster = Cluster::new(1, 2, 3);
    let lock = lock(&cluster).await;
    let short = lock.try_acquire("a", Duration::from_millis(999)).await;
    assert!(matches!(short, Err(LockError::TooShort { .. })));
}

fn update() -> impl Strategy<Value = Update> {
    let owner = prop::sample::select(vec!["a", "b", "c"]).prop_map(Bytes::from);
    let at = || (0_u64..30).prop_map(Position);
    prop_oneof![
        (owner, any::<bool>()).prop_map(|(owner, waits)| Update::Acquire {
            owner,
            lease_ms: 1,
            waits
        }),
        at().prop_map(|fence| Update::Renew { fence }),
        at().prop_map(|fence| Update::Release { fence }),
        (at(), at()).prop_map(|(fence, renewed)| Update::Expire { fence, renewed }),
    ]
}

proptest! {
    /// J1 to J3, whatever is appended: fences rise, a renewed holder is not expired, and nobody holds and waits at once.
    #[test]
    fn fences_rise_and_turns_are_kept(updates in prop::collection::vec(update(), 0..60)) {
        let mut state = LockState::default();
        let mut fence = None;
        for (position, update) in (0..).map(Position).zip(updates) {
            let before = state.clone();
            state.apply(position, update.clone());
            if let (Update::Expire { renewed, .. }, Some(holder)) = (&update, before.holder())
                && holder.renewed != *renewed
            {
                prop_assert_eq!(state.holder(), Some(holder));
            }
            if let Some(holder) = state.holder() {
                let was = before.holder().map(|holder| holder.fence);
                if was != Some(holder.fence) {
                    prop_assert!(fence.is_none_or(|fence| fence < holder.fence));
                    prop_assert_eq!(holder.fence, position);
                    fence = Some(holder.fence);
                    if let Some(next) = before.waiting().next() {
                        prop_assert_eq!(&next.owner, &holder.owner);
                    }
                }
                prop_assert!(state.waiting().all(|waiting| waiting.owner != holder.owner));
            } else {
                prop_assert_eq!(state.waiting().count(), 0);
            }
            let mut image = ImageWriter::default();
            state.snapshot(&mut image);
            let mut image = ImageReader::new(image.finish().0);
            prop_assert_eq!(LockState::restore(&mut image).unwrap(), state.clone());
        }
    }
}
