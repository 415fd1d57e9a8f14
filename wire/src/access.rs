//! Who may ask for what: the role table, and the checks that every request passes before anything looks inside.
//!
//! Pure. The transport has proved the caller's certificate; this says what it is good for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::identity::InvalidName;
use crate::{
    ClusterId, Identity, Incarnation, Kind, LayoutRequest, Refusal, Request, RequestHead,
    SequencerRequest, ServerName, UnitRequest, WriteKind,
};

/// What a certificate is good for. A client's roles include the ones before it; `server` stands apart.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Reads, follows, asks for the end, reports holes.
    Reader,
    /// Also takes tokens, writes, completes, fills, reports suspicion.
    Writer,
    /// Also seals, proposes, bootstraps, announces, copies, trims.
    Control,
    /// Also what may lose data, and `cluster init`.
    Admin,
    /// Serves as a log unit under its own name.
    LogUnit,
    /// Serves as a sequencer under its own name.
    Sequencer,
    /// Serves as a layout server under its own name. Passes seals, announcements and bootstraps on for control clients.
    Layout,
    /// Serves under its own name as whatever the layout lists that name for; so it may what a layout server may.
    Server,
}

impl Role {
    /// Every role, as certificates name them.
    pub const ALL: [Self; 8] = [
        Self::Reader,
        Self::Writer,
        Self::Control,
        Self::Admin,
        Self::LogUnit,
        Self::Sequencer,
        Self::Layout,
        Self::Server,
    ];

    /// The name in a certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Control => "control",
            Self::Admin => "admin",
            Self::LogUnit => "logunit",
            Self::Sequencer => "sequencer",
            Self::Layout => "layout",
            Self::Server => "server",
        }
    }

    /// Whether it serves rather than asks.
    pub fn is_server(self) -> bool {
        matches!(
            self,
            Self::LogUnit | Self::Sequencer | Self::Layout | Self::Server
        )
    }

    /// Whether a certificate of this role may serve as `kind`, under its own name.
    pub fn may_serve(self, kind: Kind) -> bool {
        match self {
            Self::LogUnit => kind == Kind::LogUnit,
            Self::Sequencer => kind == Kind::Sequencer,
            Self::Layout => kind == Kind::Layout,
            Self::Server => true,
            Self::Reader | Self::Writer | Self::Control | Self::Admin => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| InvalidName {
                text: text.chars().take(80).collect(),
                what: "role",
                expected: "reader, writer, control, admin, server, logunit, sequencer or layout",
            })
    }
}

/// Whom a certificate names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The cluster.
    pub cluster: ClusterId,
    /// The role.
    pub role: Role,
    /// The name.
    pub name: ServerName,
}

/// What a request needs of its caller.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Access {
    /// Any certificate of the cluster.
    Anyone,
    /// A client of at least this role.
    AtLeast(Role),
    /// A client of at least this role, or a server.
    AtLeastOrServer(Role),
    /// A client of at least this role, or who may serve as a layout server: it asks for a client of that role, whose
    /// certificate it has seen ([`crate::Relayed`]).
    ///
    /// What is gained by it that a control certificate does not have already: nothing. What a layout server's own key gains: it
    /// can stop service, as it could by refusing to vote, and one that lies can pretend to have brought an answer. Layout
    /// servers are believed anyway in what was decided. It still can neither write, trim, copy, empty a unit nor take a
    /// position, and units and sequencers check a term, a process start and a bootstrap's proof as they do for anybody.
    AtLeastOrLayout(Role),
}

