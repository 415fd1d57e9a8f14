//! A survey of all servers of a layout: who answers, as which process start, and who is gone as others see it too.

use std::collections::BTreeSet;
use std::pin::pin;

use futures_util::future::{Either, join, join_all, select};
use milonga_wire::{Decided, Description, Identity, Kind, Layout, Server, ServerName};

use crate::calls::Failure;
use crate::log::Log;
use crate::reconfigure::condition::{answers_soon, describe};
use crate::reconfigure::drive::{ChangeError, can_be_sealed, is_closed_only};
use crate::reconfigure::opinion::{self, Verdict};
use crate::reconfigure::plan::{Change, PlanError};
use crate::reconfigure::reach::{Far, Reach};

/// What a survey shows.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// A layout of the next term was accepted, or a unit or the sequencer is sealed for it: someone is at it, or died over it.
    pub half_done: bool,
    /// A unit or the sequencer runs in another process start than the layout lists, or a unit of a closed range that could not
    /// be sealed in this term is back.
    pub restarted: bool,
    /// Who is in trouble as a majority of the layout servers sees it, and standbys and spares that do not answer soon: they are
    /// not waited for once service stands still.
    pub absent: BTreeSet<Identity>,
    /// Of those, some that the open segment or the issuing of positions needs.
    is_lamed: bool,
    /// Who does not answer this client, but others, who asked it for this client: nobody is left out for that, and nothing
    /// begins for it (H29).
    pub far: Far,
    /// Of those, whom the layout needs.
    pub cut_off: Vec<ServerName>,
    /// Who does not answer, and too few said whether it answers them; or nobody could ask it for this client.
    unsure: Vec<ServerName>,
}

/// Whether `unit`, which only closed ranges need and nothing waited for, has no part in the term of `layout`, and might have.
fn is_back(layout: &Layout, unit: &Server, said: &Description) -> bool {
    let mut chains = layout.chains().map(|(chain, _)| chain);
    said.incarnation != unit.incarnation
        || said.term < layout.term
        || chains.any(|chain| chain.unreachable && chain.units.contains(&unit.identity))
}

/// What came of one server.
enum Found {
    Answers(Box<Description>),
    /// A majority finds it in trouble.
    Gone,
    /// So many reach it that no majority can find it in trouble. What it says, through one of them.
    Far(Box<Description>, Far),
    Unsure,
}

impl Survey {
    /// Asks every server of the newest layout, and about those that do not answer, and about `suspect`, the layout servers too.
    pub(super) async fn of(log: &Log, known: &Decided, suspect: Option<&ServerName>) -> Self {
        let layout = &known.layout;
        let units = layout.units.iter().map(|unit| (unit, Kind::LogUnit));
        let servers = units.chain([(&layout.sequencer, Kind::Sequencer)]);
        let found = join_all(servers.map(|(server, kind)| async move {
            let is_suspect = suspect == Some(&server.name);
            (
                server,
                kind,
                find(log, known, server, kind, is_suspect).await,
            )
        }));
        let standbys = layout.standbys.iter().map(|one| (one, Kind::Sequencer));
        let spares = layout.spares.iter().map(|one| (one, Kind::LogUnit));
        let ready = join_all(standbys.chain(spares).map(|(server, kind)| async move {
            let answers = answers_soon(log, server, kind).await;
            (server, answers)
        }));
        let (found, ready) = join(found, ready).await;
        let mut survey = Self::default();
        let mut back = vec![];
        for (server, kind, found) in found {
            let is_needed = kind == Kind::Sequencer || !is_closed_only(layout, server);
            let said = match found {
                Found::Answers(said) => said,
                Found::Far(said, far) => {
                    survey.far.add(far);
                    survey
                        .cut_off
                        .extend(is_needed.then(|| server.name.clone()));
                    said
                }
                Found::Gone => {
                    survey.absent.insert(server.identity);
                    survey.is_lamed |= is_needed;
                    continue;
                }
                Found::Unsure => {
                    survey.unsure.extend(is_needed.then(|| server.name.clone()));
                    continue;
                }
            };
            survey.half_done |= said.term > layout.term;
            survey.restarted |= is_needed && said.incarnation != server.incarnation;
            if !is_needed && is_back(layout, server, &said) {
                back.push((server, kind));
            }
        }
        // A later term can seal them, if they are well: one that cannot be sealed would be back in every term.
        let reach = &Reach::new(log, known, &survey.far);
        let back = join_all(back.into_iter().map(|(server, kind)| async move {
            let (verdict, _) = opinion::asked(log, layout, server, kind).await;
            verdict == Verdict::Unfounded && can_be_sealed(reach, server, layout.term).await
        }));
        survey.restarted |= back.await.contains(&true);
        let silent = ready.into_iter().filter(|(_, answers)| !answers);
        survey
            .absent
            .extend(silent.map(|(server, _)| server.identity));
        survey
    }

