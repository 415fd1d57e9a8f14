//! Leases of maps, on a cluster in memory; and their state, against the plainest that could be meant.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::Role;
use proptest::prelude::*;

use super::*;
use crate::object::map::{Keys, MapState};
use crate::object::transact::tests::process;
use crate::object::{
    ImageReader, ImageWriter, Isolation, Object, Objects, Once, Part, Seen, TransactError,
    Transaction, Writes,
};
use crate::options::Options;
use crate::testing::{Cluster, Fault};

const TTL: Duration = Duration::from_secs(3);

fn open(cluster: &Cluster) -> Map {
    let (_, [map]) = process(cluster, ["m"]);
    map
}

fn put(key: &'static str, lease: Position) -> Update {
    Update::PutLeased {
        key: Bytes::from(key),
        value: Bytes::from("v"),
        lease,
        expect: None,
    }
}

async fn keys(map: &Map) -> Vec<String> {
    let page = map.scan(&Keys::all(), usize::MAX).await.unwrap();
    let keys = page.entries.iter();
    keys.map(|(key, _)| String::from_utf8(key.to_vec()).unwrap())
        .collect()
}

/// A lease that nobody renews.
async fn grant(map: &Map) -> Position {
    let ttl_ms = TTL.as_millis() as u64;
    let (lease, _) = map.view().update(&Update::Grant { ttl_ms }).await.unwrap();
    lease
}

/// Y4: whoever watches is told of each key once, in order, at the one position where all are gone.
#[tokio::test(start_paused = true)]
async fn the_keys_of_a_process_that_dies_go_when_its_lease_is_over() {
    let cluster = Cluster::new(2, 2, 3);
    let (owner, other) = (open(&cluster), open(&cluster));
    let clock = other.view().log().host().clock.clone();
    let lease = owner.grant(TTL).await.unwrap();
    for key in ["b", "a", "c", "d"] {
        owner.put_leased(key, "v", lease.id()).await.unwrap();
    }
    owner.put("c", "of its own").await.unwrap();
    owner.cas("d", Expect::value("v"), "too").await.unwrap();
    assert_eq!(other.lease_of(b"a").await.unwrap(), Some(lease.id()));
    let end = other.view().log().end().await.unwrap().position;
    let mut watch = other.watch(Keys::all(), end);

    clock.sleep(TTL * 3).await;
    assert_eq!(watch.next_ready().await.unwrap(), None, "it is renewed");
    let began = clock.now();
    drop((lease, owner));
    let [first, second] = [watch.next().await.unwrap(), watch.next().await.unwrap()];

    let waited = clock.now().since(began);
    assert!(waited >= TTL * 2 / 3 && waited < TTL * 2, "{waited:?}");
    assert_eq!(
        [(&first.key[..], &first.value), (&second.key, &second.value)],
        [(&b"a"[..], &None), (b"b", &None)]
    );
    assert_eq!(first.position, second.position);
    assert_eq!(keys(&other).await, ["c", "d"]);
    assert_eq!(watch.next_ready().await.unwrap(), None);
    assert!(other.leases().await.unwrap().is_empty());
}

