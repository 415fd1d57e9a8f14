//! A link that is slow and loses packets: for as long as it is there, what a node sends and receives goes through this process,
//! which keeps every packet for a while, or for good. No kernel's `netem` is needed, only TUN devices.
//!
//! ```text
//!   node: route to all others ─▶ tun ─▶ kept ─▶ tun ─▶ router
//!                                tun ◀─ kept ◀─ tun ◀─ route to the node
//! ```
//! Both routes are more specific than the node's usual ones, and go with the devices: dropping it gives the old link back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use milonga_host::{Clock, Moment, Random};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Setter, ioctl};

/// `TUNSETIFF`, and its flags for whole IP packets with nothing in front.
const SET_NAME: rustix::ioctl::Opcode = 0x4004_54ca;
const PACKETS_ONLY: u16 = 0x1001;
/// No packet is larger.
const PACKET_BYTES_MAX: usize = 64 << 10;
/// How long a stopped thread goes on at most.
const NAP: Duration = Duration::from_millis(20);

/// What it does to packets, each way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slow {
    pub(crate) delay: Duration,
    /// More or less than the delay by at most this, by chance: packets overtake each other.
    pub(crate) jitter: Duration,
    /// Of a thousand packets, this many are lost.
    pub(crate) lost: u64,
}

/// Such a link, until it is dropped.
pub(crate) struct SlowLink {
    stop: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl SlowLink {
    /// Carries packets from each of the two devices to the other.
    pub(super) fn new(devices: [File; 2], slow: Slow) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let carried = Arc::new(AtomicU64::new(0));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&carried));
        let thread = std::thread::spawn(move || {
            super::load::runtime().block_on(async { carry(&devices, slow, &until, &count) });
        });
        let thread = Some(thread);
        Self {
            stop,
            carried,
            thread,
        }
    }

    /// How many packets it has passed on, each as late as it should be.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A TUN device of that name in the namespace of this thread.
#[allow(unsafe_code)]
pub(super) fn device(name: &str) -> std::io::Result<File> {
    #[repr(C)]
    struct Named {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let mut named = Named {
        name: [0; 16],
        flags: PACKETS_ONLY,
        rest: [0; 22],
    };
    named.name[..name.len()].copy_from_slice(name.as_bytes());
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?.into();
    // SAFETY: what the call reads is as large as it says, a name that ends with a zero and flags.
    unsafe { ioctl(&file, Setter::<SET_NAME, Named>::new(named)) }?;
    Ok(file)
}

fn carry(devices: &[File; 2], slow: Slow, stop: &AtomicBool, carried: &AtomicU64) {
    let (clock, random) = (Clock::real(), Random::real());
    let mut kept: BTreeMap<(Moment, u64), (usize, Vec<u8>)> = BTreeMap::new();
    let (mut number, mut packet) = (0, vec![0; PACKET_BYTES_MAX]);
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        while let Some(first) = kept.first_entry()
            && first.key().0 <= now
        {
            let (to, packet) = first.remove();
            // A queue that is full loses packets, as queues do.
            let _ = (&devices[to]).write(&packet);
            carried.fetch_add(1, Ordering::Relaxed);
        }
        let due = kept.first_key_value().map(|((due, _), _)| due.since(now));
        wait(devices, due.map_or(NAP, |due| due.min(NAP)));
        for (from, mut device) in devices.iter().enumerate() {
            while let Ok(length) = device.read(&mut packet) {
                if random.below(1_000) < slow.lost {
                    continue;
                }
                let spread = slow.jitter.as_micros() as u64 * 2 + 1;
                let jitter = Duration::from_micros(random.below(spread));
                let due = clock
                    .now()
                    .plus((slow.delay + jitter).saturating_sub(slow.jitter));
                number += 1;
                kept.insert((due, number), (1 - from, packet[..length].to_vec()));
            }
        }
    }
}

/// Until one of them has a packet, or the time is over.
fn wait(devices: &[File; 2], within: Duration) {
    let mut polled = devices
        .each_ref()
        .map(|device| PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN));
    let within = Timespec {
        tv_sec: 0,
        tv_nsec: within.subsec_nanos().into(),
    };
    let _ = poll(&mut polled, Some(&within));
}
