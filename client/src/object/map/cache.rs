//! Values that were fetched from the log, up to so many bytes: those that were not used for longest go first. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::value::Digest;

/// Bytes of values that are held unless something else is asked for.
pub(crate) const HELD_BYTES: u64 = 64 << 20;

/// What one costs beside its bytes, about.
const BESIDE: u64 = 200;

fn cost(value: &Bytes) -> u64 {
    value.len() as u64 + BESIDE
}

/// By what they are, wherever they are.
pub(crate) struct Cache {
    bytes_max: u64,
    bytes: u64,
    values: BTreeMap<Digest, (Bytes, u64)>,
    /// By when they were used last.
    used: BTreeMap<u64, Digest>,
    clock: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            bytes_max: HELD_BYTES,
            bytes: 0,
            values: BTreeMap::new(),
            used: BTreeMap::new(),
            clock: 0,
        }
    }
}

impl Cache {
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From now on it holds at most so much.
    pub(crate) fn limit(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
        self.shrink();
    }

    pub(crate) fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        let (value, used) = self.values.get_mut(digest)?;
        self.clock += 1;
        self.used.remove(used);
        *used = self.clock;
        self.used.insert(self.clock, *digest);
        Some(value.clone())
    }

    pub(crate) fn put(&mut self, digest: Digest, value: Bytes) {
        if self.get(&digest).is_some() {
            return;
        }
        self.clock += 1;
        self.bytes += cost(&value);
        self.used.insert(self.clock, digest);
        self.values.insert(digest, (value, self.clock));
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max
            && let Some((_, digest)) = self.used.pop_first()
            && let Some((value, _)) = self.values.remove(&digest)
        {
            self.bytes -= cost(&value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_the_bound_holds() {
        let mut cache = Cache::default();
        cache.limit(3 * (10 + BESIDE));
        let value = Bytes::from_static(&[0; 10]);
        for number in 0..3 {
            cache.put([number; 32], value.clone());
        }
        assert!(cache.get(&[0; 32]).is_some());
        cache.put([3; 32], value.clone());
        cache.put([3; 32], value.clone());
        let held = |cache: &Cache| {
            cache
                .values
                .keys()
                .map(|digest| digest[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (held(&cache), cache.bytes),
            (vec![0, 2, 3], cache.bytes_max)
        );
        cache.put([4; 32], Bytes::from_static(&[0; 1_000]));
        assert_eq!((held(&cache), cache.bytes), (vec![], 0));
        cache.put([5; 32], value);
        cache.limit(0);
        assert_eq!(
            (held(&cache), cache.bytes, cache.used.len()),
            (vec![], 0, 0)
        );
    }
}
