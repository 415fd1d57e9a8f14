//! The shell of opinions: calls the suspects, round after round, and answers who waits. What is decided, `opinion.rs`
//! decides.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{Counter as Count, counter};
use milonga_host::{CallError, Clock, Host, Network, Responder, WeakTasks, net};
use milonga_wire::{
    ClusterId, Decided, LayoutReply, Payload, Refusal, Reply, Request, RequestHead, ServerName,
    Term,
};

use crate::Config;
use crate::opinion::{Joined, Rounds, Suspect};

/// Of the time for a probe, the part that passes before it is tried again on a new connection.
const PAUSES: u32 = 10;

/// Gives opinions.
pub(crate) struct Opinions {
    shared: Arc<Shared>,
    /// Not [`milonga_host::Tasks`]: whoever holds the server would keep the node's tasks alive.
    tasks: WeakTasks,
}

/// What rounds share with the service.
struct Shared {
    cluster: ClusterId,
    name: ServerName,
    net: Arc<dyn Network>,
    clock: Clock,
    within: Duration,
    rounds: Mutex<Rounds<Responder>>,
    metrics: Metrics,
}

impl Opinions {
    pub(crate) fn new(host: &Host, cluster: ClusterId, config: &Config) -> Self {
        Self {
            shared: Arc::new(Shared {
                cluster,
                name: config.name.clone(),
                net: Arc::clone(&host.net),
                clock: host.clock.clone(),
                within: config.opinion,
                rounds: Mutex::default(),
                metrics: Metrics::new(&config.name),
            }),
            tasks: host.tasks.downgrade(),
        }
    }

    /// Answers `respond` after a probe of `suspect` that begins from now on. Must be called inside a runtime.
    pub(crate) fn give(&self, suspect: Suspect, term: Term, respond: Responder) {
        let joined = self.shared.rounds().join(&suspect, respond);
        match joined {
            Joined::Begin => {
                let rounds = Arc::clone(&self.shared).run_rounds(suspect, term);
                self.tasks.spawn(rounds);
            }
            Joined::Waits => {}
            Joined::Refused(respond) => {
                self.shared.metrics.refused.increment(1);
                let what = "opinions on suspects".to_owned();
                respond.send(Err(Refusal::Busy { what }));
            }
        }
    }

    /// Tells all who wait that another layout was decided meanwhile: what they asked for is of no use any more.
    pub(crate) fn decided(&self, newest: &Decided) {
        let waiting = self.shared.rounds().take();
        for respond in waiting {
            let newest = Box::new(newest.clone());
            respond.send(Err(Refusal::Decided { newest }));
        }
    }

    /// Counts a request that may not be served.
    pub(crate) fn refused(&self) {
        self.shared.metrics.refused.increment(1);
    }
}

impl Shared {
    fn rounds(&self) -> MutexGuard<'_, Rounds<Responder>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Probe after probe, for as long as somebody asks.
    async fn run_rounds(self: Arc<Self>, suspect: Suspect, term: Term) {
        loop {
            let Some(probe) = self.rounds().begin(&suspect) else {
                return;
            };
            let trouble = self.probe(&suspect, term).await;
            let (name, of) = (&self.name, suspect.name());
            if let Some(why) = &trouble {
                tracing::info!(%name, %of, why, "a suspect does not answer as it should");
            } else {
                tracing::info!(%name, %of, "a suspect answers");
            }
            let served = self.rounds().end(probe);
            self.metrics.gave(trouble.is_some(), served.len());
            for respond in served {
                let opinion = LayoutReply::opinion(trouble.clone());
                respond.send(Ok(Reply::Layout(opinion)));
            }
        }
    }

    /// What is wrong with `suspect`.
    async fn probe(&self, suspect: &Suspect, term: Term) -> Option<String> {
        for (request, longer) in suspect.probe() {
            let answer = self.ask(suspect, term, request, self.within * longer).await;
            if let Some(why) = suspect.trouble(answer) {
                return Some(why);
            }
        }
        None
    }

    /// A connection that breaks may have led to a process that is gone, so it is tried again while there is time: a
    /// restarted server is alive. There is more time once the way there proves to be long: so is one that is far away.
    async fn ask(
        &self,
        suspect: &Suspect,
        term: Term,
        request: Request,
        within: Duration,
    ) -> Result<net::Response, CallError> {
        let (began, pause) = (self.clock.now(), self.within / PAUSES);
        let peer = suspect.peer();
        loop {
            let within = net::long_enough(&*self.net, &peer, within);
            let left = within.saturating_sub(self.clock.now().since(began));
            let answer = self.call(suspect, term, request.clone(), left).await;
            let Err(error) = &answer else { return answer };
            let within = net::long_enough(&*self.net, &peer, within);
            let left = within.saturating_sub(self.clock.now().since(began));
            match error {
                CallError::NotSent { .. } | CallError::Lost { .. } if left >= pause * 2 => {
                    self.clock.sleep(pause).await;
                }
                CallError::Deadline { .. } if left >= pause * 2 => {}
                _ => return answer,
            }
        }
    }

    async fn call(
        &self,
        suspect: &Suspect,
        term: Term,
        request: Request,
        within: Duration,
    ) -> Result<net::Response, CallError> {
        let to = (request != Request::Describe).then(|| suspect.target());
        let head = RequestHead {
            id: 0,
            cluster: self.cluster,
            to,
            term,
            request,
        };
        let payload = Payload::new();
        let request = net::Request { head, payload };
        self.net.call(&suspect.peer(), request, within).await
    }
}

/// Handles kept.
struct Metrics {
    well: Count,
    trouble: Count,
    refused: Count,
}

impl Metrics {
    fn new(name: &ServerName) -> Self {
        let server = name.to_string();
        metrics::describe_counter!(
            "milonga_layout_opinions_total",
            "Opinions on suspects that were asked for, by what was answered."
        );
        let opinions = |outcome: &'static str| counter!("milonga_layout_opinions_total", "server" => server.clone(), "outcome" => outcome);
        Self {
            well: opinions("well"),
            trouble: opinions("trouble"),
            refused: opinions("refused"),
        }
    }

    fn gave(&self, trouble: bool, count: usize) {
        let outcome = if trouble { &self.trouble } else { &self.well };
        outcome.increment(count as u64);
    }
}