/// Y2, Y3: only the positions of entries decide.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_renewed_lives_and_one_that_ended_does_not_come_back() {
    let cluster = Cluster::new(1, 2, 3);
    let (map, other) = (open(&cluster), open(&cluster));
    let lease = grant(&map).await;
    map.put_leased("k", "v", lease).await.unwrap();
    assert_eq!(map.renew(lease).await.unwrap(), TTL);
    let late = Update::Expire {
        lease,
        renewed: lease,
    };
    let (_, outcome) = other.view().update(&late).await.unwrap();
    assert!(matches!(outcome, Outcome::Lives { .. }), "{outcome:?}");
    assert_eq!(map.lease(lease).await.unwrap().unwrap().keys().len(), 1);

    assert_eq!(other.revoke(lease).await.unwrap(), 1);

    assert_eq!(keys(&map).await, [""; 0]);
    let ended = [
        map.renew(lease).await.err(),
        map.revoke(lease).await.err(),
        map.keep(lease).await.err(),
        map.put_leased("k", "v", lease).await.err(),
        map.cas_leased("k", Expect::Absent, "v", lease).await.err(),
        map.put_leased("k", "v", Position(99)).await.err(),
    ];
    for why in ended {
        assert!(matches!(why, Some(LeaseError::Ended { .. })), "{why:?}");
    }
    assert_eq!(keys(&map).await, [""; 0]);
    let short = map.grant(Duration::from_millis(999)).await;
    assert!(matches!(short.err(), Some(LeaseError::TooShort { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_conditional_write_binds_its_key_only_if_it_takes_place() {
    let cluster = Cluster::new(1, 2, 3);
    let map = open(&cluster);
    let lease = map.grant(TTL).await.unwrap();
    map.put("k", "mine").await.unwrap();
    let cas = |expect| map.cas_leased("k", expect, "new", lease.id());

    let conflict = cas(Expect::Absent).await.unwrap();
    assert!(matches!(conflict, Cas::Conflict { .. }), "{conflict:?}");
    assert_eq!(map.lease_of(b"k").await.unwrap(), None);
    let done = cas(Expect::value("mine")).await.unwrap();
    let Cas::Done { position } = done else {
        panic!("{done:?}");
    };
    assert_eq!(map.cas_at(position).await.unwrap(), Some(done));
    assert_eq!(map.lease_of(b"k").await.unwrap(), Some(lease.id()));

    // A retry that comes when the lease is over is told what the first one was.
    let once = Once {
        key: Bytes::from("once"),
        lives: 1_000,
    };
    let again = put("k", lease.id());
    let view = map.view();
    view.update_once(once.clone(), &again).await.unwrap();
    lease.revoke().await.unwrap();
    let (_, applied) = view.update_once(once, &again).await.unwrap();
    assert!(
        matches!(
            applied,
            crate::object::Applied::Repeated {
                outcome: Some(Outcome::Put),
                ..
            }
        ),
        "{applied:?}"
    );
    assert_eq!(keys(&map).await, [""; 0]);
}

/// Whether a transaction that read `k` takes place if `between` comes before it.
async fn commits(cluster: &Cluster, scans: bool, between: &Update) -> bool {
    let (objects, [map]) = process(cluster, ["m"]);
    objects.sync().await.unwrap();
    let sealed = {
        let world = objects.world();
        let mut txn = Transaction::new(&world, Isolation::Serializable);
        if scans {
            txn.scan(&map, &Keys::prefix("k"), 9).unwrap();
        } else {
            txn.get(&map, b"k").unwrap();
        }
        txn.put(&map, "done", "yes");
        let (checks, writes) = txn.finish().unwrap();
        writes.sealed(checks, None).unwrap()
    };
    map.view().append(between).await.unwrap();
    let log = objects.log();
    let position = log.append(sealed.record, &sealed.streams).await.unwrap();
    let done = map.get(b"done").await.unwrap();
    done.is_some_and(|done| done.version == position)
}

/// X3: that a key goes with its lease is a write of it; that a lease is renewed is none.
#[tokio::test(start_paused = true)]
async fn a_transaction_conflicts_with_the_end_of_a_lease_whose_keys_it_read_and_with_no_renewal() {
    let cluster = Cluster::new(1, 2, 3);
    let map = open(&cluster);
    for scans in [false, true] {
        let (lease, idle) = (grant(&map).await, grant(&map).await);
        map.put_leased("k", "v", lease).await.unwrap();
        for (between, expected) in [
            (Update::Renew { lease }, true),
            (Update::Revoke { lease: idle }, true),
            (Update::Revoke { lease }, false),
        ] {
            let done = commits(&cluster, scans, &between).await;
            assert_eq!(done, expected, "{between:?}, scans: {scans}");
        }
    }
}

/// O8: with a lease that has ended none of its writes takes place, and no attempt is made in vain.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_binds_a_key_takes_place_only_while_the_lease_lives() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map, other]) = process(&cluster, ["m", "other"]);
    let lease = grant(&map).await;
    let bind = || async {
        let body = |txn: &mut Transaction<'_>| {
            txn.put(&other, "k", "v");
            txn.put_leased(&map, "k", "v", lease);
            txn.get(&map, b"k")
        };
        objects.transact(body).await
    };
    let done = bind().await.unwrap();
    assert_eq!(done.value.unwrap(), "v");
    let bound = map.lease(lease).await.unwrap().unwrap();
    assert_eq!(bound.keys().collect::<Vec<_>>(), [&Bytes::from("k")]);
    // Who hosts only the other map is told.
    let (_, [elsewhere]) = process(&cluster, ["other"]);
    assert!(elsewhere.get(b"k").await.unwrap().is_some());
    map.revoke(lease).await.unwrap();
    other.delete("k").await.unwrap();

    let late = bind().await;

    let Err(TransactError::Conflict(abort)) = late else {
        panic!("{late:?}");
    };
    assert_eq!((&abort.part, abort.attempts), (&Part::Lease(lease), 1));
    assert!(abort.to_string().contains("grant another"), "{abort}");
    assert!(elsewhere.get(b"k").await.unwrap().is_none());
}

fn asked(cluster: &Cluster) -> usize {
    cluster.count(|_| true)
}

/// Nobody pays for what is not used, and nothing goes on for a map that was let go.
#[tokio::test(start_paused = true)]
async fn nothing_is_asked_while_a_map_has_no_leases_or_is_not_open() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map, other]) = process(&cluster, ["m", "other"]);
    let clock = objects.log().host().clock.clone();
    let hour = Duration::from_secs(3_600);
    map.put("k", "v").await.unwrap();
    other.put("k", "v").await.unwrap();
    objects.sync().await.unwrap();
    cluster.forget();
    clock.sleep(hour).await;
    assert_eq!(asked(&cluster), 0);

    let lease = grant(&map).await;
    clock.sleep(TTL * 2).await;
    assert!(map.lease(lease).await.unwrap().is_none(), "it is watched");
    clock.sleep(TTL).await;
    cluster.forget();
    clock.sleep(hour).await;
    assert_eq!(asked(&cluster), 0, "none is left");

    let lease = grant(&map).await;
    drop(map);
    clock.sleep(TTL).await;
    cluster.forget();
    clock.sleep(hour).await;
    assert_eq!(asked(&cluster), 0, "nobody has it open");

    let stream = milonga_wire::StreamId::of_name("m");
    let again = Map::of(objects.host(stream));
    assert!(again.lease(lease).await.unwrap().is_some());
    clock.sleep(TTL * 2).await;
    assert!(again.lease(lease).await.unwrap().is_none());

    // The process goes while it has a lease.
    let kept = again.grant(TTL).await.unwrap();
    assert!(kept.is_held());
    let weak = objects.downgrade();
    drop((objects, again, other, kept));
    clock.sleep(TTL).await;
    assert!(weak.upgrade().is_none());
    cluster.forget();
    clock.sleep(hour).await;
    assert_eq!(asked(&cluster), 0);
}

