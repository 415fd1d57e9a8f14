//! The caretaker: an ordinary control client beside a layout server, for when nobody else looks after the cluster.
//!
//! It looks around twice a second, and at once when a client suspects a server. Where a term is half done, or a server
//! that is needed was restarted or is gone, it mends; where the cluster is not at full strength, it heals; holes that
//! readers reported, it settles; a layout server that missed a layout, it teaches. Beside that it writes the snapshots that are due and
//! trims what nobody needs. Several caretakers may do so at once:
//! each step is idempotent, and their looks are jittered so that one of them is usually first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use milonga_client::object::Objects;
use milonga_client::object::keeping::Keeper;
use milonga_client::{Log, Options, reconfigure};
use milonga_host::{CredentialFiles, Host, Moment};
use milonga_layout::{Noted, Reports};
use milonga_wire::{Address, Decided, Position, Report, Role, ServerName, Span};

use crate::failure::{Failure, Outcome};
use crate::look::Sight;
use crate::node::Node;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// Before it mends, a caretaker waits less than this, by chance: so that of several one is first.
const HESITATION: Duration = Duration::from_millis(400);
/// How long a server may take to say who it is.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two attempts at what did not change meanwhile: from the first to the second, doubling.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// Positions settled for one report at most: whoever meets the rest reports it again.
const SETTLED_MAX: u64 = 65_536;

/// What distinguishes one look from another.
type Standings = Vec<Option<(u64, milonga_wire::Term, String)>>;

/// An attempt that failed.
struct Failed {
    seen: Standings,
    again: Moment,
    pause: Duration,
}

pub(crate) struct Caretaker {
    log: Log,
    reports: Arc<Reports>,
    failed: Option<Failed>,
    /// How many positions of a unit are damaged for good: every peer lost them too.
    lost: BTreeMap<ServerName, u64>,
    /// Keeps its end of the network.
    _node: Node,
}

impl Caretaker {
    /// A caretaker with the certificate of `node`, which takes a unit back that has answered for as long as `steady`, or the
    /// usual time.
    pub(crate) fn new(
        node: Node,
        files: CredentialFiles,
        layout_servers: Vec<Address>,
        reports: Arc<Reports>,
        steady: Option<Duration>,
    ) -> Outcome<Self> {
        let role = node.caller.role;
        if role.is_server() || role < Role::Control {
            return Err(Failure::failed(format!(
                "`caretaker-cert` is a {role} certificate; issue one with `milonga certs issue --role control`"
            )));
        }
        node.reload_certificates(files);
        // It mends by looking, not by stumbling over trouble while it settles.
        let usual = Options::default();
        let options = Options {
            mend: false,
            steady: steady.unwrap_or(usual.steady),
            ..usual
        };
        let log = Log::new(
            node.host.clone(),
            node.caller.clone(),
            layout_servers,
            options,
        );
        Ok(Self {
            log,
            reports,
            failed: None,
            lost: BTreeMap::new(),
            _node: node,
        })
    }

    /// Looks and mends for as long as the layout server runs, and keeps the log in order beside that.
    pub(crate) async fn run(mut self) {
        let keeper = Keeper::new(&Objects::new(&self.log));
        self.log.host().tasks.spawn(keeper.run());
        loop {
            let pause = self.log.host().random.jittered(PAUSE);
            let told = self
                .log
                .host()
                .clock
                .within(pause, self.reports.next())
                .await;
            let (suspects, holes) = sorted(told.into_iter().flatten());
            for suspect in suspects {
                self.mend(None, Some(&suspect)).await;
            }
            self.look().await;
            for span in holes {
                if let Err(error) = self.settle(span).await {
                    tracing::debug!(%error, %span, "reported holes were not settled");
                }
            }
        }
    }

