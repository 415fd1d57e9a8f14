//! Why a command did not do what it was asked: one sentence, and the exit code that says what kind of trouble it is.
//!
//! `error: what; expected …; try …`. What the libraries say of an error is kept; only the kind is chosen here.

use std::fmt;
use std::process::ExitCode;

use milonga_client::object::keeping::KeepError;
use milonga_client::object::lock::LockError;
use milonga_client::object::map::LeaseError;
use milonga_client::object::{
    AtError, DecideError, OpenError, PlayError, RollBackError, SnapshotError, UpdateError,
};
use milonga_client::reconfigure::{
    ChangeError, HandError, InitError, PlanError, RepairError, ResetError,
};
use milonga_client::{AppendError, ReadError, ServerFailure, TrimError, Unavailable};
use milonga_host::CallError;
use milonga_wire::Refusal;

use crate::bench::BenchError;

/// What kind of trouble: the process's exit code.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Code {
    /// Refused or failed: the same again brings the same.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Servers are silent, or too few: a retry may help.
    Unavailable = 3,
    /// A precondition does not hold.
    Conflict = 4,
    /// What was asked for is not there.
    NotFound = 5,
    /// Whether it was done is not known yet.
    Unknown = 6,
    /// Damage, or a broken invariant, was found.
    Damage = 10,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a command failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// One sentence.
    text: String,
}

/// What a command ends with.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure of that kind.
    pub fn new(code: Code, text: impl fmt::Display) -> Self {
        let text = text.to_string();
        Self { code, text }
    }

    /// Refused or failed.
    pub fn failed(text: impl fmt::Display) -> Self {
        Self::new(Code::Failed, text)
    }

    /// The command line makes no sense.
    pub fn usage(text: impl fmt::Display) -> Self {
        Self::new(Code::Usage, text)
    }

    /// A file or directory that cannot be used.
    pub fn file(path: &std::path::Path, why: impl fmt::Display) -> Self {
        Self::failed(format!("cannot use {}: {why}", path.display()))
    }

    /// The same, said of `subject`.
    #[must_use]
    pub fn about(self, subject: impl fmt::Display) -> Self {
        Self {
            text: format!("{subject}: {}", self.text),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// What a server's no means for the exit code.
fn code_of(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Busy { .. }
        | Refusal::Draining
        | Refusal::Unconfirmed { .. }
        | Refusal::StaleTerm { .. }
        | Refusal::FutureTerm { .. }
        | Refusal::NotAnnounced { .. }
        | Refusal::NotBootstrapped { .. }
        | Refusal::WrongIncarnation { .. }
        | Refusal::Outranked { .. }
        | Refusal::Decided { .. }
        | Refusal::Behind { .. } => Code::Unavailable,
        Refusal::AlreadyInitialised | Refusal::InUse { .. } => Code::Conflict,
        Refusal::WrongCluster { .. }
        | Refusal::WrongServer { .. }
        | Refusal::WrongRole { .. }
        | Refusal::Unknown { .. }
        | Refusal::OutOfWindow { .. }
        | Refusal::BeyondEnd { .. }
        | Refusal::Trimmed { .. }
        | Refusal::Unsettled { .. }
        | Refusal::DiskFull
        | Refusal::DiskFailed { .. }
        | Refusal::TooLarge { .. }
        | Refusal::Malformed { .. }
        | Refusal::WrongKind { .. }
        | Refusal::NotListed
        | Refusal::TermJump { .. } => Code::Failed,
    }
}

/// The same of a server that refused, or did not answer.
fn code_of_server(failure: &ServerFailure) -> Code {
    match failure {
        ServerFailure::Refused { refusal, .. } => code_of(refusal),
        ServerFailure::Call(CallError::Protocol { .. }) => Code::Failed,
        ServerFailure::Call(_) => Code::Unavailable,
    }
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        let code = match &error {
            Unavailable::Deadline { .. } => Code::Unavailable,
            Unavailable::Refused { refusal, .. } => code_of(refusal),
            Unavailable::Protocol { .. } => Code::Failed,
            Unavailable::Diverged { .. } => Code::Damage,
        };
        let hint = match code {
            Code::Unavailable => "; try again, or look with `milonga cluster status`",
            Code::Damage => "; stop writing and look with `milonga cluster status`",
            _ => "",
        };
        Self::new(code, format!("{error}{hint}"))
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let ReadError::Unavailable(error) = error;
        error.into()
    }
}