/// Who may not write leaves it to others.
#[tokio::test(start_paused = true)]
async fn a_reader_ends_no_lease() {
    let cluster = Cluster::new(1, 2, 3);
    let map = open(&cluster);
    let lease = grant(&map).await;
    map.put_leased("k", "v", lease).await.unwrap();
    let stream = map.view().stream();
    drop(map);
    let reader = Map::of(Objects::new(&cluster.client(Role::Reader)).host(stream));
    assert_eq!(keys(&reader).await, ["k"]);
    cluster.forget();
    let clock = reader.view().log().host().clock.clone();
    clock.sleep(TTL * 4).await;
    assert_eq!(asked(&cluster), 0);
    assert_eq!(keys(&reader).await, ["k"]);

    let writer = open(&cluster);
    assert_eq!(keys(&writer).await, ["k"]);
    clock.sleep(TTL * 2).await;
    assert_eq!(keys(&reader).await, [""; 0]);
}

/// Time in which nobody could renew does not count against who wanted to.
#[tokio::test(start_paused = true)]
async fn a_log_that_was_out_of_reach_ends_no_lease() {
    let cluster = Cluster::new(1, 2, 3);
    let options = Options {
        deadline: Duration::from_millis(500),
        ..Options::default()
    };
    let log = cluster.client_with(Role::Writer, options);
    let map = Map::of(Objects::new(&log).host(milonga_wire::StreamId::of_name("m")));
    let lease = grant(&map).await;
    map.put_leased("k", "v", lease).await.unwrap();
    let clock = log.host().clock.clone();

    cluster.rule(|_, _| Some(Fault::LoseRequest));
    clock.sleep(TTL * 3).await;
    cluster.heal();
    clock.sleep(TTL / 2).await;

    assert_eq!(keys(&map).await, ["k"]);
    map.renew(lease).await.unwrap();
    clock.sleep(TTL * 2).await;
    assert_eq!(keys(&map).await, [""; 0]);
}

