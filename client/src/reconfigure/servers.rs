//! The layout servers themselves change: who decides from the next term on.
//!
//! ```text
//! the present ones, layout t                the ones to come
//!        │                                        │
//!        │            Learn 0, 1 … t ────────────▶│  the whole history (a blank one takes it, and votes on nothing)
//!  Prepare, Propose t+1 ──▶│                      │  decided by the present ones; it names those to come
//!        │                                        │
//!        │            Learn t+1 ─────────────────▶│  a majority holds it: now they can confirm it, and decide t+2
//! ```
//! Who proposes may die anywhere: before the decision nothing has changed; after it, whoever reads the present ones
//! finds a layout accepted or decided, finishes it, and so hands it to those to come. Those that left answer with the
//! layout that names their successors for as long as they run.
//!
//! Sources: Lamport, *Paxos Made Simple*, "Implementing a State Machine" (the state after command i decides who votes on
//! i + α; here α is 1).

use milonga_wire::{Decided, LayoutReply, LayoutRequest, Server, Term};
use tokio::sync::mpsc;

use crate::calls::Failure;
use crate::log::Log;
use crate::reconfigure::drive::{ChangeError, teach};

/// Teaches every layout server of `decided` that lags behind what it lacks: else it could not confirm the term (H20).
///
/// # Errors
/// [`ChangeError::NotHeld`] unless a majority of them holds it.
pub(super) async fn hold(log: &Log, decided: &Decided) -> Result<(), ChangeError> {
    taught(log, &decided.layout.layout_servers, decided).await
}

/// Teaches every layout server that lags behind the newest layout what it lacks, if it answers: until then it votes on nothing.
///
/// # Errors
/// [`ChangeError::NotHeld`] if a majority of them does not hold the newest layout then.
pub async fn catch_up(log: &Log) -> Result<(), ChangeError> {
    let known = log.shared.layouts.read().await?;
    hold(log, &known.decided).await
}

/// Teaches `servers` all layouts up to `decided`, before they become the layout servers.
///
/// # Errors
/// [`ChangeError::NotHeld`] unless a majority of them holds it then.
pub(super) async fn teach_history(
    log: &Log,
    servers: &[Server],
    decided: &Decided,
) -> Result<(), ChangeError> {
    taught(log, servers, decided).await
}

/// Waits for a majority only: the others are taught all the same.
async fn taught(log: &Log, servers: &[Server], decided: &Decided) -> Result<(), ChangeError> {
    let (told, mut tells) = mpsc::unbounded_channel();
    for server in servers {
        let (server, decided, told) = (server.clone(), decided.clone(), told.clone());
        log.background(|log| async move {
            // Nobody listens any more if the others were enough.
            let _ = told.send(teach_one(&log, &server, &decided).await);
        });
    }
    drop(told);
    let needed = servers.len() / 2 + 1;
    let (mut got, mut why) = (0, vec![]);
    while let Some(lesson) = tells.recv().await {
        match lesson {
            Ok(()) => got += 1,
            Err(failure) => why.push(failure),
        }
        if got >= needed {
            return Ok(());
        }
    }
    Err(ChangeError::NotHeld { got, needed, why })
}

async fn teach_one(log: &Log, server: &Server, decided: &Decided) -> Result<(), String> {
    let term = decided.layout.term;
    let mut known = None;
    for attempt in 0..2 {
        known = newest(log, server, term)
            .await
            .map_err(|failure| failure.to_string())?;
        if known >= Some(term) {
            return Ok(());
        }
        if attempt == 0 {
            teach(log, server, known, decided).await;
        }
    }
    let upto = known.map_or("no layout".to_owned(), |known| {
        format!("layouts up to {known}")
    });
    Err(format!("{} holds {upto}, not {term}", server.name))
}

/// The newest term that `server` knows the decided layout of.
async fn newest(log: &Log, server: &Server, term: Term) -> Result<Option<Term>, Failure> {
    let calls = &log.shared.calls;
    match calls.layout(server, term, LayoutRequest::Newest).await? {
        LayoutReply::Newest { decided, .. } => Ok(decided.map(|decided| decided.layout.term)),
        _ => Err(crate::calls::unexpected(server.name.as_str())),
    }
}