    /// Whether the layout needs no change as far as this client can see.
    pub(super) fn is_well(&self) -> bool {
        !self.needs_a_term() && self.cut_off.is_empty()
    }

    /// Whether something is wrong that only a new term mends.
    pub(super) fn needs_a_term(&self) -> bool {
        self.half_done || self.restarted || self.is_lamed || !self.unsure.is_empty()
    }

    /// Whether somebody whom the layout needs does not answer.
    pub(super) fn lacks_some(&self) -> bool {
        self.is_lamed || !self.unsure.is_empty()
    }

    /// Whether `change` can succeed at all.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing may be sealed for it.
    pub(super) fn permits(&self, layout: &Layout, change: &Change) -> Result<(), ChangeError> {
        let leaves = |name: &&ServerName| {
            let unit = layout.units.iter().find(|unit| unit.name == **name);
            unit.is_some_and(|unit| change.leaves(&unit.identity))
        };
        if let Some(name) = self.unsure.iter().find(|name| !leaves(name)) {
            return Err(ChangeError::Unconfirmed(name.to_string()));
        }
        for chain in &layout.open_segment().chains {
            // Who leaves by hand need not come back for it.
            let is_missed = |unit: &Identity| self.absent.contains(unit) && !change.leaves(unit);
            if chain.units.iter().all(is_missed) {
                let units = layout.units_of(chain).map(|unit| unit.name.to_string());
                return Err(PlanError::Missing(units.collect()).into());
            }
        }
        let mut sequencers = std::iter::once(&layout.sequencer).chain(&layout.standbys);
        if sequencers
            .clone()
            .all(|server| self.absent.contains(&server.identity))
        {
            let names = sequencers
                .by_ref()
                .map(|server| format!("{} is down", server.name));
            return Err(ChangeError::NoSequencer(names.collect()));
        }
        Ok(())
    }
}

/// Whoever is no suspect is asked about only if it does not answer itself, or says that its disk failed; a suspect that others
/// find in trouble is not waited for.
async fn find(log: &Log, known: &Decided, server: &Server, kind: Kind, is_suspect: bool) -> Found {
    let layout = &known.layout;
    let said = pin!(describe(log, server, kind));
    let asked = pin!(opinion::asked(log, layout, server, kind));
    let answers = |said: Result<Description, Failure>| {
        let said = said.ok().filter(|said| said.identity == server.identity);
        said.map(Box::new)
    };
    let (found, (verdict, reach)) = if is_suspect {
        match select(said, asked).await {
            Either::Left((said, asked)) => (answers(said), asked.await),
            Either::Right(((Verdict::Confirmed, _), _)) => return Found::Gone,
            // Another layout is known: whatever this one would show is of no use.
            Either::Right(((Verdict::Undecided, _), _)) if log.is_newer_than(layout.term) => {
                return Found::Unsure;
            }
            Either::Right((asked, said)) => (answers(said.await), asked),
        }
    } else {
        match answers(said.await) {
            // Who says of itself that it does not write is asked about, too.
            Some(said) if said.state != "failed" => return Found::Answers(said),
            found => (found, asked.await),
        }
    };
    match (found, verdict) {
        (_, Verdict::Confirmed) => Found::Gone,
        (Some(said), _) => Found::Answers(said),
        (None, Verdict::Unfounded) => {
            let far = Far::one(server.identity, reach);
            let through = Reach::new(log, known, &far);
            let said = through.describe(server, kind, layout.term).await;
            match answers(said) {
                Some(said) => Found::Far(said, far),
                None => Found::Unsure,
            }
        }
        (None, Verdict::Undecided) => Found::Unsure,
    }
}
