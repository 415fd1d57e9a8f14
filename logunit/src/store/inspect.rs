//! Prints and verifies a directory that no process has open.
