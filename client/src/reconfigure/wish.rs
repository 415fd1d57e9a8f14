//! What people may want changed, by names and addresses, and why it may not be.

use milonga_wire::{Role, Span};

use crate::calls::Failure;
use crate::reconfigure::drive::ChangeError;
use crate::trouble::Unavailable;

/// What somebody wants changed. Servers are named by name or, those that are new, by address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wish {
    /// The same servers in their present process starts, with a fresh sequencer.
    Rebuild,
    /// A unit leaves every chain; a spare, if there is one, takes its place in the same term.
    Evict {
        /// The unit.
        unit: String,
        /// Whether what only it holds is given up.
        force: bool,
    },
    /// A unit's place in the open segment is taken by another.
    Replace {
        /// Who leaves.
        old: String,
        /// Who comes: a spare, or a new unit.
        new: String,
        /// Whether what only the old one holds is given up.
        force: bool,
    },
    /// A unit joins the end of a chain of the open segment.
    AddUnit {
        /// The chain's number.
        chain: usize,
        /// The unit.
        unit: String,
    },
    /// A unit leaves for good, and nobody takes its place.
    RemoveUnit {
        /// The unit.
        unit: String,
    },
    /// The open segment gets one more chain.
    AddChain {
        /// Its units, head first.
        units: Vec<String>,
    },
    /// The open segment loses a chain; what it holds of closed segments stays where it is.
    RemoveChain {
        /// Its number.
        chain: usize,
    },
    /// A unit stands ready from now on.
    AddSpare {
        /// The unit.
        unit: String,
    },
    /// A unit leaves, but not before another holds all that it holds.
    Drain {
        /// The unit.
        unit: String,
    },
    /// Chains that are short take spares, and closed ranges that are short are copied.
    Heal,
    /// A standby issues positions from now on.
    MoveSequencer {
        /// The standby.
        to: String,
    },
    /// A sequencer stands by from now on.
    AddStandby {
        /// Its address.
        sequencer: String,
    },
    /// A standby leaves.
    RemoveStandby {
        /// Its name.
        sequencer: String,
    },
    /// Who decides layouts from the next term on.
    SetLayoutServers {
        /// All of them: 1, 3 or 5.
        servers: Vec<String>,
    },
    /// Positions per stripe of the open segment.
    StripeWidth(u32),
    /// How many units a chain should have.
    Replicas(u16),
    /// Whether a restarted unit whose store shows every batch synced counts as complete.
    TrustRestarted(bool),
    /// What these positions held and no unit that answers holds is lost: nobody waits for it any longer.
    DeclareLost(Span),
}

impl Wish {
    /// The least role that may ask for it: what may lose data is the admin's.
    pub fn needs(&self) -> Role {
        match self {
            Self::Evict { force: true, .. }
            | Self::Replace { force: true, .. }
            | Self::DeclareLost(_) => Role::Admin,
            _ => Role::Control,
        }
    }

    /// Whether something may be lost by it.
    pub fn may_lose(&self) -> bool {
        self.needs() == Role::Admin
    }
}

/// Why a change that somebody asked for was not made. Unless it says otherwise nothing was sealed, and nothing changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandError {
    /// The certificate does not allow it. Nobody was asked anything.
    #[error(
        "a {has} certificate may not change the layout so; expected one of role {needs}; try `milonga certs issue --role {needs}`"
    )]
    Role {
        /// The caller's.
        has: Role,
        /// The least that may.
        needs: Role,
    },
    /// It makes no sense with any layout.
    #[error("{0}")]
    Senseless(String),
    /// The layout has no such server or chain.
    #[error("the layout has no {what} {wanted}; expected one of: {}", .there.join(", "))]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// By which name or number.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// It does not go with this layout, or with what a server is.
    #[error("{0}")]
    Precondition(String),
    /// A server that must take part does not answer as one of this cluster.
    #[error(
        "{address} does not answer as a {kind} of this cluster: {why}; expected a running server with a certificate of this cluster's authority; try its address, and look at its log"
    )]
    Stranger {
        /// As it was named.
        address: String,
        /// What it should be.
        kind: &'static str,
        /// What it, or the network, said.
        why: Failure,
    },
    /// The layout was not read.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It was begun and did not come about, or is not in effect yet.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Others changed the layout each time.
    #[error("others changed the layout {0} times meanwhile; try again")]
    Overtaken(u32),
}