/// The handle says when it is over, be it that somebody else ended it or that nobody knows any more.
#[tokio::test(start_paused = true)]
async fn the_holder_of_a_lease_notices_that_it_is_over() {
    let cluster = Cluster::new(1, 2, 3);
    let (map, other) = (open(&cluster), open(&cluster));
    let clock = map.view().log().host().clock.clone();
    let lease = map.grant(TTL).await.unwrap();
    other.revoke(lease.id()).await.unwrap();
    assert!(lease.is_held(), "it was not told yet");
    let began = clock.now();
    lease.lost().await;
    assert!(!lease.is_held() && clock.now().since(began) < TTL * 2 / 3);
    assert!(!lease.renew().await.unwrap());
    lease.revoke().await.unwrap();

    let kept = grant(&other).await;
    let kept = map.keep(kept).await.unwrap();
    assert_eq!(kept.ttl(), TTL);
    cluster.rule(|to, _| to.starts_with('q').then_some(Fault::LoseRequest));
    let began = clock.now();
    kept.lost().await;
    let held = clock.now().since(began);
    assert!(held >= TTL * 2 / 3 && held <= TTL * 4 / 3, "{held:?}");
}

/// What a snapshot holds of leases is watched over by who starts from it.
#[tokio::test(start_paused = true)]
async fn a_map_that_starts_from_a_snapshot_has_its_leases() {
    let cluster = Cluster::new(1, 2, 3);
    let map = open(&cluster);
    let lease = grant(&map).await;
    map.put_leased("k", "v", lease).await.unwrap();
    map.put("other", "v").await.unwrap();
    let snapshot = map.view().snapshot().await.unwrap();
    let control = cluster.client(Role::Control);
    control.trim(snapshot.needs).await.unwrap();
    let expected = map.leases().await.unwrap();
    drop(map);

    let late = open(&cluster);
    assert_eq!(late.leases().await.unwrap(), expected);
    late.view().log().host().clock.sleep(TTL * 2).await;
    assert_eq!(keys(&late).await, ["other"]);
}

/// Y2: what has ended since does not come back with the snapshot, neither as a lease nor as keys that nobody ends.
#[tokio::test(start_paused = true)]
async fn going_back_to_a_snapshot_leaves_the_leases_as_they_are() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map]) = process(&cluster, ["m"]);
    let (over, lives) = (grant(&map).await, map.grant(TTL).await.unwrap());
    map.put_leased("a", "v", over).await.unwrap();
    let b = map.put_leased("b", "v", lives.id()).await.unwrap();
    map.put_leased("c", "v", lives.id()).await.unwrap();
    map.put("d", "v").await.unwrap();
    let mut watch = map.watch(Keys::all(), Position::FIRST);
    while watch.next_ready().await.unwrap().is_some() {}
    let snapshot = map.view().snapshot().await.unwrap();
    map.revoke(over).await.unwrap();
    let newer = map.grant(TTL).await.unwrap();
    map.put("c", "v").await.unwrap();
    map.put_leased("d", "v", newer.id()).await.unwrap();
    map.put_leased("e", "v", newer.id()).await.unwrap();
    while watch.next_ready().await.unwrap().is_some() {}

    let mut writes = Writes::new();
    writes.reset(map.view().named(), snapshot.manifest);
    let position = objects.append(writes).await.unwrap();

    let mut found = vec![];
    for key in keys(&map).await {
        let version = map.get(key.as_bytes()).await.unwrap().unwrap().version;
        found.push((version, map.lease_of(key.as_bytes()).await.unwrap(), key));
    }
    let expected = [
        (b, Some(lives.id()), "b".to_owned()),
        (position, Some(lives.id()), "c".to_owned()),
        (position, None, "d".to_owned()),
    ];
    assert_eq!(found, expected);
    let mut told = vec![];
    while let Some(change) = watch.next_ready().await.unwrap() {
        told.push((
            String::from_utf8_lossy(&change.key).into_owned(),
            change.value.is_some(),
        ));
    }
    let change = |key: &str, is_there| (key.to_owned(), is_there);
    assert_eq!(
        told,
        [change("c", true), change("d", true), change("e", false)]
    );
    let all = map.leases().await.unwrap();
    let all: Vec<Position> = all.iter().map(|(lease, _)| *lease).collect();
    assert_eq!(all, [lives.id(), newer.id()]);
    assert!(newer.is_held());
}

