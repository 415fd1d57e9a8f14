//! A unit that left is made ready to come back, as another one, empty.
//!
//! H14: only what no segment and no spare list of the newest decided layout names, as a majority of the layout servers says,
//! and while no layout of the next term is accepted anywhere. The unit compares the rest: its identity, its term, and
//! whether that term's layout was announced to it. A proposer that would list it meanwhile must have sealed it in the next
//! term, and then the reset is refused; or finds it gone, and cannot.

use std::time::Duration;

use milonga_wire::{
    Address, Description, Identity, Incarnation, Kind, Layout, Payload, Server, ServerName, Term,
    UnitReply, UnitRequest,
};

use milonga_host::net::PeerKind;
use milonga_host::{Host, Peer};

use crate::calls::{Failure, unexpected};
use crate::layouts::LayoutsError;
use crate::log::Log;

/// Between two looks at a unit whose answer to a reset was lost, and how many there are.
const EMPTIED_PAUSE: Duration = Duration::from_millis(500);
const EMPTIED_LOOKS: u32 = 40;

/// A unit that holds nothing and that no layout lists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reset {
    /// The unit, as it is now.
    pub unit: Server,
    /// The identity that it gave up; none if it was blank already.
    pub before: Option<Identity>,
}

/// Why a unit was not reset. It is as it was, unless a call to it was lost.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResetError {
    /// No majority of the layout servers was read.
    #[error(transparent)]
    Layouts(#[from] LayoutsError),
    /// A layout of the next term was accepted by some layout server: it may list the unit.
    #[error("the layout of term {0} is half decided; let it be finished, then try again")]
    HalfDecided(Term),
    /// The newest layout names it.
    #[error(
        "the layout of term {term} lists {name}; evict it, and wait until what it held is copied or trimmed"
    )]
    Listed {
        /// The unit.
        name: ServerName,
        /// The layout's term.
        term: Term,
    },
    /// Something else listens there.
    #[error("{0} is no log unit; give the address of one")]
    WrongKind(ServerName),
    /// Another unit than the one that left.
    #[error(
        "another unit listens at the address of {0}, and is not empty; `milonga cluster reset-unit` empties it by hand"
    )]
    Another(ServerName),
    /// It did not answer, or refused.
    #[error(transparent)]
    Server(#[from] Failure),
}

/// Makes the log unit that listens at `address` forget everything and become another one: blank, of a new identity. A blank
/// one stays as it is. For units that left the cluster only.
///
/// # Errors
/// [`ResetError`].
pub async fn reset_left_unit(log: &Log, address: &Address) -> Result<Reset, ResetError> {
    reset(log, address, None).await
}

/// The same, but only of the unit of that identity, if one is given, or of a blank one.
pub(super) async fn reset(
    log: &Log,
    address: &Address,
    only: Option<Identity>,
) -> Result<Reset, ResetError> {
    let known = log.shared.layouts.read().await?;
    let layout = &known.decided.layout;
    if known
        .standings
        .iter()
        .any(|standing| standing.accepted.is_some())
    {
        return Err(ResetError::HalfDecided(layout.term.next()));
    }
    let peer = Peer {
        name: None,
        address: address.clone(),
        kind: PeerKind::LogUnit,
    };
    let found = log.shared.calls.describe(&peer).await?;
    if found.kind != Kind::LogUnit {
        return Err(ResetError::WrongKind(found.name));
    }
    if is_listed(layout, found.identity) {
        return Err(ResetError::Listed {
            name: found.name,
            term: layout.term,
        });
    }
    let unit = server(&found, address, found.identity, found.incarnation);
    if found.blank {
        return Ok(Reset { unit, before: None });
    }
    let of = found.identity;
    if only.is_some_and(|only| only != of) {
        return Err(ResetError::Another(found.name));
    }
    let asked = log.shared.calls.unit(
        &unit,
        layout.term,
        UnitRequest::Reset { of },
        Payload::new(),
    );
    match asked.await {
        Ok((
            UnitReply::Reset {
                identity,
                incarnation,
            },
            _,
        )) => Ok(Reset {
            unit: server(&found, address, identity, incarnation),
            before: Some(of),
        }),
        Ok(_) => Err(unexpected(found.name.as_str()).into()),
        // Files of many gigabytes take longer to remove than a call waits.
        Err(failure @ Failure::Call(_)) => match emptied(log, &peer, of).await {
            Some(unit) => Ok(Reset {
                unit: server(&unit, address, unit.identity, unit.incarnation),
                before: Some(of),
            }),
            None => Err(failure.into()),
        },
        Err(failure) => Err(failure.into()),
    }
}