impl Access {
    /// The role table.
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Describe => Self::Anyone,
            Request::Unit(request) => match request {
                UnitRequest::Read { .. }
                | UnitRequest::Settled { .. }
                | UnitRequest::StreamTails { .. }
                | UnitRequest::StreamPositions { .. } => Self::AtLeastOrServer(Role::Reader),
                UnitRequest::Write { kind, .. } => match kind {
                    WriteKind::Decide | WriteKind::Follow => Self::AtLeast(Role::Writer),
                    WriteKind::Copy => Self::AtLeast(Role::Control),
                },
                UnitRequest::Fill(fill) => match fill.kind {
                    WriteKind::Decide | WriteKind::Follow => Self::AtLeast(Role::Writer),
                    WriteKind::Copy => Self::AtLeast(Role::Control),
                },
                UnitRequest::Seal | UnitRequest::Announce { .. } => {
                    Self::AtLeastOrLayout(Role::Control)
                }
                UnitRequest::Trim { .. }
                | UnitRequest::Lacking { .. }
                | UnitRequest::Reset { .. } => Self::AtLeast(Role::Control),
                UnitRequest::Probe => Self::AtLeastOrServer(Role::Control),
            },
            Request::Sequencer(request) => match request {
                SequencerRequest::End { .. } => Self::AtLeastOrServer(Role::Reader),
                SequencerRequest::Tokens { .. } => Self::AtLeast(Role::Writer),
                SequencerRequest::Seal | SequencerRequest::Bootstrap(_) => {
                    Self::AtLeastOrLayout(Role::Control)
                }
                SequencerRequest::Probe => Self::AtLeastOrServer(Role::Control),
            },
            Request::Layout(request) => match request {
                LayoutRequest::Newest | LayoutRequest::At | LayoutRequest::Confirm => Self::Anyone,
                LayoutRequest::Report(report) => Self::AtLeast(report.needs()),
                LayoutRequest::Prepare { .. }
                | LayoutRequest::Propose { .. }
                | LayoutRequest::Learn { .. }
                | LayoutRequest::Opinion { .. }
                | LayoutRequest::Relay { .. } => Self::AtLeast(Role::Control),
                LayoutRequest::Genesis { .. } => Self::AtLeast(Role::Admin),
            },
        }
    }

    /// Whether `role` is enough.
    pub fn allows(self, role: Role) -> bool {
        match self {
            Self::Anyone => true,
            Self::AtLeast(least) => !role.is_server() && role >= least,
            Self::AtLeastOrServer(least) => role.is_server() || role >= least,
            Self::AtLeastOrLayout(least) => {
                role.may_serve(Kind::Layout) || Self::AtLeast(least).allows(role)
            }
        }
    }

    fn needs(self) -> Role {
        match self {
            Self::Anyone => Role::Reader,
            Self::AtLeast(least) | Self::AtLeastOrServer(least) | Self::AtLeastOrLayout(least) => {
                least
            }
        }
    }
}