/// What is in some log must be read for ever: these bytes never change.
#[test]
fn updates_of_leases_look_the_same_for_ever() {
    let lease = Position(300);
    let [put, cas] = [None, Some(Expect::Absent)].map(|expect| Update::PutLeased {
        key: Bytes::from("k"),
        value: Bytes::from("v"),
        lease,
        expect,
    });
    let renewed = Position(5);
    for (update, bytes) in [
        (Update::Grant { ttl_ms: 7 }, &[3, 7][..]),
        (Update::Renew { lease }, &[4, 172, 2]),
        (Update::Revoke { lease }, &[5, 172, 2]),
        (Update::Expire { lease, renewed }, &[6, 172, 2, 5]),
        (put, &[7, 1, b'k', 1, b'v', 172, 2, 0]),
        (cas, &[7, 1, b'k', 1, b'v', 172, 2, 1, 0]),
    ] {
        assert_eq!(postcard::to_allocvec(&update).unwrap(), bytes);
    }
    let part = postcard::to_allocvec(&Part::Lease(lease)).unwrap();
    assert_eq!(part, [3, 172, 2]);
}

/// What may come, told apart from what it becomes: leases by their number among all that were granted, renewals by their age.
#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Delete(u8),
    Cas(u8, bool),
    Bind(u8, usize, Option<bool>),
    Grant,
    Renew(usize),
    Revoke(usize),
    Expire(usize, bool),
    Keep,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let (key, lease) = (|| 0_u8..4, || 0_usize..6);
    prop_oneof![
        2 => key().prop_map(Step::Put),
        2 => key().prop_map(Step::Delete),
        1 => (key(), any::<bool>()).prop_map(|(key, absent)| Step::Cas(key, absent)),
        6 => (key(), lease(), any::<Option<bool>>())
            .prop_map(|(key, lease, absent)| Step::Bind(key, lease, absent)),
        3 => Just(Step::Grant),
        2 => lease().prop_map(Step::Renew),
        1 => lease().prop_map(Step::Revoke),
        2 => (lease(), any::<bool>()).prop_map(|(lease, newest)| Step::Expire(lease, newest)),
        1 => Just(Step::Keep),
        1 => Just(Step::Reset),
    ]
}

/// A key: its value, its version, what it is bound to.
type Keyed = BTreeMap<Bytes, (Bytes, Position, Option<Position>)>;

/// The plainest map with leases that could be meant: of each lease that lives, its last renewal.
#[derive(Clone, Default)]
struct Model {
    keys: Keyed,
    leases: BTreeMap<Position, Position>,
}

impl Model {
    fn apply(&mut self, position: Position, update: &Update) {
        let holds = |keys: &Keyed, key, expect: &Expect| match (keys.get(key), expect) {
            (None, Expect::Absent) => true,
            (Some((found, ..)), Expect::Value(value)) => found == value,
            _ => false,
        };
        match update.clone() {
            Update::Put { key, value } => {
                self.keys.insert(key, (value, position, None));
            }
            Update::Delete { key } => {
                self.keys.remove(&key);
            }
            Update::Cas { key, expect, value } => {
                if holds(&self.keys, &key, &expect) {
                    let value = value.unwrap();
                    self.keys.insert(key, (value, position, None));
                }
            }
            Update::PutLeased {
                key,
                value,
                lease,
                expect,
            } => {
                let holds = expect.is_none_or(|expect| holds(&self.keys, &key, &expect));
                if holds && self.leases.contains_key(&lease) {
                    self.keys.insert(key, (value, position, Some(lease)));
                }
            }
            Update::Grant { .. } => {
                self.leases.insert(position, position);
            }
            Update::Renew { lease } => {
                self.leases.entry(lease).and_modify(|at| *at = position);
            }
            Update::Revoke { lease } => self.end(lease),
            Update::Expire { lease, renewed } => {
                if self.leases.get(&lease) == Some(&renewed) {
                    self.end(lease);
                }
            }
            Update::KeepInLog { .. } | Update::Moved { .. } => {}
        }
    }

    fn end(&mut self, lease: Position) {
        self.leases.remove(&lease);
        self.keys.retain(|_, (.., bound)| *bound != Some(lease));
    }

    fn reset(&mut self, position: Position, to: &Self) {
        let mut keys = to.keys.clone();
        keys.retain(|_, (.., bound)| bound.is_none_or(|lease| self.leases.contains_key(&lease)));
        for (key, (value, version, bound)) in &mut keys {
            *version = match self.keys.get(key) {
                Some((same, current, now)) if (same, now) == (value, bound) => *current,
                _ => position,
            };
        }
        self.keys = keys;
    }