impl From<TrimError> for Failure {
    fn from(error: TrimError) -> Self {
        match error {
            TrimError::Unavailable(error) => error.into(),
            error @ TrimError::BeyondEnd { .. } => Self::new(Code::Conflict, error),
        }
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NotAppended { why } => Self::from(why).about("not appended"),
            AppendError::Partly { positions, why } => {
                let there = positions.iter().flatten().count();
                let text = format!("{there} of {} records were appended", positions.len());
                Self::from(why).about(text)
            }
            AppendError::Unknown { saved, why, .. } => Self::new(
                Code::Unknown,
                format!(
                    "whether it was appended is not known yet ({why}); \
                     try `milonga log append --resume {saved}`"
                ),
            ),
        }
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Unavailable(error) => error.into(),
            BenchError::Append(error) => (*error).into(),
            BenchError::Read(error) => error.into(),
            BenchError::Nothing { .. } => Self::new(Code::Unavailable, error),
            BenchError::Baseline(_) | BenchError::Objects(_) | BenchError::OwnCluster => {
                Self::failed(error)
            }
        }
    }
}

impl From<PlayError> for Failure {
    fn from(error: PlayError) -> Self {
        match error {
            PlayError::Unavailable(error) => error.into(),
            PlayError::Trimmed(_)
            | PlayError::Operation { .. }
            | PlayError::Unopened(_)
            | PlayError::Gone(_)
            | PlayError::InLog(_)
            | PlayError::TooMuch { .. } => Self::failed(error),
            PlayError::Lost(_) | PlayError::Snapshot { .. } => Self::new(Code::Damage, error),
            PlayError::Undecided { .. } => Self::new(Code::Unavailable, error),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::OtherKind { .. } => Self::new(Code::Conflict, error),
            OpenError::TooLong { .. } => Self::failed(error),
            OpenError::Play(error) => error.into(),
            OpenError::Decide(error) => error.into(),
        }
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        match error {
            LockError::TooShort { .. } => Self::failed(error),
            LockError::Play(error) => error.into(),
            LockError::Decide(error) => error.into(),
        }
    }
}

impl From<KeepError> for Failure {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Play(error) => error.into(),
            KeepError::Decide(error) => error.into(),
            KeepError::Open(error) => error.into(),
            KeepError::Lock(error) => error.into(),
            KeepError::Snapshot(error) => error.into(),
            KeepError::Trim(error) => error.into(),
        }
    }
}

impl From<RollBackError> for Failure {
    fn from(error: RollBackError) -> Self {
        match error {
            RollBackError::Nothing => Self::new(Code::Usage, error),
            RollBackError::NotFound(_) => Self::new(Code::NotFound, error),
            RollBackError::UnknownKind { .. } => Self::failed(error),
            RollBackError::Open(error) => error.into(),
            RollBackError::At(error) => error.into(),
            RollBackError::Update(error) => error.into(),
            RollBackError::Undecided { .. } => Self::new(Code::Unknown, error),
            RollBackError::Late => Self::new(Code::Unavailable, error),
        }
    }
}

impl From<LeaseError> for Failure {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::TooShort { .. } => Self::failed(error),
            LeaseError::Ended { .. } => Self::new(Code::Conflict, error),
            LeaseError::Decide(error) => error.into(),
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Play(error) => error.into(),
            SnapshotError::Update(error) => error.into(),
        }
    }
}

impl From<AtError> for Failure {
    fn from(error: AtError) -> Self {
        match error {
            AtError::Play(error) => error.into(),
            AtError::BeyondEnd { .. } => Self::new(Code::NotFound, error),
        }
    }
}

impl From<UpdateError> for Failure {
    fn from(error: UpdateError) -> Self {
        match error {
            UpdateError::TooLarge { .. } | UpdateError::TooMany { .. } => Self::failed(error),
            UpdateError::NotAppended { why } => Self::from(why).about("not written"),
            UpdateError::Unknown { saved, why } => Self::new(
                Code::Unknown,
                format!(
                    "whether it was written is not known yet: {why}; expected an answer within the deadline; \
                     try `milonga log append --resume {saved}`"
                ),
            ),
        }
    }
}