    async fn look(&mut self) {
        let Some(sight) = self.sight().await else {
            return;
        };
        let now = self.log.host().clock.now();
        let waits = |failed: &Failed| failed.seen == sight.standings() && now < failed.again;
        if !sight.needs_mending() {
            self.failed = None;
            if sight.lags()
                && let Err(error) = reconfigure::catch_up(&self.log).await
            {
                tracing::info!(%error, "layout servers lag behind");
            }
            self.log.attend();
            self.repair(sight.damaged()).await;
        } else if !self.failed.as_ref().is_some_and(waits) {
            self.look_twice().await;
        }
    }

    /// Puts back from its peers what a unit cannot read any more, as its scrub or a reader found out.
    async fn repair(&mut self, damaged: Vec<(ServerName, u64)>) {
        for (name, count) in damaged {
            if self.lost.get(&name) == Some(&count) {
                continue;
            }
            match reconfigure::repair(&self.log, &name).await {
                Ok(repaired) => {
                    let lost: u64 = repaired.lost.iter().map(|span| span.len()).sum();
                    tracing::info!(%name, restored = repaired.restored, lost, "repaired");
                    self.lost.insert(name, lost);
                }
                Err(error) => tracing::info!(%error, %name, "could not be repaired"),
            }
        }
    }

    /// Leaves others a moment to be first, and mends what they have not mended.
    async fn look_twice(&mut self) {
        let Host { clock, random, .. } = self.log.host();
        let pause = Duration::from_millis(random.below(HESITATION.as_millis() as u64));
        clock.sleep(pause).await;
        if let Some(sight) = self.sight().await
            && sight.needs_mending()
        {
            let suspect = sight.broken();
            self.mend(Some(sight.standings()), suspect.as_ref()).await;
        }
    }

    /// None of a cluster that is not initialised yet, or has no majority: that is not for a caretaker to mend.
    async fn sight(&self) -> Option<Sight> {
        let decided = self.newest().await.ok()?;
        Some(Sight::of(self.log.host(), &decided.layout, ANSWER).await)
    }

    async fn newest(&self) -> Outcome<Arc<Decided>> {
        Ok(self.log.with_deadline(PAUSE).newest_layout().await?)
    }

    /// Mends what was `seen`, or looks after a server that a client suspects.
    async fn mend(&mut self, seen: Option<Standings>, suspect: Option<&ServerName>) {
        let why = match suspect {
            Some(name) => format!("{name} was found in trouble"),
            None => "servers were restarted or gone, or a term was half done".to_owned(),
        };
        match reconfigure::mend(&self.log, &why, suspect).await {
            Ok(decided) => {
                tracing::info!(term = %decided.layout.term, "mended");
                self.failed = None;
            }
            Err(error) => {
                let Some(seen) = seen else {
                    return tracing::info!(%error, why, "nothing was changed");
                };
                let before = self.failed.take().filter(|failed| failed.seen == seen);
                let pause = before.map_or(RETRY.0, |failed| (failed.pause * 2).min(RETRY.1));
                tracing::info!(%error, again_in = ?pause, "could not be mended");
                let again = self.log.host().clock.now().plus(pause);
                self.failed = Some(Failed { seen, again, pause });
            }
        }
    }

    /// Reading settles.
    async fn settle(&self, span: Span) -> Result<(), milonga_client::ReadError> {
        let end = Position(span.end.0.min(span.start.0.saturating_add(SETTLED_MAX)));
        let mut rest = Span::new(span.start, end);
        while !rest.is_empty() {
            let entries = self.log.read_some(rest).await?;
            let Some(last) = entries.last() else { break };
            rest.start = last.position.next();
        }
        Ok(())
    }
}

/// The servers that are suspected, each once, and the holes.
fn sorted(told: impl Iterator<Item = Noted>) -> (BTreeSet<ServerName>, Vec<Span>) {
    let (mut suspects, mut holes) = (BTreeSet::new(), vec![]);
    for noted in told {
        match noted.report {
            Report::Suspect { server, .. } => {
                suspects.insert(server);
            }
            Report::Holes { spans, .. } => holes.extend(spans),
            // The unit knows it since it was read, and says so when it is looked at.
            Report::Damaged { .. } => {}
        }
    }
    (suspects, holes)
}
