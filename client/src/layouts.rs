//! The newest decided layout this client knows, and how it learns of newer ones.
//!
//! C6: it never goes back. A layout is believed if a majority of its own layout servers stand behind it, or if it carries
//! the acceptances that follow the layout known here. Whoever was configured is asked first, and answers with a decided
//! layout that may name others: then those are asked, until a layout's own servers know nothing newer. So a client finds
//! its way from any layout server that was ever one, and believes none of them alone.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{FuturesUnordered, StreamExt};
use milonga_wire::{Address, Decided, Layout, LayoutReply, LayoutRequest, Standing, Term};

use crate::calls::Calls;

/// How often a read goes on from one set of layout servers to the next: they change by hand.
const HOPS: u32 = 16;

/// What a majority of the layout servers said.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The newest decided layout.
    pub decided: Decided,
    /// How far the term after it has got, per layout server that knows `decided`.
    pub standings: Vec<Standing>,
}

/// Why no majority of the layout servers was read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LayoutsError {
    /// Too few answered.
    #[error("{answered} of {asked} layout servers answered, {needed} are needed: {}", why.join("; "))]
    NoMajority {
        /// How many answered.
        answered: usize,
        /// How many were asked.
        asked: usize,
        /// How many must answer.
        needed: usize,
        /// What the others said.
        why: Vec<String>,
    },
    /// None of them knows a layout.
    #[error("the cluster is not initialised; run `milonga cluster init`")]
    Blank,
    /// Each layout named other layout servers than the one before.
    #[error("the layout servers changed {HOPS} times while they were read; try again")]
    Restless,
}

/// The newest layout, shared by everything a client does.
pub(crate) struct Layouts {
    calls: Calls,
    /// Where to ask before any layout is known.
    configured: Vec<Address>,
    newest: Mutex<Option<Arc<Decided>>>,
}

impl Layouts {
    pub(crate) fn new(calls: Calls, configured: Vec<Address>) -> Self {
        Self {
            calls,
            configured,
            newest: Mutex::new(None),
        }
    }

    /// The newest layout known here; asks for it the first time.
    pub(crate) async fn current(&self) -> Result<Arc<Decided>, LayoutsError> {
        if let Some(decided) = self.known() {
            return Ok(decided);
        }
        self.read().await?;
        self.known().ok_or(LayoutsError::Blank)
    }

