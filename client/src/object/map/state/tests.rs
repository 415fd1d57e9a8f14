//! The state of a map, by itself.

use proptest::prelude::*;

use super::*;

/// What writes one key.
pub(in crate::object::map) fn written() -> impl Strategy<Value = Update> {
    let bytes = |range| prop::collection::vec(0_u8..3, range).prop_map(Bytes::from);
    let expect = prop_oneof![
        Just(Expect::Absent),
        bytes(0..3).prop_map(Expect::Value),
        (0_u64..40).prop_map(|position| Expect::Version(Position(position))),
    ];
    prop_oneof![
        (bytes(0..2), bytes(0..3)).prop_map(|(key, value)| Update::Put { key, value }),
        bytes(0..2).prop_map(|key| Update::Delete { key }),
        (bytes(0..2), expect, prop::option::of(bytes(0..3)))
            .prop_map(|(key, expect, value)| Update::Cas { key, expect, value }),
    ]
}

/// The plainest map that could be meant.
fn model(entries: &mut Vec<(Bytes, Bytes, Position)>, position: Position, update: Update) {
    let key = update.key().unwrap().clone();
    let found = entries.iter().find(|entry| entry.0 == key).cloned();
    let value = match update {
        Update::Put { value, .. } => Some(value),
        Update::Delete { .. } => None,
        Update::Cas { expect, value, .. } => {
            let holds = match (&found, expect) {
                (None, Expect::Absent) => true,
                (Some(found), Expect::Value(value)) => found.1 == value,
                (Some(found), Expect::Version(version)) => found.2 == version,
                _ => false,
            };
            if !holds {
                return;
            }
            value
        }
        leased => unreachable!("{leased:?}: see lease/tests.rs"),
    };
    entries.retain(|entry| entry.0 != key);
    entries.extend(value.map(|value| (key, value, position)));
    entries.sort();
}

proptest! {
    /// O1.
    #[test]
    fn a_map_is_what_its_updates_say(updates in prop::collection::vec(written(), 0..60)) {
        let (mut state, mut entries) = (MapState::default(), vec![]);
        for (position, update) in (0..).map(Position).zip(updates) {
            state.apply(position, update.clone());
            model(&mut entries, position, update);
        }
        let page = state.scan(&Keys::all(), usize::MAX);
        let listed: Vec<_> = page
            .entries
            .into_iter()
            .map(|(key, found)| (key, found.here().unwrap()))
            .map(|(key, found)| (key, found.value, found.version))
            .collect();
        prop_assert_eq!(listed, entries);
    }
}

#[test]
fn a_scan_goes_page_by_page_and_says_when_it_is_done() {
    let mut state = MapState::default();
    for (position, key) in (0..).map(Position).zip(["a", "b1", "b2", "b3", "c"]) {
        let (key, value) = (Bytes::from(key), Bytes::from("v"));
        state.apply(position, Update::Put { key, value });
    }
    let names = |page: &Page<Held>| -> Vec<Bytes> {
        page.entries.iter().map(|(key, _)| key.clone()).collect()
    };

    let first = state.scan(&Keys::prefix("b"), 2);
    let second = state.scan(&Keys::prefix("b").after("b2"), 2);

    assert_eq!(
        (names(&first), first.more),
        (vec!["b1".into(), "b2".into()], true)
    );
    assert_eq!((names(&second), second.more), (vec!["b3".into()], false));
    assert_eq!(
        state.scan(&Keys::prefix("b").after("b3"), 2),
        Page::default()
    );
    assert!(state.scan(&Keys::all(), 0).more);
}
