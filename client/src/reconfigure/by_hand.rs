//! What a wish comes to under a layout: a [`Change`], with every name and address looked up, or why there is none.
//!
//! Nothing here is asked of a server but who it is. `preview.rs` says what a change would bring before anything is
//! sealed, `carry_out.rs` makes it.

use std::collections::{BTreeMap, BTreeSet};

use milonga_host::Peer;
use milonga_host::net::PeerKind;
use milonga_wire::limits::{STRIPE_WIDTH_MAX, STRIPE_WIDTH_MIN};
use milonga_wire::{
    Address, Description, Kind, Layout, LayoutReply, LayoutRequest, Position, Refusal, Server,
    ServerName, Span, Term,
};

use crate::log::Log;
use crate::reconfigure::condition::describe;
use crate::reconfigure::drive::ChangeError;
use crate::reconfigure::plan::Change;
use crate::reconfigure::wish::{HandError, Wish};

/// Units that a chain may have: more would only cost.
const REPLICAS_MAX: u16 = 16;

/// What `wish` comes to under `layout`. Of [`Wish::Drain`] and [`Wish::Heal`] it is the first step.
///
/// # Errors
/// [`HandError`]; nothing has changed.
pub(super) async fn build(log: &Log, layout: &Layout, wish: &Wish) -> Result<Change, HandError> {
    let hand = Hand { log, layout };
    match wish {
        Wish::Rebuild => Ok(Change::default()),
        Wish::Heal => Ok(Change {
            heal: true,
            ..Change::default()
        }),
        Wish::Evict { unit, force } => hand.evict(unit, *force),
        Wish::Replace { old, new, force } => hand.replace(old, new, *force).await,
        Wish::AddUnit { chain, unit } => hand.add_unit(*chain, unit).await,
        Wish::RemoveUnit { unit } => hand.remove_unit(unit),
        Wish::AddChain { units } => hand.add_chain(units).await,
        Wish::RemoveChain { chain } => hand.remove_chain(*chain),
        Wish::AddSpare { unit } => hand.add_spare(unit).await,
        Wish::Drain { unit } => hand.leave(unit),
        Wish::MoveSequencer { to } => hand.move_sequencer(to).await,
        Wish::AddStandby { sequencer } => hand.add_standby(sequencer).await,
        Wish::RemoveStandby { sequencer } => hand.remove_standby(sequencer),
        Wish::SetLayoutServers { servers } => hand.set_layout_servers(servers).await,
        Wish::StripeWidth(width) => stripe_width(*width),
        Wish::Replicas(replicas) => set_replicas(*replicas),
        Wish::TrustRestarted(trusted) => Ok(Change {
            trust_restarted: Some(*trusted),
            ..Change::default()
        }),
        Wish::DeclareLost(span) => declare_lost(*span),
    }
}

/// `layout` as a hand reaches for it.
struct Hand<'a> {
    log: &'a Log,
    layout: &'a Layout,
}

impl<'a> Hand<'a> {
    fn evict(&self, unit: &str, force: bool) -> Result<Change, HandError> {
        let mut change = self.leave(unit)?;
        change.heal = true;
        if force {
            change.force.clone_from(&change.leave);
        } else {
            let name = self.unit(unit)?.name.as_str();
            self.check_not_last(unit, &format!("`milonga cluster replace {name} ADDRESS`"))?;
        }
        Ok(change)
    }

    fn remove_unit(&self, unit: &str) -> Result<Change, HandError> {
        let change = self.leave(unit)?;
        let chain = self.chain_of(self.unit(unit)?);
        if let Some((number, units)) = chain
            && units.len() == 1
        {
            return Err(HandError::Precondition(format!(
                "{unit} is the only unit of chain {number}; expected another beside it; \
                 try `milonga cluster remove-chain {number}`, or add a unit first"
            )));
        }
        Ok(change)
    }

    fn leave(&self, unit: &str) -> Result<Change, HandError> {
        let unit = self.unit(unit)?;
        Ok(Change {
            leave: BTreeSet::from([unit.identity]),
            ..Change::default()
        })
    }