/// The unit, once it says that it is another one now, and blank.
async fn emptied(log: &Log, peer: &Peer, of: Identity) -> Option<Description> {
    let Host { clock, random, .. } = log.host();
    for _ in 0..EMPTIED_LOOKS {
        clock.sleep(random.jittered(EMPTIED_PAUSE)).await;
        let found = log.shared.calls.describe(peer).await.ok();
        let found = found.filter(|found| found.identity != of && found.blank);
        if found.is_some() {
            return found;
        }
    }
    None
}

fn is_listed(layout: &Layout, identity: Identity) -> bool {
    let mut all = layout.units.iter().chain(&layout.spares);
    all.any(|server| server.identity == identity)
}

fn server(
    found: &Description,
    address: &Address,
    identity: Identity,
    incarnation: Incarnation,
) -> Server {
    Server {
        name: found.name.clone(),
        address: address.clone(),
        identity,
        incarnation,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use milonga_wire::{Position, Refusal, Request, Role, Span};

    use super::*;
    use crate::reconfigure::{Change, change};
    use crate::testing::{Cluster, Fault, once};

    fn listed(cluster: &Cluster, name: &str) -> Server {
        let layout = cluster.layout();
        let mut units = layout.units.iter();
        let found = units.find(|unit| unit.name.as_str() == name);
        found.unwrap().clone()
    }

    /// A cluster of one chain, and a unit that left it: what it held was trimmed, so that no segment names it.
    async fn left(name: &str) -> (Cluster, Log, Server) {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Control);
        for number in 0..6_u8 {
            log.append(vec![number], &[]).await.unwrap();
        }
        let unit = listed(&cluster, name);
        let leave = Change {
            leave: BTreeSet::from([unit.identity]),
            ..Change::default()
        };
        change(&log, &leave, "a test").await.unwrap();
        assert!(!is_listed(&cluster.layout(), unit.identity));
        (cluster, log, unit)
    }

    /// 3.7, H14: what came back is nobody's unit; it can be taken as a new one.
    #[tokio::test(start_paused = true)]
    async fn a_unit_that_left_comes_back_as_another_one_and_empty() {
        let (cluster, log, unit) = left("u-02").await;
        let reset = reset_left_unit(&log, &unit.address).await.unwrap();
        assert_eq!(reset.before, Some(unit.identity));
        assert_ne!(reset.unit.identity, unit.identity);
        assert!(cluster.slot("u-02", 0).is_none());

        let join = Change {
            join: vec![(0, reset.unit.clone())],
            ..Change::default()
        };
        change(&log, &join, "a test").await.unwrap();
        let position = log.append("more", &[]).await.unwrap();
        assert!(cluster.slot("u-02", position.0).is_some());
    }

    /// H14: a unit that any segment or the list of spares names is not emptied, whoever asks.
    #[tokio::test(start_paused = true)]
    async fn a_listed_unit_is_not_reset() {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Control);
        log.append("a", &[]).await.unwrap();
        let unit = listed(&cluster, "u-01");
        let refused = reset_left_unit(&log, &unit.address).await;
        assert!(
            matches!(refused, Err(ResetError::Listed { .. })),
            "{refused:?}"
        );
        // Nor by a client that does not look.
        let of = unit.identity;
        let term = cluster.layout().term;
        let asked = log
            .shared
            .calls
            .unit(&unit, term, UnitRequest::Reset { of }, Payload::new());
        let failure = asked.await.unwrap_err();
        assert_eq!(failure.refusal(), Some(&Refusal::InUse { term }));

        let spare = cluster.add_unit("s-0");
        let ready = Change {
            spares: vec![spare.clone()],
            ..Change::default()
        };
        change(&log, &ready, "a test").await.unwrap();
        let refused = reset_left_unit(&log, &spare.address).await;
        assert!(
            matches!(refused, Err(ResetError::Listed { .. })),
            "{refused:?}"
        );
        assert!(cluster.slot("u-01", 0).is_some());
    }

    /// H14: the half decided layout may list it. And a proposer that has sealed it is going to.
    #[tokio::test(start_paused = true)]
    async fn a_unit_is_not_reset_while_the_next_layout_may_list_it() {
        let (cluster, log, unit) = left("u-01").await;
        let term = cluster.layout().term;
        let seal = log
            .shared
            .calls
            .unit(&unit, term.next(), UnitRequest::Seal, Payload::new());
        seal.await.unwrap();
        let refused = reset_left_unit(&log, &unit.address).await;
        let Err(ResetError::Server(failure)) = &refused else {
            panic!("{refused:?}");
        };
        assert!(matches!(failure.refusal(), Some(Refusal::StaleTerm { .. })));

        cluster.rule(once("l-0", "announce a layout", Fault::LoseRequest));
        cluster.rule(|server, request| {
            (server == "l-0" && request.verb() == "announce a layout").then_some(Fault::Down)
        });
        let proposer = cluster.client(Role::Control);
        let _ = crate::reconfigure::rebuild(&proposer, "a test").await;
        let refused = reset_left_unit(&log, &unit.address).await;
        assert!(
            matches!(refused, Err(ResetError::HalfDecided(_))),
            "{refused:?}"
        );
        assert!(cluster.slot("u-01", 0).is_some());
    }

    /// 3.7, H7, H40: clients that know only the layout in which the unit served ask it, before and after it was emptied. None is
    /// told that an acknowledged entry was never written, and none acknowledges anything by it.
    #[tokio::test(start_paused = true)]
    async fn clients_of_an_old_layout_believe_nothing_of_a_unit_that_came_back() {
        for name in ["u-00", "u-02"] {
            for is_reset in [false, true] {
                let cluster = Cluster::new(1, 3, 1);
                let log = cluster.client(Role::Control);
                let stale = cluster.client(Role::Writer);
                for number in 0..4_u8 {
                    log.append(vec![number], &[]).await.unwrap();
                }
                stale.read(Position(3)).await.unwrap();
                let unit = listed(&cluster, name);
                // It is away while the others go on without it.
                cluster.rule({
                    let name = name.to_owned();
                    move |server, _: &Request| (server == name).then_some(Fault::Down)
                });
                for number in 4..8_u8 {
                    log.append(vec![number], &[]).await.unwrap();
                }
                cluster.heal();
                if is_reset {
                    reset_left_unit(&log, &unit.address).await.unwrap();
                }
                stale.append(vec![8], &[]).await.unwrap();
                let all = Span::new(Position::FIRST, Position(u64::MAX));
                for reader in [&stale, &log] {
                    let entries = reader.read_range(all).await.unwrap();
                    let records: Vec<u8> = entries
                        .iter()
                        .filter_map(|entry| Some(entry.payload()?[0]))
                        .collect();
                    assert_eq!(records, (0..9).collect::<Vec<u8>>(), "{name} {is_reset}");
                }
            }
        }
    }

    /// Removing what it held takes longer than the call: the outcome is looked for.
    #[tokio::test(start_paused = true)]
    async fn a_reset_whose_answer_is_lost_is_found_done() {
        let (cluster, log, unit) = left("u-02").await;
        cluster.rule(once("u-02", "reset", Fault::LoseReply));
        let reset = reset_left_unit(&log, &unit.address).await.unwrap();
        assert_eq!(reset.before, Some(unit.identity));
        assert_ne!(reset.unit.identity, unit.identity);
    }
}
