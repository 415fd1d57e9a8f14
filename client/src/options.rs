//! What a client may be told: waits and bounds, each with a default that fits one region.

use std::time::Duration;

/// Waits and bounds of a client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// How long an operation may take in all before it ends with a typed error.
    pub deadline: Duration,
    /// How long one call to one server may take before it is tried again.
    pub call: Duration,
    /// The least time a hole is left to its writer before it is settled.
    pub hole_wait_min: Duration,
    /// The most.
    pub hole_wait_max: Duration,
    /// Payload bytes that one read asks of one unit.
    pub read_bytes: u32,
    /// Whether reads settle the holes they meet (a reader's certificate never can: it reports them).
    pub settle: bool,
    /// Whether a control certificate mends what it meets: finishes half-done terms, rebuilds the sequencer.
    pub mend: bool,
    /// Whether such a client also brings the cluster back to full strength in the background, when it sees that something is
    /// missing: spares, copies, units that left and answer again.
    pub attend: bool,
    /// How long a unit that was left out must have answered before a control client empties it and takes it back.
    pub steady: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            call: Duration::from_secs(1),
            hole_wait_min: Duration::from_millis(20),
            hole_wait_max: Duration::from_millis(500),
            read_bytes: 1 << 20,
            settle: true,
            mend: true,
            attend: true,
            steady: Duration::from_secs(60),
        }
    }
}
