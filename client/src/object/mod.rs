//! Replicated objects: deterministic state machines fed by a stream of the log.