impl From<DecideError> for Failure {
    fn from(error: DecideError) -> Self {
        match error {
            DecideError::Update(error) => error.into(),
            DecideError::Undecided { .. } => Self::new(Code::Unknown, error),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Protocol { .. } => Self::failed(error),
            CallError::NotSent { .. } | CallError::Lost { .. } | CallError::Deadline { .. } => {
                Self::new(Code::Unavailable, error)
            }
        }
    }
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        let code = match &error {
            ChangeError::Plan(PlanError::TooManySegments | PlanError::Refused(_))
            | ChangeError::Stuck { .. } => Code::Failed,
            ChangeError::Server(failure) => code_of_server(failure),
            ChangeError::Plan(_)
            | ChangeError::Layouts(_)
            | ChangeError::NoSequencer(_)
            | ChangeError::Outranked
            | ChangeError::Copy(_)
            | ChangeError::Unconfirmed(_)
            | ChangeError::Unproved(_)
            | ChangeError::NotHeld { .. }
            | ChangeError::NoMajority { .. } => Code::Unavailable,
        };
        let hint = match code {
            Code::Unavailable => "; try again when the servers it names run",
            _ => "",
        };
        Self::new(code, format!("no new term was made: {error}{hint}"))
    }
}

impl From<HandError> for Failure {
    fn from(error: HandError) -> Self {
        let code = match error {
            HandError::Unavailable(error) => return error.into(),
            HandError::Change(error) => return error.into(),
            HandError::Role { .. } => Code::Failed,
            HandError::Senseless(_) => Code::Usage,
            HandError::NotFound { .. } => Code::NotFound,
            HandError::Precondition(_) => Code::Conflict,
            HandError::Stranger { .. } | HandError::Overtaken(_) => Code::Unavailable,
        };
        Self::new(code, error)
    }
}

impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        let code = match &error {
            InitError::NotBlank { .. } => Code::Conflict,
            InitError::Server(failure) => code_of_server(failure),
            InitError::Unfinished(_) => Code::Unavailable,
            InitError::WrongKind { .. } | InitError::Invalid(_) => Code::Failed,
        };
        Self::new(code, error)
    }
}

impl From<RepairError> for Failure {
    fn from(error: RepairError) -> Self {
        match error {
            RepairError::Change(error) => error.into(),
            RepairError::Unit(error) => Self::from(error).about("not repaired"),
            error @ RepairError::Layouts(_) => Self::new(Code::Unavailable, error),
            error @ RepairError::NotListed(_) => Self::new(Code::NotFound, error),
            error @ RepairError::WrongRole(_) => Self::failed(error),
        }
    }
}

impl From<ResetError> for Failure {
    fn from(error: ResetError) -> Self {
        let code = match &error {
            ResetError::Layouts(_) | ResetError::HalfDecided(_) => Code::Unavailable,
            ResetError::Listed { .. } => Code::Conflict,
            ResetError::WrongKind(_) | ResetError::Another(_) => Code::Failed,
            ResetError::Server(failure) => code_of_server(failure),
        };
        Self::new(code, error)
    }
}

/// Errors of the start of a server: all are refusals.
macro_rules! refused {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::failed(error)
            }
        })*
    };
}

refused!(
    milonga_client::ConfigError,
    milonga_client::ConnectError,
    milonga_host::admin::AdminError,
    milonga_host::certificates::CertificateError,
    milonga_host::quic::BindError,
    milonga_host::tls::CredentialsError,
    milonga_layout::ConfigError,
    milonga_layout::OpenError,
    milonga_logunit::InvalidConfig,
    milonga_logunit::store::OpenError,
    milonga_sequencer::ConfigError,
    milonga_wire::InvalidName,
);

#[cfg(test)]
mod tests {
    use super::*;

    /// The exit codes are what scripts decide by.
    #[test]
    fn silence_may_pass_and_a_wrong_role_does_not() {
        let silent = Unavailable::Deadline {
            waited: std::time::Duration::from_secs(1),
            last: "no answer".to_owned(),
        };
        assert_eq!(Failure::from(silent).code, Code::Unavailable);
        let role = Unavailable::Refused {
            server: "s".to_owned(),
            refusal: Refusal::WrongRole {
                has: milonga_wire::Role::Reader,
                needs: milonga_wire::Role::Writer,
                verb: "take tokens".to_owned(),
            },
        };
        let append = AppendError::NotAppended { why: role };
        assert_eq!(Failure::from(append).code, Code::Failed);
    }
}
