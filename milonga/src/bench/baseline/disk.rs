//! Group commit by itself: a group of records, their checksums, one write, one sync.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use milonga_host::{Disk, File, FsDisk, Host};

use crate::bench::append::record;
use crate::bench::meter::{Meter, Plan, Sample};

/// Bytes of a bare unit's file. It is written round and round.
pub(super) const FILE_BYTES: u64 = 128 << 20;
/// Bytes before each record: its length, its checksum, its position.
const RECORD_HEAD: usize = 16;

/// A file whose every block was written before: writing into it moves no metadata.
pub(super) struct Ring {
    file: Arc<dyn File>,
    at: u64,
    batch: Vec<u8>,
}

impl Ring {
    /// Makes `name` in `disk`, and zeroes it.
    pub(super) fn create(disk: &FsDisk, name: &str) -> io::Result<Self> {
        const STEP: usize = 1 << 20;
        let file = disk.create(name, FILE_BYTES)?;
        let zeros = vec![0; STEP];
        for at in (0..FILE_BYTES).step_by(STEP) {
            file.write_at(at, &[IoSlice::new(&zeros)])?;
        }
        file.sync()?;
        disk.sync_names()?;
        Ok(Self {
            file,
            at: 0,
            batch: Vec::with_capacity(STEP),
        })
    }

    /// Adds a record to the group.
    pub(super) fn push(&mut self, position: u64, record: &[u8]) {
        let checksum = crc32fast::hash(record);
        self.batch
            .extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.batch.extend_from_slice(&checksum.to_le_bytes());
        self.batch.extend_from_slice(&position.to_le_bytes());
        self.batch.extend_from_slice(record);
    }

    /// Makes the group durable.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        if self.at + self.batch.len() as u64 > FILE_BYTES {
            self.at = 0;
        }
        self.file.write_at(self.at, &[IoSlice::new(&self.batch)])?;
        self.file.sync()?;
        self.at += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }
}

/// Groups of `group` records of `size` bytes, one after the other. Blocks the calling thread, as a unit's is.
pub(super) fn measure(
    host: &Host,
    dir: &Path,
    size: u32,
    group: u32,
    plan: Plan,
) -> io::Result<Sample> {
    let folder = tempfile::Builder::new()
        .prefix(".milonga-bench-")
        .tempdir_in(dir)?;
    let mut ring = Ring::create(&FsDisk::at(folder.path())?, "ring")?;
    let record = record(size);
    debug_assert!((RECORD_HEAD as u64 + u64::from(size)) * u64::from(group) < FILE_BYTES);
    let meter = Meter::start(&host.clock, plan);
    let mut now = host.clock.now();
    while let Some(began) = meter.begin(now) {
        for number in 0..group {
            ring.push(u64::from(number), &record);
        }
        ring.commit()?;
        now = meter.end(began, true);
    }
    let mut sample = meter.sample();
    sample.operations *= u64::from(group);
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_goes_round_and_keeps_whole_groups() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::create(&FsDisk::at(folder.path()).unwrap(), "ring").unwrap();
        ring.at = FILE_BYTES - 100;
        ring.push(1, &[7; 200]);
        ring.commit().unwrap();

        assert_eq!(ring.at, 216);
        let mut read = [0; 216];
        ring.file.read_at(0, &mut read).unwrap();
        assert_eq!(read[..4], 200_u32.to_le_bytes());
        assert_eq!(read[RECORD_HEAD..], [7; 200]);
    }
}
