//! A short scheduling slice for threads that answer the network or the disk.
//!
//! Where another program keeps the processor busy, a thread that wakes up after I/O waits for that program's slice to
//! end: milliseconds, where the I/O took a tenth of one. A thread that asks for a short slice is let in sooner. It gets
//! no larger share of the processor, and needs no privilege (Linux 6.12 and later; before, asking changes nothing).

/// 100 µs: what one batch of requests takes.
const SLICE_NANOS: u64 = 100_000;

/// Asks for a short slice for the calling thread and those it starts later. A refusal is ignored: all that is lost is speed.
pub fn ask_for_short_slice() {
    let _ = set_slice(SLICE_NANOS);
}

/// There is no safe wrapper of this call, in the standard library or in `rustix`.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn set_slice(nanos: u64) -> bool {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: nanos,
        sched_deadline: 0,
        sched_period: 0,
    };
    let this_thread: libc::pid_t = 0;
    let no_flags: libc::c_uint = 0;
    // SAFETY: `sched_setattr` reads `attributes`, whose `size` is its own, and keeps no pointer to it. It changes nothing
    // but how the kernel schedules the calling thread.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            this_thread,
            &raw const attributes,
            no_flags,
        )
    };
    outcome == 0
}

#[cfg(not(target_os = "linux"))]
fn set_slice(_nanos: u64) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ordinary process may ask: what the kernel makes of the number is its business.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_takes_the_request() {
        std::thread::spawn(|| {
            assert!(set_slice(SLICE_NANOS));
            ask_for_short_slice();
        })
        .join()
        .unwrap();
    }
}
