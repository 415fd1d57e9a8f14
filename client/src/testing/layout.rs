//! The layout server of the miniature: an acceptor without a disk.

use std::collections::BTreeMap;

use milonga_wire::{
    Decided, Layout, LayoutReply, LayoutRequest, Promise, Rank, Refusal, Report, Server, Standing,
    Term,
};

pub(super) struct LayoutServer {
    pub(super) server: Server,
    pub(super) reports: Vec<Report>,
    decided: BTreeMap<Term, Decided>,
    promised: Option<Rank>,
    accepted: Option<(Rank, Box<Layout>)>,
}

impl LayoutServer {
    pub(super) fn new(server: Server, genesis: Decided) -> Self {
        Self {
            server,
            reports: vec![],
            decided: BTreeMap::from([(Term::GENESIS, genesis)]),
            promised: None,
            accepted: None,
        }
    }

    pub(super) fn newest(&self) -> &Decided {
        let (_, newest) = self.decided.last_key_value().unwrap();
        newest
    }

    /// The highest term it has accepted a layout of, decided or not.
    pub(super) fn accepted_term(&self) -> Term {
        let newest = self.newest().layout.term;
        if self.accepted.is_some() {
            newest.next()
        } else {
            newest
        }
    }

    pub(super) fn serve(
        &mut self,
        term: Term,
        request: LayoutRequest,
    ) -> Result<LayoutReply, Refusal> {
        Ok(match request {
            LayoutRequest::Newest => LayoutReply::Newest {
                decided: Some(Box::new(self.newest().clone())),
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
                let newest = &self.newest().layout;
                if decided.layout.term == newest.term.next() {
                    decided.check(newest).expect("a proved decision");
                    self.decided.insert(decided.layout.term, *decided);
                    self.promised = None;
                    self.accepted = None;
                }
                LayoutReply::Learned {
                    newest: self.newest().layout.term,
                }
            }
            LayoutRequest::Genesis { .. } => return Err(Refusal::AlreadyInitialised),
            LayoutRequest::Report(report) => {
                self.reports.push(report);
                LayoutReply::Noted
            }
            LayoutRequest::Opinion { .. } => {
                unreachable!("the cluster answers it, which has the links")
            }
        })
    }

    fn check(&self, term: Term, rank: Rank) -> Result<(), Refusal> {
        if term <= self.newest().layout.term {
            let newest = Box::new(self.newest().clone());
            return Err(Refusal::Decided { newest });
        }
        match self.promised {
            Some(promised) if promised > rank => Err(Refusal::Outranked { promised }),
            Some(_) | None => Ok(()),
        }
    }
}
