//! The newest decided layout this client knows, and how it learns of newer ones.
//!
//! C6: it never goes back. A layout is believed if a majority of the layout servers stand behind it: read from a
//! majority of them, or carrying the acceptances that follow the layout known here.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{FuturesUnordered, StreamExt};
use milonga_wire::{Address, Decided, Layout, LayoutReply, LayoutRequest, Standing, Term};

use crate::calls::Calls;

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
        let answers = self
            .ask(Term::GENESIS, LayoutRequest::Newest, counts)
            .await?;
        let standings: Vec<(Decided, Standing)> = answers
            .into_iter()
            .filter_map(|reply| match reply {
                LayoutReply::Newest {
                    decided: Some(decided),
                    standing,
                } => Some((*decided, standing)),
                _ => None,
            })
            .collect();
        let newest = standings
            .iter()
            .map(|(decided, _)| decided)
            .max_by_key(|decided| decided.layout.term);
        let newest = newest.cloned().ok_or(LayoutsError::Blank)?;
        let of_newest = |decided: &Decided| decided.layout.term == newest.layout.term;
        let standings = standings
            .into_iter()
            .filter(|(decided, _)| of_newest(decided))
            .map(|(_, standing)| standing)
            .collect();
        self.adopt(newest.clone());
        Ok(Known {
            decided: newest,
            standings,
        })
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
        let answers = self.ask(term, LayoutRequest::At, counts).await?;
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

    /// The answers of a majority: of the newest known layout's servers, or of the configured ones.
    async fn ask(
        &self,
        term: Term,
        request: LayoutRequest,
        counts: impl Fn(&LayoutReply) -> bool,
    ) -> Result<Vec<LayoutReply>, LayoutsError> {
        let known = self.known();
        let addresses: Vec<Address> = match &known {
            Some(decided) => decided
                .layout
                .layout_servers
                .iter()
                .map(|server| server.address.clone())
                .collect(),
            None => self.configured.clone(),
        };
        let needed = addresses.len() / 2 + 1;
        let asked = addresses.len();
        let mut running: FuturesUnordered<_> = addresses
            .into_iter()
            .map(|address| {
                let (calls, request) = (self.calls.clone(), request.clone());
                async move { (calls.layout_at(&address, term, request).await, address) }
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
                return Ok(answers);
            }
        }
        if blank >= needed && answers.is_empty() {
            return Err(LayoutsError::Blank);
        }
        Err(LayoutsError::NoMajority {
            answered: answers.len(),
            asked,
            needed,
            why,
        })
    }
}

#[cfg(test)]
mod tests;
