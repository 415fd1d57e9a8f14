//! Replicas that came to the end by different ways have the same state, and decided alike.

use std::time::Duration;

use bytes::Bytes;
use milonga_host::Random;
use milonga_wire::{Position, Role, StreamId};

use super::counter::{CounterState, Update as Count};
use super::set::{SetState, Update as Change};
use super::transact::tests::{number, text};
use super::{Isolation, Keys, Map, Objects, Once, PlayError, Transaction, View};
use crate::testing::Cluster;

/// Transactions of a usual run; `MILONGA_TRANSACTIONS` asks for another number.
const TRANSACTIONS: u64 = 2_000;
/// What all states come to after a usual run, with every build of this program on every machine.
const DIGEST: u32 = 4_162_105_814;
const WRITERS: u64 = 4;
const KEYS: u64 = 40;

/// The objects of a process.
struct Process {
    objects: Objects,
    maps: Vec<Map>,
    count: View<CounterState>,
    set: View<SetState>,
}

impl Process {
    fn new(cluster: &Cluster) -> Self {
        Self::with(&Objects::new(&cluster.client(Role::Writer)), 4)
    }

    fn with(objects: &Objects, maps: usize) -> Self {
        let names = ["a", "b", "c", "d"].into_iter().take(maps);
        let map = |name| Map::of(objects.host(StreamId::of_name(name)));
        Self {
            objects: objects.clone(),
            maps: names.map(map).collect(),
            count: objects.host(StreamId::of_name("count")),
            set: objects.host(StreamId::of_name("set")),
        }
    }

    /// Runs one transaction, whatever `random` makes of it. Where it took place, if it did.
    async fn transact(&self, random: &Random, number_of: u64) -> Option<Position> {
        let key = |number: u64| Bytes::from(format!("key {number}"));
        let picks: Vec<u64> = (0..6).map(|_| random.below(KEYS)).collect();
        let [one, other] = [0, 1].map(|turn| &self.maps[(picks[turn] % 4) as usize]);
        let isolation = match random.below(8) {
            0 => Isolation::Snapshot,
            1 => Isolation::WriteWrite,
            _ => Isolation::Serializable,
        };
        let mut transaction = self.objects.transaction().isolation(isolation).attempts(2);
        if random.below(10) == 0 {
            let key = Bytes::from(format!("once {}", number_of / 3));
            transaction = transaction.once(Once { key, lives: 500 });
        }
        let way = random.below(10);
        let body = |txn: &mut Transaction<'_>| {
            let found = txn.get(one, &key(picks[2]))?;
            match way {
                0 => drop(txn.scan(other, &Keys::prefix("key 1"), 5)?),
                1 => txn.delete(other, key(picks[3])),
                2 => txn.update(&self.count, &Count::Add(picks[4].cast_signed())),
                3 => txn.update(&self.set, &Change::Add(key(picks[5]))),
                _ => {
                    let there = number(txn.get(other, &key(picks[3]))?.as_ref());
                    txn.put(other, key(picks[3]), text(there + 1));
                }
            }
            txn.put(one, key(picks[2]), text(number(found.as_ref()) - 1));
            Ok::<_, PlayError>(())
        };
        let done = Box::pin(transaction.run(body)).await;
        done.ok().and_then(|done| done.position)
    }

    /// What its objects come to: the bytes of their snapshots.
    async fn digests(&self) -> Vec<u32> {
        self.objects.sync().await.unwrap();
        let world = self.objects.world();
        let named = self.maps.iter().map(|map| map.view().named());
        let named = named.chain([self.count.named(), self.set.named()]);
        named
            .map(|named| {
                let (parts, _) = world.image(named).unwrap().finish();
                let mut crc = crc32fast::Hasher::new();
                parts.iter().for_each(|part| crc.update(part));
                crc.finalize()
            })
            .collect()
    }
}

/// O2, O7, X3: from the start, from a snapshot, with some of the objects only, after a long pause, and by another build.
#[tokio::test(start_paused = true)]
async fn replicas_agree_whichever_way_they_came() {
    let asked = std::env::var("MILONGA_TRANSACTIONS");
    let transactions = asked.map_or(TRANSACTIONS, |asked| asked.parse().unwrap());
    let cluster = Cluster::new(2, 2, 3);
    let writers: Vec<Process> = (0..WRITERS).map(|_| Process::new(&cluster)).collect();
    let paused = Process::new(&cluster);
    let rounds = transactions / WRITERS;
    for round in 0..rounds {
        let at_once = (0..).zip(&writers).map(|(number, writer)| async move {
            let number_of = round * WRITERS + number;
            let random = Random::seeded(number_of);
            writer.transact(&random, number_of).await
        });
        futures_util::future::join_all(at_once).await;
        if round == rounds / 10 {
            paused.objects.sync().await.unwrap();
        }
        if round == rounds / 2 {
            let one = &writers[0];
            for map in &one.maps {
                map.view().snapshot().await.unwrap();
            }
            one.count.snapshot().await.unwrap();
            one.set.snapshot().await.unwrap();
        }
    }
    let clock = cluster.client(Role::Writer).host().clock.clone();
    clock.sleep(Duration::from_secs(60)).await;

    // The writers have played all from the start.
    let expected = writers[0].digests().await;
    for writer in &writers[1..] {
        assert_eq!(writer.digests().await, expected);
    }
    assert_eq!(paused.digests().await, expected);
    let from_snapshot = Process::new(&cluster);
    assert_eq!(from_snapshot.digests().await, expected);
    let half = Process::with(&Objects::new(&cluster.client(Role::Writer)), 2);
    let halves = half.digests().await;
    assert_eq!(halves[..2], expected[..2]);
    assert_eq!(halves[2..], expected[4..]);
    if transactions == TRANSACTIONS {
        let mut crc = crc32fast::Hasher::new();
        expected
            .iter()
            .for_each(|digest| crc.update(&digest.to_le_bytes()));
        assert_eq!(crc.finalize(), DIGEST);
    }
}
