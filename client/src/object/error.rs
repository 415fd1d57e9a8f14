//! Why something about an object is not known, or did not happen.

use milonga_wire::Position;

use super::codec::{Named, OperationError, TooLarge};
use super::hosted::Stopped;
use super::image::ImageError;
use crate::append::AppendError;
use crate::read::ReadError;
use crate::resume::SavedAppend;
use crate::trouble::Unavailable;

/// Why an object could not be moved on. It stays at the position it has reached; what it holds there is right.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlayError {
    /// The log could not be read in time. Try again.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Updates from this position on were trimmed before they were played here, and there is no snapshot that holds them.
    #[error("updates from position {0} on were trimmed; the object cannot be replayed from there")]
    Trimmed(Position),
    /// Every log unit that answered has lost what this position held. Nothing behind it is applied before a unit that
    /// still holds it comes back, or an administrator declares it lost.
    #[error("what position {0} held is lost on the log units that answered; bring back the others")]
    Lost(Position),
    /// The record at this position is none that this program can apply. Every replica of this version stops there; other objects
    /// go on.
    #[error("position {position}: {why}")]
    Operation {
        /// Where.
        position: Position,
        /// Why.
        why: OperationError,
    },
    /// What became of the transaction at this position is not known: its writer has not told, and this program cannot decide it.
    #[error("what became of the transaction at position {position} is not known yet ({why})")]
    Undecided {
        /// Where.
        position: Position,
        /// Why it could not be decided here.
        why: String,
    },
    /// A transaction reads an object that was opened after it began, or by other [`super::Objects`].
    #[error("the {0} is not open here; open it before the transaction")]
    Unopened(Named),
    /// The value that was wanted is not at this position, where it stays: what lies there was trimmed by force, or the map has it
    /// elsewhere by now.
    #[error(
        "a value that stayed at position {0} of the log is not there any more; put the key again, or delete it"
    )]
    Gone(Position),
    /// The value that a transaction wanted stays in the log at this position: the transaction is run again once that is fetched. Its body
    /// passes this on.
    #[error("a value stays at position {0} of the log and is fetched; pass this error on")]
    InLog(Position),
    /// A transaction wants more bytes of values that stay in the log than this process may hold.
    #[error(
        "values of {asked} bytes that stay in the log; this process may hold {limit}; read fewer at once, or let it hold more (`--memory`, `Objects::hold`)"
    )]
    TooMuch {
        /// How many it has and wants.
        asked: u64,
        /// What was set.
        limit: u64,
    },
    /// A snapshot that is needed cannot be used.
    #[error("the snapshot at position {position}: {why}")]
    Snapshot {
        /// Where its manifest is.
        position: Position,
        /// What is wrong with it.
        why: ImageError,
    },
}

impl From<ReadError> for PlayError {
    fn from(ReadError::Unavailable(error): ReadError) -> Self {
        Self::Unavailable(error)
    }
}

impl From<Stopped> for PlayError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Operation(position, why) => Self::Operation { position, why },
            Stopped::Trimmed(position) => Self::Trimmed(position),
        }
    }
}

/// Why an update is not known to be in the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpdateError {
    /// Definite: nothing was appended. Something is larger than it may be.
    #[error("{what} of {asked} bytes; the limit is {limit}; split it")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size in bytes.
        asked: usize,
        /// The most allowed.
        limit: usize,
    },
    /// Definite: nothing was appended. A transaction writes more objects than one entry can belong to.
    #[error("a transaction that writes {asked} objects; the limit is {limit}; split it")]
    TooMany {
        /// How many it writes.
        asked: usize,
        /// The most allowed.
        limit: usize,
    },
    /// Definite: the update is not in the log, and will not be. Try again, or mend what `why` names.
    #[error("not updated: {why}")]
    NotAppended {
        /// What stood in the way.
        why: Unavailable,
    },
    /// The deadline passed. [`crate::Log::resume`] finds out about `saved`, from any process.
    #[error("whether the update is in the log is not known yet ({why}); resume with {saved}")]
    Unknown {
        /// Enough to find out.
        saved: Box<SavedAppend>,
        /// The last trouble.
        why: Unavailable,
    },
}

impl UpdateError {
    pub(crate) fn too_large(what: &'static str, limit: usize) -> impl FnOnce(TooLarge) -> Self {
        move |TooLarge { asked }| Self::TooLarge { what, asked, limit }
    }
}

impl From<AppendError> for UpdateError {
    fn from(error: AppendError) -> Self {
        match error {
            // One record has no part.
            AppendError::NotAppended { why } | AppendError::Partly { why, .. } => {
                Self::NotAppended { why }
            }
            AppendError::Unknown { saved, why, .. } => Self::Unknown { saved, why },
        }
    }
}

/// Why what an update brought about is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DecideError {
    /// It is not known to be in the log.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// It is in the log, where its outcome is decided for ever, but could not be played here. [`super::View::outcome_at`] tells
    /// the outcome once the log can be read again.
    #[error("updated at position {position}, with what outcome is not known yet: {why}")]
    Undecided {
        /// Where it is.
        position: Position,
        /// Why it could not be played.
        why: PlayError,
    },
}

/// Why there is no state as of a position.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AtError {
    /// The log is not that long.
    #[error("position {asked} lies at or above the end {end}; expected a position below it")]
    BeyondEnd {
        /// What was asked.
        asked: Position,
        /// The end.
        end: Position,
    },
    /// It could not be replayed up to there.
    #[error(transparent)]
    Play(#[from] PlayError),
}

/// Why an object could not be opened by its name.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// There is an object of that name, but it is something else.
    #[error("`{name}` is a {found}, not a {asked}; use another name")]
    OtherKind {
        /// The name.
        name: String,
        /// What was asked for.
        asked: &'static str,
        /// What it is.
        found: String,
    },
    /// No name may be longer than this.
    #[error("a name of {asked} bytes; the limit is {limit}")]
    TooLong {
        /// Its length.
        asked: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The directory could not be read.
    #[error("the directory: {0}")]
    Play(#[from] PlayError),
    /// The name could not be given, or is not known to be.
    #[error("the directory: {0}")]
    Decide(#[from] DecideError),
}

/// An object that a message is about.
impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in stream {}", self.kind, self.stream)
    }
}
