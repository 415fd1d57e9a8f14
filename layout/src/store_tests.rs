//! What the acceptor's store keeps through crashes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use milonga_host::File;
use milonga_wire::Rank;

use super::*;
use crate::acceptor::tests::{CLUSTER, decided, identity, layout, rank};

/// A directory in memory that stops, fails or forgets at the operation a test names.
#[derive(Default)]
pub(crate) struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    /// What the process sees.
    names: BTreeMap<String, usize>,
    /// What a crash leaves: names as of the last `sync_names`.
    durable_names: BTreeMap<String, usize>,
    /// By number: what the process sees, and what a crash leaves of it.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    locked: bool,
    /// Operations that change something, until the power goes.
    operations_left: Option<usize>,
    /// Syncs that still succeed, until one fails.
    syncs_left: Option<usize>,
    full: bool,
}

struct Open {
    memory: Arc<Memory>,
    number: usize,
}

fn gone() -> io::Error {
    io::Error::other("the power is gone")
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The state, if there is power for one more operation.
    fn changing(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match &mut state.operations_left {
            Some(0) => return Err(gone()),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    pub(crate) fn fail_sync_after(&self, count: usize) {
        self.state().syncs_left = Some(count);
    }

    pub(crate) fn fill(&self) {
        self.state().full = true;
    }

    /// Another process start on what is left after a crash. `keep_names` leaves unsynced names, as a file system may.
    pub(crate) fn crashed(&self, keep_names: bool) -> Arc<Handle> {
        let state = self.state();
        let names = if keep_names {
            state.names.clone()
        } else {
            state.durable_names.clone()
        };
        let files = state
            .files
            .iter()
            .map(|(_, durable)| (durable.clone(), durable.clone()))
            .collect();
        Arc::new(Handle(Arc::new(Self(Mutex::new(State {
            durable_names: names.clone(),
            names,
            files,
            ..State::default()
        })))))
    }

    /// Changes the bytes of a file behind everyone's back.
    fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let number = state.names[name];
        change(&mut state.files[number].0);
    }

    fn rename_quietly(&self, from: &str, to: Option<&str>) {
        let mut state = self.state();
        let number = state.names.remove(from).unwrap();
        if let Some(to) = to {
            state.names.insert(to.to_owned(), number);
        }
    }
}

/// [`Disk`] needs the memory itself to open files of it.
pub(crate) struct Handle(pub(crate) Arc<Memory>);

impl Handle {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Memory::new()))
    }
}

impl Disk for Handle {
    fn lock(&self) -> io::Result<()> {
        let mut state = self.0.state();
        if state.locked {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        state.locked = true;
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let number = *self
            .0
            .state()
            .names
            .get(name)
            .ok_or(io::ErrorKind::NotFound)?;
        let memory = Arc::clone(&self.0);
        Ok(Arc::new(Open { memory, number }))
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.changing()?;
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = state.files.len();
        state.files.push((vec![0; size as usize], vec![]));
        state.names.insert(name.to_owned(), number);
        drop(state);
        self.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.changing()?;
        let number = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.changing()?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.0.changing()?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 30)
    }
}

