//! What a layout server passes on for a control client that does not reach a server itself, and what it brings back.
//!
//! ```text
//! control client ──── ╳ ───▶ log unit
//!      │                        ▲
//!      │ Relay(unit, SealUnit)  │ Seal
//!      └───▶ layout server ─────┘
//! ```
//! It is what ends a term and puts the next one to work, and nothing else: no entry is written, read, copied, trimmed or
//! forgotten for somebody else. A relay that is lost on its way may arrive all the same, late, and after another one of the
//! same; so all of it can be repeated, as each variant says.
//!
//! Neither a relay nor what it brings can hold another one: no bytes make a decoder nest (W1).

use serde::{Deserialize, Serialize};

use crate::refusal::cut;
use crate::{
    BootstrapPage, Description, Kind, LayoutRequest, Position, Refusal, Reply, Request,
    SequencerReply, SequencerRequest, StreamId, Stripes, UnitReply, UnitRequest,
};

/// What may be passed on. [`Relayed::of`] is the list.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Relayed {
    /// [`Request::Describe`], to a server of that kind. Changes nothing.
    Describe(Kind),
    /// [`UnitRequest::Seal`]. The same term again changes nothing and is answered; after a later one it is refused.
    SealUnit,
    /// [`UnitRequest::Announce`]. The same again changes nothing; another start in the same term, another term and another
    /// process start of the unit are refused.
    Announce {
        /// Where the open segment starts.
        start: Position,
    },
    /// [`UnitRequest::Settled`]. Changes nothing; the unit answers it to any reader.
    Settled {
        /// Whose positions.
        stripes: Stripes,
    },
    /// [`UnitRequest::StreamTails`]. Changes nothing; the unit answers it to any reader.
    StreamTails {
        /// Streams after this one.
        after: Option<StreamId>,
        /// Streams wanted at most.
        count_max: u32,
    },
    /// [`SequencerRequest::Seal`]. As a unit's.
    SealSequencer,
    /// [`SequencerRequest::Probe`]. Changes nothing.
    ProbeSequencer,
    /// [`SequencerRequest::Bootstrap`]. A page that came before, and any page once the sequencer issues positions in the
    /// term, changes nothing; in a later term, and at another process start, it is refused.
    Bootstrap(Box<BootstrapPage>),
}

impl Relayed {
    /// `request` to a server of `kind`, if it may be passed on: nothing that carries, shows or gives back entries, nothing
    /// that issues positions or tells where the log ends, nothing for layout servers.
    pub fn of(kind: Kind, request: Request) -> Option<Self> {
        match request {
            Request::Describe => match kind {
                Kind::LogUnit | Kind::Sequencer => Some(Self::Describe(kind)),
                Kind::Layout => None,
            },
            Request::Unit(request) => match request {
                UnitRequest::Seal => Some(Self::SealUnit),
                UnitRequest::Announce { start } => Some(Self::Announce { start }),
                UnitRequest::Settled { stripes } => Some(Self::Settled { stripes }),
                UnitRequest::StreamTails { after, count_max } => {
                    Some(Self::StreamTails { after, count_max })
                }
                UnitRequest::Write { .. }
                | UnitRequest::Fill(_)
                | UnitRequest::Read { .. }
                | UnitRequest::Trim { .. }
                | UnitRequest::StreamPositions { .. }
                | UnitRequest::Probe
                | UnitRequest::Lacking { .. }
                | UnitRequest::Reset { .. } => None,
            },
            Request::Sequencer(request) => match request {
                SequencerRequest::Seal => Some(Self::SealSequencer),
                SequencerRequest::Probe => Some(Self::ProbeSequencer),
                SequencerRequest::Bootstrap(page) => Some(Self::Bootstrap(page)),
                SequencerRequest::Tokens { .. } | SequencerRequest::End { .. } => None,
            },
            Request::Layout(request) => match request {
                LayoutRequest::Newest
                | LayoutRequest::At
                | LayoutRequest::Confirm
                | LayoutRequest::Prepare { .. }
                | LayoutRequest::Propose { .. }
                | LayoutRequest::Learn { .. }
                | LayoutRequest::Genesis { .. }
                | LayoutRequest::Report(_)
                | LayoutRequest::Opinion { .. }
                | LayoutRequest::Relay { .. } => None,
            },
        }
    }

    /// What kind of server it is for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Describe(kind) => *kind,
            Self::SealUnit
            | Self::Announce { .. }
            | Self::Settled { .. }
            | Self::StreamTails { .. } => Kind::LogUnit,
            Self::SealSequencer | Self::ProbeSequencer | Self::Bootstrap(_) => Kind::Sequencer,
        }
    }
}