    /// Y1, and that both sides of the state say the same.
    fn check(&self, state: &MapState) -> Result<(), TestCaseError> {
        let page = state.scan(&Keys::all(), usize::MAX).entries.into_iter();
        let keys: Keyed = page
            .map(|(key, found)| {
                let lease = state.lease_of(&key);
                let found = found.here().unwrap();
                (key, (found.value, found.version, lease))
            })
            .collect();
        prop_assert_eq!(&keys, &self.keys);
        let leases: BTreeMap<Position, Position> = state
            .leases()
            .map(|(lease, found)| (lease, found.renewed()))
            .collect();
        prop_assert_eq!(&leases, &self.leases);
        for (lease, found) in state.leases() {
            let bound = keys.iter().filter(|(_, (.., bound))| *bound == Some(lease));
            prop_assert!(bound.map(|(key, _)| key).eq(found.keys()));
        }
        for (.., bound) in keys.values() {
            prop_assert!(bound.is_none_or(|lease| leases.contains_key(&lease)));
        }
        Ok(())
    }
}

fn image_of(state: &MapState) -> MapState {
    let mut image = ImageWriter::default();
    state.snapshot(&mut image);
    MapState::restore(&mut ImageReader::new(image.finish().0)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Y1 to Y4 and O1, whatever is appended, and however often a map goes back to what it was.
    #[test]
    fn leases_and_their_keys_live_and_end_together(steps in prop::collection::vec(step(), 0..80)) {
        let (mut state, mut model) = (MapState::default(), Model::default());
        let mut past = (MapState::default(), Model::default());
        let (mut granted, mut ended) = (vec![], BTreeSet::new());
        // Part: what is seen alike is alike.
        let mut seen: BTreeMap<Seen, Keyed> = BTreeMap::new();
        for (position, step) in (0..).map(Position).zip(steps) {
            let lease = |number: usize| granted.get(number).copied().unwrap_or(position);
            let key = |key: u8| Bytes::from(vec![key]);
            let value = Bytes::from(vec![position.0 as u8 % 3]);
            let expect = |absent: bool| if absent { Expect::Absent } else { Expect::value("\0") };
            let update = match step {
                Step::Put(name) => Update::Put { key: key(name), value },
                Step::Delete(name) => Update::Delete { key: key(name) },
                Step::Cas(name, absent) => {
                    let (key, expect) = (key(name), expect(absent));
                    Update::Cas { key, expect, value: Some(value) }
                }
                Step::Bind(name, number, absent) => Update::PutLeased {
                    key: key(name),
                    value,
                    lease: lease(number),
                    expect: absent.map(expect),
                },
                Step::Grant => Update::Grant { ttl_ms: 1 },
                Step::Renew(number) => Update::Renew { lease: lease(number) },
                Step::Revoke(number) => Update::Revoke { lease: lease(number) },
                Step::Expire(number, newest) => {
                    let lease = lease(number);
                    let renewed = model.leases.get(&lease).filter(|_| newest);
                    Update::Expire { lease, renewed: renewed.copied().unwrap_or(lease) }
                }
                Step::Keep => {
                    past = (image_of(&state), model.clone());
                    continue;
                }
                Step::Reset => {
                    state.reset(position, past.0.clone());
                    model.reset(position, &past.1);
                    model.check(&state)?;
                    prop_assert!(model.leases.keys().all(|lease| !ended.contains(lease)));
                    continue;
                }
            };
            if matches!(update, Update::Grant { .. }) {
                granted.push(position);
            }
            let before = model.clone();
            let mut gone = vec![];
            let outcome = state.change(position, update.clone(), &mut gone);
            model.apply(position, &update);
            model.check(&state)?;
            prop_assert_eq!(&image_of(&state), &state);
            let over = before.leases.keys().filter(|lease| !model.leases.contains_key(lease));
            ended.extend(over.copied());
            prop_assert!(model.leases.keys().all(|lease| !ended.contains(lease)));
            if let Outcome::Ended { keys } = outcome {
                let went = before.keys.keys().filter(|key| !model.keys.contains_key(*key));
                prop_assert!(went.eq(gone.iter()));
                prop_assert_eq!(keys, gone.len() as u64);
            } else {
                prop_assert!(gone.is_empty());
            }
            if let Outcome::NoLease { .. } = outcome {
                prop_assert_eq!(&before.keys, &model.keys);
            }
            let all = state.seen(&Part::Keys(Keys::all())).unwrap();
            let same = seen.entry(all).or_insert_with(|| model.keys.clone());
            prop_assert_eq!(&*same, &model.keys);
        }
    }
}
