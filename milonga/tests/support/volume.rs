//! A disk that a test may fill, stop or break: ext4 in a file, on a loop device. Needs root; leaves nothing behind, not even
//! when the test fails.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use milonga_host::Clock;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::ioctl::{Opcode, Setter, ioctl};
use tempfile::TempDir;

/// What the folders of all volumes begin with; the process that made them follows.
const PREFIX: &str = "milonga-volume-";
/// `FIFREEZE`: whatever would write waits from now on. `FITHAW`: it need not any more.
const FREEZE: Opcode = 0xc004_5877;
const THAW: Opcode = 0xc004_5878;
/// `EXT4_IOC_SHUTDOWN`, and its way that writes nothing more: every later write and sync is an I/O error.
const SHUT_DOWN: Opcode = 0x8004_587d;
const WRITE_NOTHING: u32 = 2;

/// An ext4 of its own, mounted until it is dropped.
pub(crate) struct Volume {
    home: TempDir,
}

impl Volume {
    /// An empty one of so many MiB. None, with the reason printed, where this machine or this user cannot have one.
    pub(crate) fn new(mebibytes: u64) -> Option<Self> {
        sweep();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let home = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let volume = Self { home };
        match volume.mount(mebibytes) {
            Ok(()) => Some(volume),
            Err(why) => {
                let skipped = format!(
                    "skipped: no disk to break ({why}); run as root, with e2fsprogs and loop devices"
                );
                // Past the test harness, which shows nothing of a test that passes.
                let _ = writeln!(std::io::stderr(), "{skipped}");
                None
            }
        }
    }

    fn mount(&self, mebibytes: u64) -> Result<(), String> {
        let (image, at) = (self.image(), self.path());
        let file = File::create(&image).map_err(|why| why.to_string())?;
        file.set_len(mebibytes << 20)
            .map_err(|why| why.to_string())?;
        std::fs::create_dir(&at).map_err(|why| why.to_string())?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&image)])?;
        run("mount", &["-o", "loop", text(&image), text(&at)])?;
        std::fs::create_dir(self.dir()).map_err(|why| why.to_string())
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    /// Where it is mounted.
    fn path(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    /// The server's directory on it.
    pub(crate) fn dir(&self) -> PathBuf {
        self.path().join("server")
    }

    /// Takes so many MiB away, for something that is none of the server's.
    pub(crate) fn take(&self, mebibytes: u64) {
        let file = File::create(self.path().join("other")).unwrap();
        let flags = FallocateFlags::empty();
        fallocate(&file, flags, 0, mebibytes << 20).unwrap();
    }

    /// Gives them back.
    pub(crate) fn give_back(&self) {
        std::fs::remove_file(self.path().join("other")).unwrap();
    }

    /// From now on every write and every sync fails, as on a disk that is gone.
    pub(crate) fn shut_down(&self) {
        tell::<SHUT_DOWN>(&self.path(), WRITE_NOTHING).unwrap();
    }

    /// Puts another, empty one in its place. Nobody may use the old one any more.
    pub(crate) fn exchange(&self, mebibytes: u64) {
        run("umount", &["--lazy", text(&self.path())]).unwrap();
        std::fs::remove_file(self.image()).unwrap();
        std::fs::remove_dir(self.path()).unwrap();
        self.mount(mebibytes).unwrap();
    }

    /// Lets whatever writes or syncs wait for as long as `still`, goes on for as long as `between`, and so on. It goes on for
    /// good when this is dropped.
    pub(crate) async fn stands_still(
        &self,
        still: Duration,
        between: Duration,
        times: u32,
        clock: &Clock,
    ) {
        for _ in 0..times {
            let frozen = Frozen::new(self.path());
            clock.sleep(still).await;
            drop(frozen);
            clock.sleep(between).await;
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: processes that were killed may not have ended yet.
        let _ = run("umount", &["--lazy", text(&self.path())]);
    }
}

/// A volume that stands still.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: PathBuf) -> Self {
        tell::<FREEZE>(&at, 0).unwrap();
        Self(at)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = tell::<THAW>(&self.0, 0);
    }
}

#[allow(unsafe_code)]
fn tell<const WHAT: Opcode>(at: &Path, argument: u32) -> std::io::Result<()> {
    let directory = File::open(at)?;
    // SAFETY: none of the three writes to what the argument points to, and it is as large as they say.
    unsafe { ioctl(&directory, Setter::<WHAT, u32>::new(argument)) }?;
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a tool printed.
fn run(tool: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(tool);
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|why| format!("{tool}: {why}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("it failed");
    Err(first.to_owned())
}

/// Removes what a test left that was killed.
fn sweep() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    for point in points {
        let owner = point
            .split_once(PREFIX)
            .and_then(|(_, rest)| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = tell::<THAW>(Path::new(point), 0);
            let _ = run("umount", &["--lazy", point]);
            let _ = Path::new(point).parent().map(std::fs::remove_dir_all);
        }
    }
}
