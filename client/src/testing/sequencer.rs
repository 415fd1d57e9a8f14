//! The sequencers of the miniature: a counter and where each stream ends.

use std::collections::BTreeMap;

use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{
    Before, BootstrapPage, Decided, Position, Refusal, SequencerReply, SequencerRequest, Server,
    StreamId, StreamLink, Term, Token,
};

use super::layout::LayoutServers;

pub(super) struct Sequencer {
    pub(super) server: Server,
    pub(super) term: Term,
    state: State,
}

enum State {
    Silent(Option<Position>),
    Serving {
        next: Position,
        streams: BTreeMap<StreamId, Before>,
    },
}

impl Sequencer {
    pub(super) fn blank(server: Server) -> Self {
        Self {
            server,
            term: Term::GENESIS,
            state: State::Silent(None),
        }
    }

    pub(super) fn serving(server: Server, decided: &Decided) -> Self {
        let state = State::Serving {
            next: decided.layout.open_segment().start,
            streams: BTreeMap::new(),
        };
        Self {
            server,
            term: decided.layout.term,
            state,
        }
    }

    pub(super) fn counter(&self) -> Option<Position> {
        match &self.state {
            State::Silent(counter) => *counter,
            State::Serving { next, .. } => Some(*next),
        }
    }

    pub(super) fn serve(
        &mut self,
        term: Term,
        request: SequencerRequest,
        layout: &LayoutServers,
    ) -> Result<SequencerReply, Refusal> {
        match request {
            SequencerRequest::Tokens { count, streams } => self.tokens(term, count, &streams),
            SequencerRequest::End { streams } => {
                if layout.accepted_term() > term {
                    return Err(Refusal::Unconfirmed { term });
                }
                self.check(term, layout)?;
                let State::Serving {
                    next,
                    streams: known,
                } = &self.state
                else {
                    return Err(Refusal::NotBootstrapped { term });
                };
                let link = |stream: &StreamId| StreamLink {
                    stream: *stream,
                    before: before(known, *stream),
                };
                Ok(SequencerReply::End {
                    end: *next,
                    term,
                    streams: streams.iter().map(link).collect(),
                })
            }
            SequencerRequest::Seal => {
                if term < self.term {
                    return Err(self.stale(term, layout));
                }
                self.raise(term);
                let counter = match &self.state {
                    State::Silent(counter) => *counter,
                    State::Serving { next, .. } => Some(*next),
                };
                Ok(SequencerReply::Sealed { counter })
            }
            SequencerRequest::Bootstrap(page) => {
                let BootstrapPage { decided, tails, .. } = *page;
                if term < self.term {
                    return Err(self.stale(term, layout));
                }
                self.raise(term);
                if let State::Silent(_) = &self.state {
                    self.state = State::Serving {
                        next: decided.layout.open_segment().start,
                        streams: tails
                            .into_iter()
                            .map(|tail| (tail.stream, tail.last))
                            .collect(),
                    };
                }
                Ok(SequencerReply::Bootstrapped { serving: true })
            }
            SequencerRequest::Probe => Ok(SequencerReply::Probed {
                serving: self.term == term && matches!(self.state, State::Serving { .. }),
            }),
        }
    }

    fn tokens(
        &mut self,
        term: Term,
        count: u32,
        asked: &[StreamId],
    ) -> Result<SequencerReply, Refusal> {
        // Like a real one that was left out of a change, it may issue in a term that is over: only units know.
        self.check_own(term)?;
        let State::Serving { next, streams } = &mut self.state else {
            return Err(Refusal::NotBootstrapped { term });
        };
        let first = *next;
        *next = first.plus(u64::from(count));
        let links = asked.iter().map(|stream| {
            let link = StreamLink {
                stream: *stream,
                before: before(streams, *stream),
            };
            let mut last: Vec<Position> = (0..u64::from(count))
                .rev()
                .map(|index| first.plus(index))
                .collect();
            if let Before::Known(earlier) = &link.before {
                last.extend(earlier);
            }
            last.truncate(BACKPOINTERS);
            streams.insert(*stream, Before::Known(last));
            link
        });
        let streams = links.collect();
        Ok(SequencerReply::Token(Token {
            term,
            first,
            count,
            streams,
        }))
    }

    fn raise(&mut self, term: Term) {
        if term > self.term {
            let counter = match &self.state {
                State::Silent(counter) => *counter,
                State::Serving { next, .. } => Some(*next),
            };
            self.state = State::Silent(counter);
            self.term = term;
        }
    }

    fn check(&self, term: Term, layout: &LayoutServers) -> Result<(), Refusal> {
        if term < self.term {
            return Err(self.stale(term, layout));
        }
        self.check_own(term)
    }

    fn check_own(&self, term: Term) -> Result<(), Refusal> {
        let (asked, current) = (term, self.term);
        if asked < current {
            return Err(Refusal::StaleTerm {
                asked,
                current,
                newest: None,
            });
        }
        if asked > current {
            return Err(Refusal::FutureTerm { asked, current });
        }
        Ok(())
    }

    fn stale(&self, asked: Term, layout: &LayoutServers) -> Refusal {
        Refusal::StaleTerm {
            asked,
            current: self.term,
            newest: Some(Box::new(layout.newest().clone())),
        }
    }
}

fn before(streams: &BTreeMap<StreamId, Before>, stream: StreamId) -> Before {
    streams
        .get(&stream)
        .cloned()
        .unwrap_or(Before::Known(vec![]))
}
