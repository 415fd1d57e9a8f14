//! Which keys a scan or a watch is about.

use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Part, Seen};

/// A range of keys.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Keys {
    start: Bound<Bytes>,
    end: Bound<Bytes>,
}

impl Keys {
    /// All keys.
    pub fn all() -> Self {
        Self {
            start: Bound::Unbounded,
            end: Bound::Unbounded,
        }
    }

    /// No key.
    pub(crate) fn none() -> Self {
        Self::one("").after("")
    }

    /// One key.
    pub fn one(key: impl Into<Bytes>) -> Self {
        let key = key.into();
        Self {
            start: Bound::Included(key.clone()),
            end: Bound::Included(key),
        }
    }

    /// Keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix = prefix.into();
        Self {
            end: behind(&prefix),
            start: Bound::Included(prefix),
        }
    }

    /// Keys within `range`, in the order of their bytes.
    pub fn range(range: impl RangeBounds<Bytes>) -> Self {
        Self {
            start: range.start_bound().cloned(),
            end: range.end_bound().cloned(),
        }
    }

    /// Those of these keys that come after `key`: how the next page of a scan is asked for.
    pub fn after(mut self, key: impl Into<Bytes>) -> Self {
        let key = key.into();
        let is_narrower = match &self.start {
            Bound::Included(start) | Bound::Excluded(start) => key >= *start,
            Bound::Unbounded => true,
        };
        if is_narrower {
            self.start = Bound::Excluded(key);
        }
        self
    }

    /// Those of these keys that do not come after `key`.
    pub(crate) fn up_to(mut self, key: Bytes) -> Self {
        self.end = Bound::Included(key);
        self
    }

    /// Whether `key` is one of them.
    pub fn contains(&self, key: &Bytes) -> bool {
        RangeBounds::<Bytes>::contains(&(self.start.as_ref(), self.end.as_ref()), key)
    }

    /// How a part of an object stands of which `seen` tells how some keys do; none for what is no key.
    pub(crate) fn seen(part: &Part, seen: impl FnOnce(&Self) -> Seen) -> Option<Seen> {
        match part {
            Part::Whole | Part::Lease(_) => None,
            Part::Key(key) => Some(seen(&Self::one(key.clone()))),
            Part::Keys(keys) => Some(seen(keys)),
        }
    }

    /// Both bounds, unless they leave no room.
    pub(crate) fn bounds(&self) -> Option<(Bound<&Bytes>, Bound<&Bytes>)> {
        let crossed = match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (
                Bound::Included(start) | Bound::Excluded(start),
                Bound::Included(end) | Bound::Excluded(end),
            ) => start >= end,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        };
        (!crossed).then_some((self.start.as_ref(), self.end.as_ref()))
    }
}

/// The first key behind all that begin with `prefix`.
fn behind(prefix: &[u8]) -> Bound<Bytes> {
    let Some(last) = prefix.iter().rposition(|byte| *byte < u8::MAX) else {
        return Bound::Unbounded;
    };
    let mut key = prefix[..=last].to_vec();
    key[last] += 1;
    Bound::Excluded(Bytes::from(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }

    #[test]
    fn a_prefix_has_exactly_the_keys_that_begin_with_it() {
        let keys = Keys::prefix(key(&[1, 255]));
        for (bytes, is_in) in [
            (&[1, 255][..], true),
            (&[1, 255, 255, 9], true),
            (&[1, 254], false),
            (&[2], false),
        ] {
            assert_eq!(keys.contains(&key(bytes)), is_in, "{bytes:?}");
        }
        assert!(Keys::prefix(key(&[255, 255])).contains(&key(&[255, 255, 255])));
        assert_eq!(Keys::prefix(""), Keys::range(key(b"")..));
    }

    #[test]
    fn the_next_page_never_starts_before_the_range() {
        let keys = Keys::prefix("b").after("a");
        assert!(keys.contains(&key(b"b")) && !keys.contains(&key(b"aa")));
        assert!(Keys::one("b").after("b").bounds().is_none());
        assert!(Keys::none().bounds().is_none());
        assert!(Keys::range(key(b"c")..key(b"a")).bounds().is_none());
        assert!(Keys::one("b").bounds().is_some());
    }
}
