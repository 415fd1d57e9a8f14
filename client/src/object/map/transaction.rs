//! Maps in transactions: reads conflict by key, and see what the transaction wrote before.

use bytes::Bytes;
use milonga_wire::Position;

use super::{Held, KEY_BYTES_MAX, Map, Page, Update, Value, Versioned, checked};
use crate::object::{Keys, Part, PlayError, Seen, Transaction, Writes};

impl Transaction<'_> {
    /// The value of `key`; what this transaction has written shows.
    ///
    /// # Errors
    /// [`PlayError`] if the map cannot be played on.
    pub fn get(&mut self, map: &Map, key: &[u8]) -> Result<Option<Bytes>, PlayError> {
        match self.written(map, key) {
            Some(written) => Ok(written.cloned()),
            None => Ok(self.get_versioned(map, key)?.map(|found| found.value)),
        }
    }

    /// What this transaction has written to `key`, none for a removal; nothing if it has not written it. That is not a read.
    pub fn written(&self, map: &Map, key: &[u8]) -> Option<Option<&Bytes>> {
        let own = self.own.get(&map.view().stream())?;
        own.get(key).map(Option::as_ref)
    }

    /// The value of `key` and the position of its last write, as they were before this transaction.
    ///
    /// # Errors
    /// [`PlayError`] if the map cannot be played on.
    pub fn get_versioned(&mut self, map: &Map, key: &[u8]) -> Result<Option<Versioned>, PlayError> {
        let held = self.get_held(map, key)?;
        held.map(|held| self.fetched(key, held)).transpose()
    }

    /// What `key` held before this transaction. A value that stays in the log is not fetched for it: [`Value::is`] tells whether it is a
    /// certain one.
    ///
    /// # Errors
    /// [`PlayError`] if the map cannot be played on.
    pub fn get_held(&mut self, map: &Map, key: &[u8]) -> Result<Option<Held>, PlayError> {
        let part = Part::Key(Bytes::copy_from_slice(key));
        self.read_part(map.view(), part, |state| state.get(key))
    }

    /// With its value. If that stays in the log and was not fetched yet, it is noted that it is wanted.
    fn fetched(&mut self, key: &[u8], held: Held) -> Result<Versioned, PlayError> {
        let version = held.version;
        let value = match held.value {
            Value::Here(value) => value,
            Value::InLog(stored) => {
                let Some(value) = self.values.get(&stored.digest) else {
                    self.wanted.push((Bytes::copy_from_slice(key), *stored));
                    return Err(PlayError::InLog(stored.at));
                };
                value.clone()
            }
        };
        Ok(Versioned { value, version })
    }

    /// The first `limit` of `keys` as they were before this transaction. That none came in between is checked, too.
    ///
    /// # Errors
    /// [`PlayError`] if the map cannot be played on.
    pub fn scan(&mut self, map: &Map, keys: &Keys, limit: usize) -> Result<Page, PlayError> {
        let world_part = |page: &Page<Held>| match page.entries.last() {
            // What lies behind the last key was not looked at.
            Some((last, _)) if page.more => keys.clone().up_to(last.clone()),
            Some(_) | None => keys.clone(),
        };
        let page = self.peek(map.view(), |state| state.scan(keys, limit))?;
        let part = Part::Keys(world_part(&page));
        let page = self.read_part(map.view(), part, |_| page)?;
        // All that is wanted is noted before the first error is told.
        let entries: Vec<_> = page
            .entries
            .into_iter()
            .map(|(key, held)| (self.fetched(&key, held), key))
            .collect();
        let entries = entries.into_iter().map(|(found, key)| Ok((key, found?)));
        Ok(Page {
            entries: entries.collect::<Result<_, PlayError>>()?,
            more: page.more,
        })
    }

    /// Sets `key` to `value`, if the transaction takes place.
    pub fn put(&mut self, map: &Map, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        if let Some(key) = self.own_key(map, key, Some(value.clone())) {
            self.update(map.view(), &Update::Put { key, value });
        }
    }

    /// Sets `key` to `value` and binds it to `lease`. The transaction takes place only if that lives where it comes to lie in the
    /// log; if it does not, no other attempt is made: a conflict with [`Part::Lease`].
    pub fn put_leased(
        &mut self,
        map: &Map,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        lease: Position,
    ) {
        let (key, value) = (key.into(), value.into());
        if let Some(key) = self.own_key(map, key, Some(value.clone())) {
            self.expect(map.view(), Part::Lease(lease), Seen::one(Some(lease)));
            let update = Update::PutLeased {
                key,
                value,
                lease,
                expect: None,
            };
            self.update(map.view(), &update);
        }
    }

    /// Removes `key`, if the transaction takes place.
    pub fn delete(&mut self, map: &Map, key: impl Into<Bytes>) {
        if let Some(key) = self.own_key(map, key.into(), None) {
            self.update(map.view(), &Update::Delete { key });
        }
    }

    fn own_key(&mut self, map: &Map, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
        match checked(key) {
            Ok(key) => {
                let own = self.own.entry(map.view().stream()).or_default();
                own.insert(key.clone(), value);
                Some(key)
            }
            Err(why) => {
                self.refuse(why);
                None
            }
        }
    }
}

impl Writes {
    /// Sets `key` to `value`. A key longer than [`KEY_BYTES_MAX`] is refused when the writes are appended.
    pub fn put(&mut self, map: &Map, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        match checked(key) {
            Ok(key) => {
                let value = value.into();
                self.update(map.view(), &Update::Put { key, value });
            }
            Err(why) => drop(self.refused.get_or_insert(why)),
        }
    }

    /// Removes `key`.
    pub fn delete(&mut self, map: &Map, key: impl Into<Bytes>) {
        match checked(key) {
            Ok(key) => self.update(map.view(), &Update::Delete { key }),
            Err(why) => drop(self.refused.get_or_insert(why)),
        }
    }
}

/// The longest key is bounded so that a key with its expectation fits a record.
const _: () = assert!(KEY_BYTES_MAX * 2 < milonga_wire::limits::ENTRY_BYTES_MAX);