    /// The newest layout known here, without asking.
    pub(crate) fn known(&self) -> Option<Arc<Decided>> {
        self.newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes a decided layout that came with a refusal: believed only with proof against the one known here.
    pub(crate) fn offer(&self, decided: &Decided) {
        if self
            .known()
            .is_some_and(|known| decided.check(&known.layout).is_ok())
        {
            self.adopt(decided.clone());
        }
    }

    /// Reads from a majority and keeps the newest.
    pub(crate) async fn read(&self) -> Result<Known, LayoutsError> {
        let cluster = self.calls.cluster();
        // A blank server, or one that talks nonsense, does not count: it may be a wiped one.
        let counts = |reply: &LayoutReply| match reply {
            LayoutReply::Newest {
                decided: Some(decided),
                ..
            } => decided.layout.cluster == cluster && decided.layout.validate().is_ok(),
            _ => false,
        };
        let mut asked = self.addresses();
        for _ in 0..HOPS {
            let (answers, failed) = self
                .ask(&asked, Term::GENESIS, LayoutRequest::Newest, counts)
                .await;
            let answers: Vec<(Decided, Standing)> = answers
                .into_iter()
                .filter_map(|reply| match reply {
                    LayoutReply::Newest {
                        decided: Some(decided),
                        standing,
                    } => Some((*decided, standing)),
                    _ => None,
                })
                .collect();
            let known = self.known().map(|known| (*known).clone());
            let told = answers.iter().map(|(decided, _)| decided).cloned();
            let newest = told.chain(known).max_by_key(|decided| decided.layout.term);
            let Some(newest) = newest else {
                return Err(failed.unwrap_or(LayoutsError::Blank));
            };
            let own = servers_of(&newest.layout);
            if !same(&own, &asked) {
                asked = own;
                continue;
            }
            if let Some(error) = failed {
                return Err(error);
            }
            let of_newest = |decided: &Decided| decided.layout.term == newest.layout.term;
            let standings = answers
                .into_iter()
                .filter(|(decided, _)| of_newest(decided))
                .map(|(_, standing)| standing)
                .collect();
            self.adopt(newest.clone());
            return Ok(Known {
                decided: newest,
                standings,
            });
        }
        Err(LayoutsError::Restless)
    }

    /// The decided layout of `term`, if any of a majority still knows it.
    pub(crate) async fn at(&self, term: Term) -> Result<Option<Layout>, LayoutsError> {
        Ok(self.decided_at(term).await?.map(|decided| decided.layout))
    }

    /// The same, with its proof.
    pub(crate) async fn decided_at(&self, term: Term) -> Result<Option<Decided>, LayoutsError> {
        if let Some(known) = self.known().filter(|known| known.layout.term == term) {
            return Ok(Some((*known).clone()));
        }
        let counts = |reply: &LayoutReply| matches!(reply, LayoutReply::At { .. });
        let asked = self.addresses();
        let (answers, failed) = self.ask(&asked, term, LayoutRequest::At, counts).await;
        if let Some(error) = failed {
            return Err(error);
        }
        Ok(answers.into_iter().find_map(|reply| match reply {
            LayoutReply::At { decided } => decided.map(|decided| *decided),
            _ => None,
        }))
    }

    /// Keeps `decided` if it is newer than what is known.
    pub(crate) fn adopt(&self, decided: Decided) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest
            .as_ref()
            .is_none_or(|known| known.layout.term < decided.layout.term)
        {
            *newest = Some(Arc::new(decided));
        }
    }

    /// The layout servers of the newest known layout, or the configured ones.
    fn addresses(&self) -> Vec<Address> {
        match self.known() {
            Some(decided) => servers_of(&decided.layout),
            None => self.configured.clone(),
        }
    }

    /// The answers of a majority of `addresses`, or what answers there were, and why they are too few.
    async fn ask(
        &self,
        addresses: &[Address],
        term: Term,
        request: LayoutRequest,
        counts: impl Fn(&LayoutReply) -> bool,
    ) -> (Vec<LayoutReply>, Option<LayoutsError>) {
        let asked = addresses.len();
        let needed = asked / 2 + 1;
        let mut running: FuturesUnordered<_> = addresses
            .iter()
            .map(|address| {
                let (calls, request) = (self.calls.clone(), request.clone());
                async move { (calls.layout_at(address, term, request).await, address) }
            })
            .collect();
        let (mut answers, mut why, mut blank) = (vec![], vec![], 0);
        while let Some((answer, address)) = running.next().await {
            match answer {
                Ok(reply) if counts(&reply) => answers.push(reply),
                Ok(_) => {
                    blank += 1;
                    why.push(format!("{address} knows no layout"));
                }
                Err(failure) => why.push(failure.to_string()),
            }
            if answers.len() >= needed {
                return (answers, None);
            }
        }
        if blank >= needed && answers.is_empty() {
            return (answers, Some(LayoutsError::Blank));
        }
        let answered = answers.len();
        let error = LayoutsError::NoMajority {
            answered,
            asked,
            needed,
            why,
        };
        (answers, Some(error))
    }
}

fn servers_of(layout: &Layout) -> Vec<Address> {
    let servers = layout.layout_servers.iter();
    servers.map(|server| server.address.clone()).collect()
}

/// Whether both name the same servers, in whatever order.
fn same(one: &[Address], other: &[Address]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

#[cfg(test)]
mod tests;