/// Checks, for every request, the caller's cluster and role, and that the request means this very server.
///
/// `incarnation` is none for a layout server: it keeps everything on disk, so a restart changes nothing.
/// A probe of a log unit asks whether the unit writes, whichever process start it is: a restarted one that does is alive.
/// [`Request::Describe`] and questions for a layout may leave the server open; nothing else may.
///
/// # Errors
/// The first check that fails.
pub fn admit(
    caller: &Caller,
    head: &RequestHead,
    cluster: ClusterId,
    identity: Identity,
    incarnation: Option<Incarnation>,
) -> Result<(), Refusal> {
    for asked in [caller.cluster, head.cluster] {
        if asked != cluster {
            return Err(Refusal::WrongCluster {
                asked,
                here: cluster,
            });
        }
    }
    let access = Access::of(&head.request);
    if !access.allows(caller.role) {
        let verb = head.request.verb().to_owned();
        return Err(Refusal::WrongRole {
            has: caller.role,
            needs: access.needs(),
            verb,
        });
    }
    let open = matches!(
        head.request,
        Request::Describe
            | Request::Layout(LayoutRequest::Newest | LayoutRequest::At | LayoutRequest::Report(_))
    );
    let any_start = matches!(head.request, Request::Unit(UnitRequest::Probe));
    match head.to {
        None if open => Ok(()),
        None => Err(Refusal::malformed("the request does not name its server")),
        Some(target) if target.identity != identity => Err(Refusal::WrongServer {
            asked: target.identity,
            here: identity,
        }),
        Some(target) => match incarnation {
            Some(here) if target.incarnation != here && !any_start => {
                Err(Refusal::WrongIncarnation {
                    asked: target.incarnation,
                    here,
                })
            }
            Some(_) | None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::relay::tests::every_request;
    use crate::{Relayed, Target, Term};

    fn head(request: Request) -> RequestHead {
        RequestHead {
            id: 1,
            cluster: ClusterId([1; 16]),
            to: Some(Target {
                identity: Identity([2; 16]),
                incarnation: Incarnation(3),
            }),
            term: Term(0),
            request,
        }
    }

    fn asked_by(role: Role, head: &RequestHead) -> Result<(), Refusal> {
        let caller = Caller {
            cluster: ClusterId([1; 16]),
            role,
            name: "c".parse().unwrap(),
        };
        admit(
            &caller,
            head,
            ClusterId([1; 16]),
            Identity([2; 16]),
            Some(Incarnation(3)),
        )
    }

    #[test]
    fn a_reader_cannot_append_and_a_writer_cannot_seal() {
        let token = head(Request::Sequencer(SequencerRequest::Tokens {
            count: 1,
            streams: vec![],
        }));
        let seal = head(Request::Unit(UnitRequest::Seal));

        assert!(matches!(
            asked_by(Role::Reader, &token),
            Err(Refusal::WrongRole { .. })
        ));
        assert_eq!(asked_by(Role::Writer, &token), Ok(()));
        assert!(matches!(
            asked_by(Role::Writer, &seal),
            Err(Refusal::WrongRole { .. })
        ));
        assert_eq!(asked_by(Role::Control, &seal), Ok(()));
        for server in [Role::LogUnit, Role::Sequencer] {
            assert!(asked_by(server, &seal).is_err() && asked_by(server, &token).is_err());
        }
    }

    /// A layout server is asked by control clients to pass on what begins a term, and by nobody to do more. No other server
    /// is asked for any of it, so none may.
    #[test]
    fn a_layout_server_may_make_what_it_passes_on_and_no_other_change() {
        let sealing = |request: &Request| {
            matches!(
                request,
                Request::Unit(UnitRequest::Seal | UnitRequest::Announce { .. })
                    | Request::Sequencer(SequencerRequest::Seal | SequencerRequest::Bootstrap(_))
            )
        };
        for request in every_request() {
            let relayed = [Kind::LogUnit, Kind::Sequencer]
                .into_iter()
                .find_map(|kind| Relayed::of(kind, request.clone()));
            let access = Access::of(&request);
            for role in [Role::Layout, Role::Server] {
                // What else they may is what any server may.
                let may = relayed.is_some() || access.allows(Role::LogUnit);
                assert_eq!(access.allows(role), may, "{role}: {request:?}");
            }
            for role in [Role::LogUnit, Role::Sequencer] {
                assert!(!(sealing(&request) && access.allows(role)), "{request:?}");
            }
            // Whoever has something passed on may do it without.
            assert!(relayed.is_none() || access.allows(Role::Control));
        }
    }

    /// H17: every request says which cluster, server and process start it means.
    #[test]
    fn a_request_for_another_server_or_process_start_is_refused() {
        let right = head(Request::Unit(UnitRequest::Seal));
        let mut wrong = right.clone();
        wrong.cluster = ClusterId([4; 16]);
        assert!(matches!(
            asked_by(Role::Admin, &wrong),
            Err(Refusal::WrongCluster { .. })
        ));
        wrong = right.clone();
        wrong.to = Some(Target {
            identity: Identity([5; 16]),
            incarnation: Incarnation(3),
        });
        assert!(matches!(
            asked_by(Role::Admin, &wrong),
            Err(Refusal::WrongServer { .. })
        ));
        wrong.to = Some(Target {
            identity: Identity([2; 16]),
            incarnation: Incarnation(4),
        });
        assert!(matches!(
            asked_by(Role::Admin, &wrong),
            Err(Refusal::WrongIncarnation { .. })
        ));
        wrong.to = None;
        assert!(matches!(
            asked_by(Role::Admin, &wrong),
            Err(Refusal::Malformed { .. })
        ));
        assert_eq!(
            asked_by(
                Role::Reader,
                &RequestHead {
                    to: None,
                    ..head(Request::Describe)
                }
            ),
            Ok(())
        );
    }

    /// H29: whoever asks whether a unit still writes must not take a restarted one for a dead one. H17 stands for all else:
    /// a probe of a sequencer, too, whose answer speaks of one process start.
    #[test]
    fn a_probe_of_a_unit_may_name_an_earlier_process_start_and_no_other_server() {
        let earlier = |request| {
            let mut head = head(request);
            head.to.as_mut().unwrap().incarnation = Incarnation(2);
            head
        };
        let probe = earlier(Request::Unit(UnitRequest::Probe));
        for role in [Role::Layout, Role::Control] {
            assert_eq!(asked_by(role, &probe), Ok(()));
        }
        let mut other = probe.clone();
        other.to.as_mut().unwrap().identity = Identity([5; 16]);
        assert!(matches!(
            asked_by(Role::Layout, &other),
            Err(Refusal::WrongServer { .. })
        ));
        for request in [
            Request::Sequencer(SequencerRequest::Probe),
            Request::Unit(UnitRequest::Announce {
                start: crate::Position::FIRST,
            }),
        ] {
            assert!(matches!(
                asked_by(Role::Control, &earlier(request)),
                Err(Refusal::WrongIncarnation { .. })
            ));
        }
    }

    /// Both make a server call another: nobody asks for it who may not act on it. A relay besides runs under a certificate
    /// that may seal.
    #[test]
    fn only_control_asks_for_an_opinion_or_a_relay() {
        let server = crate::Server {
            name: "u-1".parse().unwrap(),
            address: "host:1".parse().unwrap(),
            identity: Identity([7; 16]),
            incarnation: Incarnation(1),
        };
        let opinion = head(Request::Layout(LayoutRequest::Opinion {
            of: Box::new(server.clone()),
            kind: Kind::LogUnit,
        }));
        let relay = head(Request::Layout(LayoutRequest::Relay {
            to: Box::new(server),
            request: Relayed::SealUnit,
        }));
        for asked in [&opinion, &relay] {
            for role in [Role::Reader, Role::Writer, Role::Layout, Role::Server] {
                assert!(matches!(
                    asked_by(role, asked),
                    Err(Refusal::WrongRole { .. })
                ));
            }
            assert_eq!(asked_by(Role::Control, asked), Ok(()));
        }
    }
}
