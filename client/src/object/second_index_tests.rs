//! Several objects that one stream feeds, on a cluster in memory.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use milonga_wire::{Position, StreamId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transact::tests::{append_untold, number, process, text, value};
use super::{ImageError, ImageReader, ImageWriter, Map, Object, Once, PlayError, Transaction, map};
use crate::testing::Cluster;

/// How many updates there were, of whatever they are: a second index over some history.
pub(super) struct Count<U>(u64, PhantomData<fn() -> U>);

impl<U> Count<U> {
    pub(super) fn value(&self) -> u64 {
        self.0
    }
}

impl<U> Default for Count<U> {
    fn default() -> Self {
        Self(0, PhantomData)
    }
}

impl<U: Serialize + DeserializeOwned + 'static> Object for Count<U> {
    const KIND: &'static str = "count";
    type Update = U;
    type Outcome = ();

    fn apply(&mut self, _: Position, _: U) {
        self.0 += 1;
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        to.write(&self.0);
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        Ok(Self(from.read()?.unwrap_or_default(), PhantomData))
    }
}

/// All that one stream feeds take the same updates for repeated ones.
#[tokio::test(start_paused = true)]
async fn a_second_index_knows_the_idempotency_keys_of_transactions() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    let changes = objects.host::<Count<map::Update>>(map.view().stream());
    let once = Once {
        key: Bytes::from("once"),
        lives: 1_000,
    };
    let transact = objects.transaction().once(once.clone());
    let body = |txn: &mut Transaction<'_>| {
        txn.put(&map, "k", "1");
        Ok::<_, PlayError>(())
    };
    transact.run(body).await.unwrap();
    let put = map::Update::Put {
        key: Bytes::from("k"),
        value: Bytes::from("2"),
    };
    map.view().update_once(once, &put).await.unwrap();
    assert_eq!(value(&map, "k").await, 1);
    assert_eq!(changes.read(Count::value).await.unwrap(), 1);
}

/// Who decides in a dead writer's place needs to know what was checked, not all that is written.
#[tokio::test(start_paused = true)]
async fn what_is_only_written_need_not_be_known_to_decide() {
    let cluster = Cluster::new(1, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    let (_, [half]) = process(&cluster, ["b"]);
    let changes = objects.host::<Count<map::Update>>(StreamId::of_name("c"));
    let other = Map::of(objects.host(half.view().stream()));
    map.put("k", "1").await.unwrap();
    append_untold(&objects, |txn| {
        txn.get(&map, b"k").unwrap();
        txn.put(&other, "k", "2");
        let put = map::Update::Put {
            key: Bytes::from("k"),
            value: Bytes::from("2"),
        };
        txn.update(&changes, &put);
    })
    .await;
    assert_eq!(value(&half, "k").await, 2);
}

/// Who hosts only a second index is not kept waiting: what decides is played along, from the start or a snapshot.
#[tokio::test(start_paused = true)]
async fn a_second_index_alone_waits_for_nobody() {
    let cluster = Cluster::new(2, 2, 3);
    let (objects, [map]) = process(&cluster, ["a"]);
    let clock = objects.log().host().clock.clone();
    let increment = async |key: &'static str| {
        let body = |txn: &mut Transaction<'_>| {
            let found = txn.get(&map, key.as_bytes())?;
            txn.put(&map, key, text(number(found.as_ref()) + 1));
            Ok::<_, PlayError>(())
        };
        objects.transact(body).await.unwrap();
    };
    for _ in 0..10 {
        increment("x").await;
    }
    let (other, []) = process(&cluster, []);
    let changes = other.host::<Count<map::Update>>(map.view().stream());
    let began = clock.now();
    assert_eq!(changes.read(Count::value).await.unwrap(), 10);
    for round in 0..10 {
        increment("y").await;
        let seen = changes.read(Count::value).await.unwrap();
        assert_eq!(seen, 11 + round);
    }
    assert!(clock.now().since(began) < Duration::from_millis(500));
    map.view().snapshot().await.unwrap();
    increment("x").await;
    let (late, []) = process(&cluster, []);
    let changes = late.host::<Count<map::Update>>(map.view().stream());
    assert_eq!(changes.read(Count::value).await.unwrap(), 21);
}