    /// The last unit of a chain does not leave unless a spare is there for it. (What a spare does not hold, P3 keeps.)
    fn check_not_last(&self, unit: &str, instead: &str) -> Result<(), HandError> {
        match self.chain_of(self.unit(unit)?) {
            Some((number, units)) if units.len() == 1 && self.layout.spares.is_empty() => {
                Err(HandError::Precondition(format!(
                    "{unit} is the only unit of chain {number}, and no spare is there; \
                     expected another unit in its chain; try `milonga cluster add-unit {number} ADDRESS --wait`, or {instead}"
                )))
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn replace(&self, old: &str, new: &str, force: bool) -> Result<Change, HandError> {
        let leaving = self.unit(old)?;
        if new == leaving.name.as_str() {
            return Err(itself(old));
        }
        let comes = self.comes(new, Some(&leaving.name)).await?;
        let mut change = Change::default();
        if self.chain_of(leaving).is_some() {
            change.replace.insert(leaving.identity, comes);
        } else {
            // A spare, or a unit that is kept for what is closed: nobody takes a place in the open segment for it.
            change.leave.insert(leaving.identity);
            change.spares.push(comes);
        }
        if force {
            change.force.insert(leaving.identity);
        }
        Ok(change)
    }

    async fn add_unit(&self, chain: usize, unit: &str) -> Result<Change, HandError> {
        self.chain(chain)?;
        Ok(Change {
            join: vec![(chain, self.comes(unit, None).await?)],
            ..Change::default()
        })
    }

    async fn add_chain(&self, units: &[String]) -> Result<Change, HandError> {
        let mut comes: Vec<Server> = vec![];
        for unit in units {
            let server = self.comes(unit, None).await?;
            if comes.iter().any(|other| other.identity == server.identity) {
                return Err(HandError::Senseless(format!(
                    "{unit} is named twice; expected each unit of a chain once"
                )));
            }
            comes.push(server);
        }
        if comes.is_empty() {
            let why = "a chain of no units; expected at least one; try `add-chain U1,U2`";
            return Err(HandError::Senseless(why.to_owned()));
        }
        Ok(Change {
            chains: vec![comes],
            ..Change::default()
        })
    }

    fn remove_chain(&self, chain: usize) -> Result<Change, HandError> {
        self.chain(chain)?;
        if self.layout.open_segment().chains.len() == 1 {
            return Err(HandError::Precondition(format!(
                "chain {chain} is the last one; expected another for new positions; try `milonga cluster add-chain` first"
            )));
        }
        Ok(Change {
            without: BTreeSet::from([chain]),
            ..Change::default()
        })
    }

    async fn add_spare(&self, unit: &str) -> Result<Change, HandError> {
        if let Ok(known) = self.unit(unit) {
            return Err(self.in_use(known));
        }
        Ok(Change {
            spares: vec![self.comes(unit, None).await?],
            ..Change::default()
        })
    }

    async fn move_sequencer(&self, to: &str) -> Result<Change, HandError> {
        if is_named(&self.layout.sequencer, to) {
            return Err(HandError::Precondition(format!(
                "{to} issues positions already; expected a standby ({}); try `milonga cluster rebuild-sequencer` for a fresh start of it",
                names(&self.layout.standbys).join(", ")
            )));
        }
        let standby = find(&self.layout.standbys, to).ok_or_else(|| HandError::NotFound {
            what: "standby",
            wanted: to.to_owned(),
            there: names(&self.layout.standbys),
        })?;
        self.answers(standby, Kind::Sequencer).await?;
        Ok(Change {
            sequencer: Some(standby.name.clone()),
            ..Change::default()
        })
    }

    async fn add_standby(&self, sequencer: &str) -> Result<Change, HandError> {
        let all = std::iter::once(&self.layout.sequencer).chain(&self.layout.standbys);
        if let Some(known) = all.into_iter().find(|one| is_named(one, sequencer)) {
            let name = &known.name;
            return Err(HandError::Precondition(format!(
                "{name} is a sequencer of this layout already; expected a new one's address"
            )));
        }
        let comes = self.stranger(sequencer, Kind::Sequencer, None).await?;
        Ok(Change {
            standbys: vec![listed(comes, sequencer)?],
            ..Change::default()
        })
    }

    fn remove_standby(&self, sequencer: &str) -> Result<Change, HandError> {
        if is_named(&self.layout.sequencer, sequencer) {
            return Err(HandError::Precondition(format!(
                "{sequencer} issues positions; expected a standby; try `milonga cluster move-sequencer` first"
            )));
        }
        let standby =
            find(&self.layout.standbys, sequencer).ok_or_else(|| HandError::NotFound {
                what: "standby",
                wanted: sequencer.to_owned(),
                there: names(&self.layout.standbys),
            })?;
        Ok(Change {
            retire: BTreeSet::from([standby.name.clone()]),
            ..Change::default()
        })
    }

    /// Those that are named as the layout has them stay even if they are silent: a majority must not be.
    async fn set_layout_servers(&self, servers: &[String]) -> Result<Change, HandError> {
        if !matches!(servers.len(), 1 | 3 | 5) {
            return Err(HandError::Senseless(format!(
                "{} layout servers; expected 1, 3 or 5: any other number survives no more failures",
                servers.len()
            )));
        }
        let mut set: Vec<Server> = vec![];
        for named in servers {
            let present = find(&self.layout.layout_servers, named);
            let server = match present {
                Some(present) => match describe(self.log, present, Kind::Layout).await {
                    Ok(said) if said.identity != present.identity => {
                        // Its directory was wiped: it is a new server, and has to learn.
                        check_kind(named, &said, Kind::Layout)?;
                        listed(said, present.address.as_str())?
                    }
                    Ok(said) => Server {
                        incarnation: said.incarnation,
                        ..present.clone()
                    },
                    Err(_) => present.clone(),
                },
                None => listed(self.stranger(named, Kind::Layout, None).await?, named)?,
            };
            if set.iter().any(|other| other.identity == server.identity) {
                return Err(HandError::Senseless(format!(
                    "{named} is named twice; expected each layout server once"
                )));
            }
            set.push(server);
        }
        Ok(Change {
            layout_servers: Some(set),
            ..Change::default()
        })
    }

    fn chain(&self, number: usize) -> Result<(), HandError> {
        let chains = self.layout.open_segment().chains.len();
        if number < chains {
            return Ok(());
        }
        Err(HandError::NotFound {
            what: "chain",
            wanted: number.to_string(),
            there: (0..chains).map(|number| number.to_string()).collect(),
        })
    }

    /// The log unit or spare of that name or address.
    fn unit(&self, named: &str) -> Result<&'a Server, HandError> {
        let (units, spares) = (&self.layout.units, &self.layout.spares);
        let found = find(units, named).or_else(|| find(spares, named));
        found.ok_or_else(|| {
            let mut there = [names(units), names(spares)].concat();
            there.sort_unstable();
            HandError::NotFound {
                what: "log unit",
                wanted: named.to_owned(),
                there,
            }
        })
    }

    /// The chain of the open segment that `unit` serves in.
    fn chain_of(&self, unit: &Server) -> Option<(usize, &'a [milonga_wire::Identity])> {
        let chains = self.layout.open_segment().chains.iter().enumerate();
        let mut chains = chains.map(|(number, chain)| (number, chain.units.as_slice()));
        chains.find(|(_, units)| units.contains(&unit.identity))
    }

    /// A unit that is to serve in the open segment: a spare, or a new one (P8).
    async fn comes(&self, named: &str, in_place: Option<&ServerName>) -> Result<Server, HandError> {
        match self.unit(named) {
            Ok(known) if self.chain_of(known).is_some() => {
                if in_place == Some(&known.name) {
                    // A new directory under the old name and at the old address, or the old one after all.
                    let said = describe(self.log, known, Kind::LogUnit).await;
                    if said.is_ok_and(|said| said.identity == known.identity) {
                        return Err(itself(named));
                    }
                    let address = known.address.as_str();
                    let said = self.stranger(address, Kind::LogUnit, in_place).await?;
                    return listed(said, address);
                }
                Err(self.in_use(known))
            }
            Ok(known) if find(&self.layout.spares, known.name.as_str()).is_some() => {
                self.answers(known, Kind::LogUnit).await?;
                Ok(known.clone())
            }
            Ok(known) => Err(self.in_use(known)),
            Err(not_found) => {
                if named.parse::<Address>().is_err() {
                    return Err(not_found);
                }
                listed(self.stranger(named, Kind::LogUnit, in_place).await?, named)
            }
        }
    }

    fn in_use(&self, unit: &Server) -> HandError {
        let name = &unit.name;
        HandError::Precondition(match self.chain_of(unit) {
            Some((number, _)) => format!(
                "{name} serves in chain {number} already; expected a spare, or the address of a new unit"
            ),
            None if find(&self.layout.spares, name.as_str()).is_some() => {
                format!("{name} is a spare already; expected the address of a new unit")
            }
            None => format!(
                "{name} is kept for closed positions; expected the address of a new unit; try `milonga cluster heal` and `evict {name}` first"
            ),
        })
    }

    /// That a server of the layout runs, on the directory that the layout knows.
    async fn answers(&self, server: &Server, kind: Kind) -> Result<(), HandError> {
        let stranger = |why| HandError::Stranger {
            address: format!("{} ({})", server.name, server.address),
            kind: word(kind),
            why,
        };
        let said = describe(self.log, server, kind).await.map_err(stranger)?;
        if said.identity != server.identity {
            return Err(HandError::Precondition(format!(
                "{} runs on another directory than the layout lists; expected the one of {}; give it back, or add it by address under a new name",
                server.name, server.identity
            )));
        }
        Ok(())
    }

    /// Who listens at `address`: of the wanted kind, in no layout, and empty. `in_place` is whose name it may have.
    async fn stranger(
        &self,
        address: &str,
        kind: Kind,
        in_place: Option<&ServerName>,
    ) -> Result<Description, HandError> {
        let parsed: Address = address.parse().map_err(|why: milonga_wire::InvalidName| {
            HandError::Senseless(format!("{why}; new servers are named by their address"))
        })?;
        let peer = Peer {
            name: None,
            address: parsed,
            kind: PeerKind::from(kind),
        };
        let said = self.log.shared.calls.describe(&peer).await;
        let said = said.map_err(|why| match why.refusal() {
            Some(Refusal::WrongCluster { here, .. }) => HandError::Precondition(format!(
                "{address} belongs to another cluster, {here}; expected a {} of this one",
                word(kind)
            )),
            Some(_) | None => HandError::Stranger {
                address: address.to_owned(),
                kind: word(kind),
                why,
            },
        })?;
        check_kind(address, &said, kind)?;
        if let Some(known) = self
            .everyone()
            .find(|known| known.identity == said.identity)
        {
            return Err(HandError::Precondition(format!(
                "{address} is {}, which the layout lists already; expected a new server",
                known.name
            )));
        }
        let same_name = self.everyone().find(|known| known.name == said.name);
        if let Some(known) = same_name.filter(|known| Some(&known.name) != in_place) {
            return Err(HandError::Precondition(format!(
                "the layout lists another server as {}, at {}; expected a name of its own for each; \
                 try `milonga cluster replace {} {address}` if its directory was lost, or give the new one another name",
                known.name, known.address, known.name
            )));
        }
        // Of another cluster of the same certificates, or of this one's past, in use or not.
        let serves = ["serving", "full"].contains(&said.state.as_str());
        let is_empty = said.end == Position::FIRST && said.trimmed == Position::FIRST;
        if serves && (kind == Kind::Sequencer || kind == Kind::LogUnit && is_empty) {
            return Err(HandError::Precondition(format!(
                "{} ({address}) serves in term {} of a layout that is not the newest one here; expected a server of no cluster; \
                 stop the other cluster, or give it a new directory",
                said.name, said.term
            )));
        }
        if kind == Kind::Layout
            && said.state != "blank"
            && !self.has_our_history(&said, address).await?
        {
            return Err(HandError::Precondition(format!(
                "{} ({address}) decides the layouts of another cluster; expected a new layout server, or one of this cluster; \
                 give it an empty directory",
                said.name
            )));
        }
        if kind == Kind::LogUnit && !said.blank && !is_empty {
            return Err(HandError::Precondition(format!(
                "{} ({address}) is not blank: it holds positions below {}; expected an empty one; \
                 try `milonga cluster reset-unit {address}` if it left this cluster, or give it a new directory",
                said.name, said.end
            )));
        }
        Ok(said)
    }

    /// Whether a layout server knows the same first layout as this cluster's.
    async fn has_our_history(&self, said: &Description, address: &str) -> Result<bool, HandError> {
        let server = listed(said.clone(), address)?;
        let calls = &self.log.shared.calls;
        let asked = calls.layout(&server, Term::GENESIS, LayoutRequest::At);
        let ours = self.log.shared.layouts.decided_at(Term::GENESIS).await;
        let ours = ours
            .map_err(ChangeError::from)?
            .map(|decided| decided.layout);
        Ok(match asked.await {
            Ok(LayoutReply::At { decided }) => {
                decided.is_none_or(|decided| Some(decided.layout) == ours)
            }
            _ => false,
        })
    }

    fn everyone(&self) -> impl Iterator<Item = &'a Server> {
        let layout = self.layout;
        layout
            .layout_servers
            .iter()
            .chain([&layout.sequencer])
            .chain(&layout.standbys)
            .chain(&layout.units)
            .chain(&layout.spares)
    }
}

fn itself(unit: &str) -> HandError {
    HandError::Senseless(format!(
        "{unit} cannot be replaced by itself; expected another unit; \
         if it has a new, empty directory, name it by its address"
    ))
}

fn check_kind(named: &str, said: &Description, kind: Kind) -> Result<(), HandError> {
    if said.kind == kind {
        return Ok(());
    }
    Err(HandError::Precondition(format!(
        "{named} is a {}, {}; expected a {}",
        word(said.kind),
        said.name,
        word(kind)
    )))
}

fn listed(said: Description, address: &str) -> Result<Server, HandError> {
    let address = address
        .parse()
        .map_err(|why: milonga_wire::InvalidName| HandError::Senseless(why.to_string()))?;
    Ok(Server {
        name: said.name,
        address,
        identity: said.identity,
        incarnation: said.incarnation,
    })
}

fn declare_lost(span: Span) -> Result<Change, HandError> {
    if span.is_empty() {
        return Err(HandError::Senseless(format!(
            "{span} holds no position; expected FROM below TO"
        )));
    }
    Ok(Change {
        lost: vec![span],
        ..Change::default()
    })
}

fn stripe_width(width: u32) -> Result<Change, HandError> {
    if !(STRIPE_WIDTH_MIN..=STRIPE_WIDTH_MAX).contains(&width) {
        return Err(HandError::Senseless(format!(
            "stripes of {width} positions; expected {STRIPE_WIDTH_MIN} to {STRIPE_WIDTH_MAX}; try `stripe-width=256`"
        )));
    }
    Ok(Change {
        stripe_width: Some(width),
        ..Change::default()
    })
}

fn set_replicas(replicas: u16) -> Result<Change, HandError> {
    if !(1..=REPLICAS_MAX).contains(&replicas) {
        return Err(HandError::Senseless(format!(
            "{replicas} replicas; expected 1 to {REPLICAS_MAX}; try `replicas=3`"
        )));
    }
    Ok(Change {
        replicas: Some(replicas),
        ..Change::default()
    })
}

fn is_named(server: &Server, named: &str) -> bool {
    server.name.as_str() == named || server.address.as_str() == named
}

fn find<'a>(servers: &'a [Server], named: &str) -> Option<&'a Server> {
    servers.iter().find(|server| is_named(server, named))
}