impl File for Open {
    fn size(&self) -> u64 {
        self.memory.state().files[self.number].0.len() as u64
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.memory.changing()?;
        let mut at = offset as usize;
        for part in parts {
            state.files[self.number].0[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        // Half of it may reach the disk at once.
        let (seen, durable) = &mut state.files[self.number];
        *durable = seen[..seen.len() / 2].to_vec();
        Ok(())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.memory.state();
        let bytes = state.files[self.number]
            .0
            .get(offset as usize..offset as usize + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.memory.changing()?;
        match &mut state.syncs_left {
            Some(0) => {
                state.syncs_left = None; // The next would say yes, as real ones do (H30).
                return Err(io::Error::other("input/output error"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let (seen, durable) = &mut state.files[self.number];
        durable.clone_from(seen);
        Ok(())
    }

    fn map(&self) -> io::Result<Bytes> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn name() -> ServerName {
    "l-1".parse().unwrap()
}

fn open(disk: Arc<Handle>) -> Result<(Store, Found), OpenError> {
    Store::open(disk, CLUSTER, &name(), identity(1))
}

fn vote(term: u64, number: u64) -> Change {
    Change::Vote(Vote {
        term: Term(term),
        promised: rank(number),
        accepted: Some((rank(number), Arc::new(layout(term, "a")))),
    })
}

fn decision(term: u64) -> Change {
    Change::Decided(Arc::new(decided(layout(term, "a"))))
}

/// A change of each kind, and a vote in place of another.
fn changes() -> Vec<Change> {
    vec![decision(0), vote(1, 1), vote(1, 2), decision(1), vote(2, 1)]
}

/// The vote's rank and the number of decisions after the first `count` changes.
fn after(count: usize) -> (Option<(Term, Rank)>, usize) {
    let mut state = (None, 0);
    for change in changes().into_iter().take(count) {
        match change {
            Change::Vote(vote) => state.0 = Some((vote.term, vote.promised)),
            Change::Decided(_) => state.1 += 1,
        }
    }
    state
}

fn state_of(found: &Found) -> (Option<(Term, Rank)>, usize) {
    let vote = found.vote.as_ref().map(|vote| (vote.term, vote.promised));
    (vote, found.decided.len())
}

/// V1.
#[test]
fn what_was_committed_is_found_again() {
    let disk = Handle::new();
    let (mut store, found) = open(Arc::clone(&disk)).unwrap();
    assert_eq!(state_of(&found), (None, 0));
    for change in changes() {
        store.commit(&change).unwrap();
    }

    let (_, found) = open(disk.0.crashed(false)).unwrap();

    assert_eq!(found.format.identity, identity(1));
    assert_eq!(Change::Vote(found.vote.unwrap()), vote(2, 1));
    assert_eq!(found.decided[1], decided(layout(1, "a")));
    assert_eq!(found.decided.len(), 2);
}

/// V1: whatever the operation at which the power goes, what was committed is there, and of the change under way either
/// all or nothing.
#[test]
fn a_crash_at_any_point_leaves_the_state_before_or_after() {
    let mut crashes = 0;
    for operations in 0.. {
        let disk = Handle::new();
        disk.0.state().operations_left = Some(operations);
        let mut committed = None;
        if let Ok((mut store, _)) = open(Arc::clone(&disk)) {
            let taken = changes()
                .iter()
                .take_while(|c| store.commit(c).is_ok())
                .count();
            committed = Some(taken);
        }
        for keep_names in [false, true] {
            let (mut store, found) = open(disk.0.crashed(keep_names)).unwrap();
            let state = state_of(&found);
            let done = committed.unwrap_or(0);
            assert!(
                state == after(done) || state == after(done + 1),
                "{operations} operations, {done} changes: {state:?}"
            );
            if state == (None, 0) {
                store.commit(&decision(0)).unwrap(); // It goes on from there.
            }
        }
        if committed == Some(changes().len()) {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 20, "{crashes} points were tried");
}

/// V2, H30: after a failed sync no later change is taken, though the disk would say yes.
#[test]
fn a_failed_sync_ends_all_changes_until_a_restart() {
    let disk = Handle::new();
    let (mut store, _) = open(Arc::clone(&disk)).unwrap();
    store.commit(&decision(0)).unwrap();
    disk.0.fail_sync_after(0);

    assert!(store.commit(&vote(1, 1)).is_err());
    assert!(store.commit(&vote(1, 2)).is_err());

    assert!(store.failed().unwrap().contains("input/output"));
    let (_, found) = open(disk.0.crashed(true)).unwrap();
    assert_eq!(state_of(&found), after(1));
}

/// V3: refused at the start, with the reason.
#[test]
fn a_directory_of_another_cluster_server_or_process_is_refused() {
    let disk = Handle::new();
    let _store = open(Arc::clone(&disk)).unwrap();

    assert!(matches!(open(Arc::clone(&disk)), Err(OpenError::Locked)));
    let other = ClusterId([8; 16]);
    let refused = Store::open(disk.0.crashed(false), other, &name(), identity(1));
    assert!(matches!(refused, Err(OpenError::WrongCluster { .. })));
    let other = "l-2".parse().unwrap();
    let refused = Store::open(disk.0.crashed(false), CLUSTER, &other, identity(1));
    assert!(matches!(refused, Err(OpenError::WrongServer { .. })));
}

/// V3: the identity that is there is kept, whatever a start would give a blank directory.
#[test]
fn a_formatted_directory_keeps_its_identity() {
    let disk = Handle::new();
    drop(open(Arc::clone(&disk)).unwrap());

    let again = Store::open(disk.0.crashed(false), CLUSTER, &name(), identity(2));

    assert_eq!(
        again.map(|(_, found)| found.format.identity).ok(),
        Some(identity(1))
    );
}

/// V3: somebody else's files are never taken for a blank directory.
#[test]
fn a_directory_that_is_no_layout_servers_is_refused() {
    let disk = Handle::new();
    disk.create("entries-0", 100).unwrap();
    assert!(matches!(open(disk), Err(OpenError::Foreign { file }) if file == "entries-0"));

    let disk = Handle::new();
    disk.create("identity", 100).unwrap();
    assert!(matches!(open(disk), Err(OpenError::Foreign { file }) if file == "identity"));

    let disk = Handle::new();
    disk.create("lost+found", 0).unwrap();
    disk.create("new", 7).unwrap();
    assert!(open(disk).is_ok(), "neither is anybody's");
}

/// V3: every byte of every file counts.
#[test]
fn a_damaged_file_is_named_and_nothing_is_served_from_it() {
    let whole = Handle::new();
    let (mut store, _) = open(Arc::clone(&whole)).unwrap();
    for change in changes() {
        store.commit(&change).unwrap();
    }

    for name in ["vote", "decided-00000000000000000001", "identity"] {
        let size = whole.open(name).unwrap().size() as usize;
        for byte in 0..size {
            let disk = whole.0.crashed(false);
            disk.0.damage(name, |bytes| bytes[byte] ^= 0x10);
            let refused = open(disk).map(|_| ()).unwrap_err();
            assert!(refused.to_string().contains(name), "byte {byte}: {refused}");
        }
    }
    for (from, to) in [
        ("decided-00000000000000000000", None),
        (
            "decided-00000000000000000001",
            Some("decided-00000000000000000002"),
        ),
    ] {
        let disk = whole.0.crashed(false);
        disk.0.rename_quietly(from, to);
        assert!(matches!(open(disk), Err(OpenError::Damaged { .. })));
    }
    let disk = whole.0.crashed(false);
    disk.0.damage("vote", |bytes| bytes.truncate(3));
    assert!(matches!(open(disk), Err(OpenError::Damaged { .. })));
}

/// V3: an older program does not touch what a newer one wrote.
#[test]
fn a_newer_format_is_refused_by_its_version() {
    let whole = Handle::new();
    drop(open(Arc::clone(&whole)).unwrap());
    let disk = whole.0.crashed(false);
    disk.0.damage("identity", |bytes| bytes[8] = 2);

    let refused = open(disk).map(|_| ()).unwrap_err();

    assert!(matches!(refused, OpenError::Version { found: 2, .. }));
}
