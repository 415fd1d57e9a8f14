//! `milonga certs`: the cluster's own authority, and what it issues.

use std::path::PathBuf;

use clap::Subcommand;
use milonga_host::certificates::{self, CertificateError, Details};
use milonga_host::{Clock, Random};
use milonga_wire::{Role, ServerName};
use serde::Serialize;

use super::Context;
use crate::failure::{Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum Certs {
    /// Makes the authority of a new cluster.
    #[command(after_help = "Example:
  milonga certs init --dir certs")]
    Init {
        /// Where its files go.
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
        /// How many days it is valid.
        #[arg(long, default_value_t = 3_650)]
        days: u32,
        /// Replaces an authority: every certificate it issued becomes useless.
        #[arg(long)]
        force: bool,
    },
    /// Issues a certificate.
    #[command(after_help = "Example:
  milonga certs issue --dir certs --role server --name unit-1 --host 10.0.0.1
  milonga certs issue --dir certs --role writer --name app --days 90")]
    Issue {
        /// Where the authority is, and where the certificate goes.
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
        /// What it is good for: reader, writer, control, admin, server (or logunit, sequencer, layout).
        #[arg(long)]
        role: Role,
        /// Whom it names.
        #[arg(long)]
        name: ServerName,
        /// A host name or address, for programs that check them.
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How many days it is valid.
        #[arg(long, default_value_t = 365)]
        days: u32,
        /// Replaces one of that name.
        #[arg(long)]
        force: bool,
    },
    /// Shows what a certificate says.
    #[command(after_help = "Example:
  milonga certs show certs/unit-1.pem")]
    Show {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Serialize)]
struct Made {
    cluster: String,
    authority: PathBuf,
    key: PathBuf,
}

impl Certs {
    pub(super) fn run(self, context: &Context) -> Outcome {
        match self {
            Self::Init { dir, days, force } => {
                let (clock, random) = (Clock::real(), Random::real());
                let id = certificates::create_authority(&dir, &clock, &random, days, force)?;
                let made = Made {
                    cluster: id.to_string(),
                    authority: dir.join("ca.pem"),
                    key: dir.join("ca.key"),
                };
                context.output.one(&made, || {
                    format!(
                        "cluster    {id}\nauthority  {}   every member needs it\nkey        {}   keep it where certificates are issued, nowhere else",
                        made.authority.display(),
                        made.key.display()
                    )
                })
            }
            Self::Issue {
                dir,
                role,
                name,
                hosts,
                days,
                force,
            } => {
                let clock = Clock::real();
                let issued = certificates::issue(&dir, role, &name, &hosts, &clock, days, force)?;
                context.output.one(&issued, || {
                    format!(
                        "certificate  {}\nkey          {}\nauthority    {}\nCopy all three to where {name} runs.",
                        issued.certificate.display(),
                        issued.key.display(),
                        issued.authority.display()
                    )
                })
            }
            Self::Show { file } => {
                let details = certificates::show(&file).map_err(|error| match error {
                    error @ (CertificateError::NotPem { .. }
                    | CertificateError::NotMilonga { .. }) => {
                        Failure::from(error).about(file.display())
                    }
                    error => error.into(),
                })?;
                context.output.one(&details, || text(&details))
            }
        }
    }
}

fn text(details: &Details) -> String {
    let name = details.name.as_deref().unwrap_or("-");
    format!(
        "cluster      {}\nrole         {}\nname         {name}\nvalid from   {}\nvalid until  {}\nissuer       {}\nfingerprint  {}",
        details.cluster,
        details.role,
        details.not_before,
        details.not_after,
        details.issuer,
        details.fingerprint
    )
}
