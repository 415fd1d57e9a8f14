//! `milonga bench`: measures the cluster, and beside it the same machine with nothing in between.

use super::{Context, wait};
use crate::bench::{self, BenchError};
use crate::failure::{Code, Failure, Outcome};

/// What is measured.
#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    #[command(flatten)]
    args: bench::Args,
}

impl Bench {
    pub(super) fn run(self, context: &Context) -> Outcome {
        milonga_host::ask_for_short_slice();
        wait(async {
            let log = context.cluster.connect()?;
            let report = bench::run(&log, &self.args).await?;
            context.output.one(&report, || report.text())
        })
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        let code = match &error {
            BenchError::Unavailable(_) | BenchError::Nothing { .. } => Code::Unavailable,
            BenchError::Append(_) | BenchError::Read(_) | BenchError::Baseline(_) => Code::Failed,
        };
        Self::new(code, error)
    }
}
