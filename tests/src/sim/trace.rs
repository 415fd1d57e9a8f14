//! What happened in a run, line by line, folded into one number (V1).

use std::collections::BTreeMap;
use std::io::Write as _;

/// The trace of one run: a hash of every line, and how often each thing worth counting happened.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    lines: u64,
    print: bool,
    counters: BTreeMap<&'static str, u64>,
}

impl Trace {
    /// An empty trace. With `print`, every line goes to the standard output as well.
    pub fn new(print: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: 0,
            print,
            counters: BTreeMap::new(),
        }
    }

    /// Adds a line at `at_us` of virtual time; `bytes` are hashed with it and not printed.
    pub fn line(&mut self, at_us: u64, text: &str, bytes: &[u8]) {
        self.lines += 1;
        let time = at_us.to_le_bytes();
        let fields = [time.as_slice(), text.as_bytes(), bytes];
        for byte in fields.into_iter().flatten() {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.print {
            let (seconds, rest) = (at_us / 1_000_000, at_us % 1_000_000);
            // A reader that went away must not change the run.
            let _ = writeln!(std::io::stdout(), "{seconds:6}.{rest:06} {text}");
        }
    }

    /// Counts `what` once more.
    pub fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// Counts `what` `times` more.
    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.counters.entry(what).or_default() += times;
    }

    /// The hash of all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// What was counted.
    pub fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V1 is only as good as the hash: time, text, bytes and order all have to show.
    #[test]
    fn every_part_of_a_line_changes_the_hash() {
        let hash = |lines: &[(u64, &str, &[u8])]| {
            let mut trace = Trace::new(false);
            for (at, text, bytes) in lines {
                trace.line(*at, text, bytes);
            }
            trace.hash()
        };
        let base = hash(&[(1, "a", &[1]), (2, "b", &[2])]);

        assert_eq!(base, hash(&[(1, "a", &[1]), (2, "b", &[2])]));
        for other in [
            hash(&[(2, "b", &[2]), (1, "a", &[1])]),
            hash(&[(1, "a", &[1]), (3, "b", &[2])]),
            hash(&[(1, "a", &[1]), (2, "c", &[2])]),
            hash(&[(1, "a", &[1]), (2, "b", &[3])]),
        ] {
            assert_ne!(base, other);
        }
    }
}