fn names(servers: &[Server]) -> Vec<String> {
    servers.iter().map(|one| one.name.to_string()).collect()
}

pub(super) fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Layout => "layout server",
        Kind::Sequencer => "sequencer",
        Kind::LogUnit => "log unit",
    }
}

/// Whether `new` is as `change`, made of `old`, wants it: another proposer may have come first, with something else.
pub(super) fn took_effect(change: &Change, old: &Layout, new: &Layout) -> bool {
    let open = &new.open_segment().chains;
    let serves =
        |unit: &milonga_wire::Identity| open.iter().any(|chain| chain.units.contains(unit));
    let is_spare = |unit: &Server| new.spares.iter().any(|one| one.identity == unit.identity);
    let gone = |unit: &milonga_wire::Identity| {
        !serves(unit) && new.spares.iter().all(|one| one.identity != *unit)
    };
    let by_number: BTreeMap<usize, &milonga_wire::Chain> =
        old.open_segment().chains.iter().enumerate().collect();
    let removed = |number: &usize| {
        let chain = by_number.get(number);
        chain.is_none_or(|chain| !chain.units.iter().any(serves))
    };
    let identities = |servers: &[Server]| -> Vec<milonga_wire::Identity> {
        servers.iter().map(|server| server.identity).collect()
    };
    let sequencers = || std::iter::once(&new.sequencer).chain(&new.standbys);
    let is_lost = |span: &Span| {
        let span = span.intersect(Span::new(Position::FIRST, new.open_segment().start));
        let covers = |lost: &Span| lost.start <= span.start && span.end <= lost.end;
        span.is_empty() || new.lost.iter().any(covers)
    };
    new.term > old.term
        && change.leave.iter().all(gone)
        && change.replace.keys().all(gone)
        && change.replace.values().all(|unit| serves(&unit.identity))
        && change.join.iter().all(|(_, unit)| serves(&unit.identity))
        && change
            .chains
            .iter()
            .flatten()
            .all(|unit| serves(&unit.identity))
        && change.without.iter().all(removed)
        && change
            .spares
            .iter()
            .all(|unit| is_spare(unit) || serves(&unit.identity))
        && change
            .stripe_width
            .is_none_or(|width| new.open_segment().stripe_width == width)
        && change
            .sequencer
            .as_ref()
            .is_none_or(|name| new.sequencer.name == *name)
        && change
            .layout_servers
            .as_ref()
            .is_none_or(|servers| identities(servers) == identities(&new.layout_servers))
        && change
            .standbys
            .iter()
            .all(|one| sequencers().any(|there| there.name == one.name))
        && change
            .retire
            .iter()
            .all(|name| sequencers().all(|there| there.name != *name))
        && change
            .replicas
            .is_none_or(|replicas| new.settings.replicas == replicas)
        && change
            .trust_restarted
            .is_none_or(|trusted| new.settings.trust_restarted == trusted)
        && change.lost.iter().all(is_lost)
}