/// The request as the server gets it.
impl From<Relayed> for Request {
    fn from(relayed: Relayed) -> Self {
        match relayed {
            Relayed::Describe(_) => Self::Describe,
            Relayed::SealUnit => Self::Unit(UnitRequest::Seal),
            Relayed::Announce { start } => Self::Unit(UnitRequest::Announce { start }),
            Relayed::Settled { stripes } => Self::Unit(UnitRequest::Settled { stripes }),
            Relayed::StreamTails { after, count_max } => {
                Self::Unit(UnitRequest::StreamTails { after, count_max })
            }
            Relayed::SealSequencer => Self::Sequencer(SequencerRequest::Seal),
            Relayed::ProbeSequencer => Self::Sequencer(SequencerRequest::Probe),
            Relayed::Bootstrap(page) => Self::Sequencer(SequencerRequest::Bootstrap(page)),
        }
    }
}

/// What came of a relay: what the server said, or that it said nothing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Brought {
    /// Who it is.
    Described(Box<Description>),
    /// What a log unit answered.
    Unit(UnitReply),
    /// What a sequencer answered.
    Sequencer(SequencerReply),
    /// It refused. Nothing changed.
    Refused(Refusal),
    /// No answer came in time. The request may have had its effect, or have it later.
    Silent {
        /// What happened instead, in words.
        why: String,
    },
}

impl Brought {
    /// [`Brought::Silent`], its text cut to the limit.
    pub fn silent(why: String) -> Self {
        Self::Silent { why: cut(why) }
    }
}

