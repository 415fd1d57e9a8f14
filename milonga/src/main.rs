//! The `milonga` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    milonga::cli::main()
}
