//! The layout servers of the miniature: acceptors without disks.

use std::collections::BTreeMap;

use milonga_wire::{
    Decided, Layout, LayoutReply, LayoutRequest, Promise, Rank, Refusal, Report, Server,
    ServerName, Standing, Term,
};

/// All of them, listed or not.
pub(super) struct LayoutServers {
    pub(super) servers: BTreeMap<ServerName, LayoutServer>,
}

impl LayoutServers {
    pub(super) fn new(genesis: &Decided) -> Self {
        let listed = genesis.layout.layout_servers.iter();
        let servers = listed.map(|server| {
            let mut one = LayoutServer::blank(server.clone());
            one.decided.insert(Term::GENESIS, genesis.clone());
            (server.name.clone(), one)
        });
        Self {
            servers: servers.collect(),
        }
    }

    /// The newest layout that any of them knows.
    pub(super) fn newest(&self) -> &Decided {
        let newest = self.servers.values().filter_map(LayoutServer::newest);
        newest.max_by_key(|decided| decided.layout.term).unwrap()
    }

    /// The highest term that any of them has accepted a layout of, decided or not.
    pub(super) fn accepted_term(&self) -> Term {
        let accepted = self
            .servers
            .values()
            .filter_map(LayoutServer::accepted_term);
        accepted.max().unwrap()
    }
}

pub(super) struct LayoutServer {
    pub(super) server: Server,
    pub(super) reports: Vec<Report>,
    decided: BTreeMap<Term, Decided>,
    promised: Option<Rank>,
    accepted: Option<(Rank, Box<Layout>)>,
}

impl LayoutServer {
    pub(super) fn blank(server: Server) -> Self {
        Self {
            server,
            reports: vec![],
            decided: BTreeMap::new(),
            promised: None,
            accepted: None,
        }
    }

    pub(super) fn newest(&self) -> Option<&Decided> {
        self.decided.last_key_value().map(|(_, newest)| newest)
    }

    fn next_term(&self) -> Term {
        self.newest()
            .map_or(Term::GENESIS, |newest| newest.layout.term.next())
    }

    fn accepted_term(&self) -> Option<Term> {
        let newest = self.newest()?.layout.term;
        Some(match self.accepted {
            Some(_) => newest.next(),
            None => newest,
        })
    }

    pub(super) fn serve(
        &mut self,
        term: Term,
        request: LayoutRequest,
    ) -> Result<LayoutReply, Refusal> {
        Ok(match request {
            LayoutRequest::Newest => LayoutReply::Newest {
                decided: self.newest().cloned().map(Box::new),
                standing: Standing {
                    promised: self.promised,
                    accepted: self.accepted.as_ref().map(|(rank, _)| *rank),
                },
            },
            LayoutRequest::At => LayoutReply::At {
                decided: self.decided.get(&term).cloned().map(Box::new),
            },
            LayoutRequest::Confirm => LayoutReply::Confirmed { term },
            LayoutRequest::Prepare { rank } => {
                self.check(term, rank)?;
                self.promised = Some(rank);
                LayoutReply::Promised(Promise {
                    rank,
                    accepted: self.accepted.clone(),
                })
            }
            LayoutRequest::Propose { rank, layout } => {
                self.check(term, rank)?;
                self.promised = Some(rank);
                self.accepted = Some((rank, layout));
                LayoutReply::Accepted { rank }
            }
            LayoutRequest::Learn { decided } => {
                let term = decided.layout.term;
                if term > self.next_term() {
                    let newest = self.newest().map(|newest| newest.layout.term);
                    return Err(Refusal::Behind { newest });
                }
                if term == self.next_term() {
                    if let Some(newest) = self.newest() {
                        decided.check(&newest.layout).expect("a proved decision");
                    }
                    self.decided.insert(term, *decided);
                    self.promised = None;
                    self.accepted = None;
                }
                LayoutReply::Learned {
                    newest: self.newest().unwrap().layout.term,
                }
            }
            LayoutRequest::Genesis { .. } => return Err(Refusal::AlreadyInitialised),
            LayoutRequest::Report(report) => {
                self.reports.push(report);
                LayoutReply::Noted
            }
            LayoutRequest::Opinion { .. } | LayoutRequest::Relay { .. } => {
                unreachable!("the cluster answers it, which has the links")
            }
        })
    }

    fn check(&self, term: Term, rank: Rank) -> Result<(), Refusal> {
        let Some(newest) = self.newest() else {
            return Err(Refusal::NotListed);
        };
        if term <= newest.layout.term {
            let newest = Box::new(newest.clone());
            return Err(Refusal::Decided { newest });
        }
        if term > self.next_term() {
            let newest = Some(newest.layout.term);
            return Err(Refusal::Behind { newest });
        }
        let mut listed = newest.layout.layout_servers.iter();
        if !listed.any(|listed| listed.identity == self.server.identity) {
            return Err(Refusal::NotListed);
        }
        match self.promised {
            Some(promised) if promised > rank => Err(Refusal::Outranked { promised }),
            Some(_) | None => Ok(()),
        }
    }
}