/// What the server answered, as it is passed back. No server that is asked for what may be passed on answers as a layout
/// server.
impl From<Result<Reply, Refusal>> for Brought {
    fn from(answer: Result<Reply, Refusal>) -> Self {
        match answer {
            Ok(Reply::Described(said)) => Self::Described(said),
            Ok(Reply::Unit(reply)) => Self::Unit(reply),
            Ok(Reply::Sequencer(reply)) => Self::Sequencer(reply),
            Ok(Reply::Layout(_)) => Self::silent("the reply answers another request".to_owned()),
            Err(refusal) => Self::Refused(refusal),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::layout::tests::{layout, server};
    use crate::limits::TEXT_BYTES_MAX;
    use crate::{
        Before, ConfirmedEnd, Decided, Fill, Frame, Identity, Incarnation, LayoutReply, Payload,
        Rank, ReplyHead, Report, Span, StreamTail, Term, WriteKind,
    };

    const POSITION: Position = Position(7);
    const SPAN: Span = Span {
        start: POSITION,
        end: Position(8),
    };

    /// One request of each kind that there is, for any server.
    pub(crate) fn every_request() -> Vec<Request> {
        let units = to_a_unit().into_iter().map(Request::Unit);
        let sequencers = to_a_sequencer().into_iter().map(Request::Sequencer);
        let layouts = to_a_layout_server().into_iter().map(Request::Layout);
        let all = std::iter::once(Request::Describe).chain(units);
        all.chain(sequencers).chain(layouts).collect()
    }

    fn to_a_unit() -> Vec<UnitRequest> {
        let stripes = layout().segments[0].stripes(1);
        let stream = StreamId::of_name("s");
        let write = |kind| UnitRequest::Write {
            kind,
            pieces: vec![],
        };
        let end = ConfirmedEnd {
            end: POSITION,
            term: Term(1),
        };
        vec![
            write(WriteKind::Decide),
            write(WriteKind::Follow),
            write(WriteKind::Copy),
            UnitRequest::Fill(Fill {
                kind: WriteKind::Copy,
                decided: Term(1),
                spans: vec![SPAN],
                end,
            }),
            UnitRequest::Read {
                spans: vec![SPAN],
                bytes_max: 1,
            },
            UnitRequest::Seal,
            UnitRequest::Announce { start: POSITION },
            UnitRequest::Settled { stripes },
            UnitRequest::Trim {
                to: POSITION,
                settled: POSITION,
            },
            UnitRequest::StreamTails {
                after: Some(stream),
                count_max: 5,
            },
            UnitRequest::StreamPositions {
                stream,
                span: SPAN,
                count_max: 5,
            },
            UnitRequest::Probe,
            UnitRequest::Lacking {
                stripes,
                from: POSITION,
                count_max: 5,
            },
            UnitRequest::Reset {
                of: Identity([1; 16]),
            },
        ]
    }

    fn decided() -> Decided {
        Decided {
            layout: layout(),
            acceptances: vec![],
        }
    }

    fn to_a_sequencer() -> Vec<SequencerRequest> {
        let page = BootstrapPage {
            decided: decided(),
            complete: true,
            driver: [3; 16],
            page: 0,
            last: true,
            tails: vec![StreamTail {
                stream: StreamId::of_name("s"),
                last: Before::Known(vec![POSITION]),
            }],
        };
        vec![
            SequencerRequest::Tokens {
                count: 1,
                streams: vec![],
            },
            SequencerRequest::End { streams: vec![] },
            SequencerRequest::Seal,
            SequencerRequest::Bootstrap(Box::new(page)),
            SequencerRequest::Probe,
        ]
    }

    fn to_a_layout_server() -> Vec<LayoutRequest> {
        let rank = Rank {
            number: 1,
            proposer: [2; 16],
        };
        let layout = Box::new(layout());
        vec![
            LayoutRequest::Newest,
            LayoutRequest::At,
            LayoutRequest::Confirm,
            LayoutRequest::Prepare { rank },
            LayoutRequest::Propose {
                rank,
                layout: layout.clone(),
            },
            LayoutRequest::Learn {
                decided: Box::new(decided()),
            },
            LayoutRequest::Genesis { layout },
            LayoutRequest::Report(Report::Holes {
                spans: vec![SPAN],
                end: POSITION,
            }),
            LayoutRequest::Opinion {
                of: Box::new(server(10)),
                kind: Kind::LogUnit,
            },
            LayoutRequest::Relay {
                to: Box::new(server(10)),
                request: Relayed::SealUnit,
            },
        ]
    }

    /// The list once more, so that whoever adds a request has to say whether somebody may make it for another.
    fn may_be_passed_on(request: &Request) -> bool {
        match request {
            Request::Describe
            | Request::Unit(
                UnitRequest::Seal
                | UnitRequest::Announce { .. }
                | UnitRequest::Settled { .. }
                | UnitRequest::StreamTails { .. },
            )
            | Request::Sequencer(
                SequencerRequest::Seal | SequencerRequest::Probe | SequencerRequest::Bootstrap(_),
            ) => true,
            Request::Unit(
                UnitRequest::Write { .. }
                | UnitRequest::Fill(_)
                | UnitRequest::Read { .. }
                | UnitRequest::Trim { .. }
                | UnitRequest::StreamPositions { .. }
                | UnitRequest::Probe
                | UnitRequest::Lacking { .. }
                | UnitRequest::Reset { .. },
            )
            | Request::Sequencer(SequencerRequest::Tokens { .. } | SequencerRequest::End { .. })
            | Request::Layout(
                LayoutRequest::Newest
                | LayoutRequest::At
                | LayoutRequest::Confirm
                | LayoutRequest::Prepare { .. }
                | LayoutRequest::Propose { .. }
                | LayoutRequest::Learn { .. }
                | LayoutRequest::Genesis { .. }
                | LayoutRequest::Report(_)
                | LayoutRequest::Opinion { .. }
                | LayoutRequest::Relay { .. },
            ) => false,
        }
    }

    /// A layout server must not lend its name to whoever wants to write, to read, to trim, or to have a layout server talk to
    /// another one.
    #[test]
    fn only_what_ends_a_term_and_begins_one_is_passed_on_and_as_it_was_asked() {
        let mut passed = 0;
        for request in every_request() {
            let kind = match &request {
                Request::Sequencer(_) => Kind::Sequencer,
                Request::Describe | Request::Unit(_) | Request::Layout(_) => Kind::LogUnit,
            };
            let relayed = Relayed::of(kind, request.clone());
            assert_eq!(relayed.is_some(), may_be_passed_on(&request), "{request:?}");
            if let Some(relayed) = relayed {
                assert_eq!(relayed.kind(), kind, "{request:?}");
                assert_eq!(Request::from(relayed), request);
                passed += 1;
            }
        }
        assert_eq!(passed, 8);
        assert_eq!(Relayed::of(Kind::Layout, Request::Describe), None);
    }

    /// W1: relays and what they bring are frames as any other, and what a peer put into an error is cut to the limit.
    #[test]
    fn relays_and_what_they_bring_come_out_as_they_went_in() {
        for request in every_request() {
            let frame = Frame::new(&request, Payload::new()).unwrap();
            assert_eq!(frame.decode::<Request>(), Ok(request.clone()));
            let Some(request) = Relayed::of(Kind::LogUnit, request) else {
                continue;
            };
            let to = Box::new(server(10));
            let relay = Request::Layout(LayoutRequest::Relay { to, request });
            let frame = Frame::new(&relay, Payload::new()).unwrap();
            assert_eq!(frame.decode::<Request>(), Ok(relay));
        }
        let stale = Refusal::WrongIncarnation {
            asked: Incarnation(1),
            here: Incarnation(2),
        };
        let long = "\u{e9}".repeat(TEXT_BYTES_MAX);
        for brought in [
            Brought::from(Ok(Reply::Unit(UnitReply::Announced))),
            Brought::from(Ok(Reply::Sequencer(SequencerReply::Sealed {
                counter: Some(Position(3)),
            }))),
            Brought::from(Ok(Reply::Layout(LayoutReply::Noted))),
            Brought::from(Err(stale)),
            Brought::silent(long),
        ] {
            if let Brought::Silent { why } = &brought {
                assert!(!why.is_empty() && why.len() <= TEXT_BYTES_MAX);
            }
            let head = ReplyHead {
                id: 1,
                reply: Ok(Reply::Layout(LayoutReply::Relayed(Box::new(brought)))),
            };
            let frame = Frame::new(&head, Payload::new()).unwrap();
            assert_eq!(frame.decode::<ReplyHead>(), Ok(head));
        }
    }
}
