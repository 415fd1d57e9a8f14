//! Seals that skip terms: a layout server must know the layout before the one they are for (U2). And resets: the newest layout
//! that the unit's own layout servers know must not list it (U12).
//!
//! A unit that was left out of several terms is sealed over all of them at once. Nobody else may do that: a seal of the
//! largest term would end the unit for ever. And whoever asks for a reset may speak of another cluster's layout.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use milonga_host::net::{Peer, PeerKind, Request};
use milonga_wire::{
    Address, Layout, LayoutReply, LayoutRequest, Payload, Refusal, Reply, Request as Wanted,
    RequestHead, Term,
};
use tokio::sync::Notify;

use super::{Later, Shared, Waiting, busy, lock};

/// How long a layout server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How many sets of layout servers are asked, each named by the one before.
const SETS_MAX: usize = 4;
/// Seals that wait for a layout server's word at most.
const WAITING_MAX: usize = 64;

/// Seals that wait, each with the term that a layout server must have seen decided; and resets.
#[derive(Default)]
pub(super) struct Confirmations {
    waiting: Mutex<Vec<(Waiting, Term)>>,
    resets: Mutex<Vec<Later>>,
    work: Notify,
}

impl Confirmations {
    pub(super) fn push(&self, seal: Waiting, least: Term) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() < WAITING_MAX {
            waiting.push((seal, least));
            drop(waiting);
            self.work.notify_one();
        } else {
            drop(waiting);
            seal.respond.send(Err(busy("seals to confirm")));
        }
    }

    pub(super) fn push_reset(&self, reset: Later) {
        let mut resets = lock(&self.resets);
        if resets.len() < WAITING_MAX {
            resets.push(reset);
            drop(resets);
            self.work.notify_one();
        } else {
            drop(resets);
            reset.respond.send(Err(busy("resets to confirm")));
        }
    }
}

impl Shared {
    pub(super) async fn confirm_for_ever(self: Arc<Self>) {
        loop {
            self.confirmations.work.notified().await;
            let resets = std::mem::take(&mut *lock(&self.confirmations.resets));
            let waiting = std::mem::take(&mut *lock(&self.confirmations.waiting));
            let enough = waiting.iter().map(|(_, least)| *least);
            let enough = enough.chain(resets.iter().map(|reset| reset.term)).max();
            let Some(enough) = enough else { continue };
            let newest = self.newest_layout(enough).await;
            for reset in resets {
                self.reset_unless_listed(reset, newest.as_ref());
            }
            for (mut seal, least) in waiting {
                if newest.as_ref().is_some_and(|newest| newest.term >= least) {
                    seal.asked.confirmed = true;
                    self.enqueue(seal);
                } else {
                    let asked = seal.asked.term;
                    let current = lock(&self.standing).term;
                    let refusal = Refusal::TermJump { asked, current };
                    seal.respond.send(Err(refusal));
                }
            }
        }
    }

    /// Does what `reset` asks if the `newest` layout that its own layout servers know is as new as that, and does not list this
    /// unit.
    fn reset_unless_listed(&self, reset: Later, newest: Option<&Layout>) {
        let identity = reset.who.identity;
        let lists = |layout: &&Layout| {
            let mut listed = layout.units.iter().chain(&layout.spares);
            listed.any(|unit| unit.identity == identity)
        };
        if let Some(layout) = newest.filter(lists) {
            let term = layout.term;
            return reset.respond.send(Err(Refusal::InUse { term }));
        }
        if newest.is_none_or(|layout| layout.term < reset.term) {
            let term = reset.term;
            return reset.respond.send(Err(Refusal::Unconfirmed { term }));
        }
        self.do_now(reset);
    }

    /// The newest layout that a layout server says is decided, as soon as one is of the term `enough`: of those in the
    /// configuration, and of those that took over from them.
    async fn newest_layout(&self, enough: Term) -> Option<Layout> {
        let mut asked: BTreeSet<Address> = self.config.layout_servers.iter().cloned().collect();
        let mut to_ask = asked.clone();
        let mut newest: Option<Layout> = None;
        for _ in 0..SETS_MAX {
            let found = self.newest_of(&to_ask, enough).await;
            if found.as_ref().map(|found| found.term) <= newest.as_ref().map(|known| known.term) {
                break;
            }
            newest = found;
            let newer = newest.iter().flat_map(|layout| &layout.layout_servers);
            to_ask = newer
                .map(|server| server.address.clone())
                .filter(|address| asked.insert(address.clone()))
                .collect();
            let known = newest.as_ref().map(|layout| layout.term);
            if known >= Some(enough) || to_ask.is_empty() {
                break;
            }
        }
        newest
    }

    /// The newest layout that one of `servers` says is decided, as soon as one is of `enough`.
    async fn newest_of(&self, servers: &BTreeSet<Address>, enough: Term) -> Option<Layout> {
        let mut calls: Vec<Pin<Box<_>>> = servers
            .iter()
            .map(|address| Box::pin(self.ask(address)))
            .collect();
        let mut newest: Option<Layout> = None;
        poll_fn(|cx| {
            calls.retain_mut(|call| match call.as_mut().poll(cx) {
                Poll::Ready(found) => {
                    let known = newest.as_ref().map(|layout| layout.term);
                    if found.as_ref().map(|found| found.term) > known {
                        newest = found;
                    }
                    false
                }
                Poll::Pending => true,
            });
            let known = newest.as_ref().map(|layout| layout.term);
            if calls.is_empty() || known >= Some(enough) {
                Poll::Ready(newest.take())
            } else {
                Poll::Pending
            }
        })
        .await
    }

    async fn ask(&self, address: &Address) -> Option<Layout> {
        let peer = Peer {
            name: None,
            address: address.clone(),
            kind: PeerKind::Layout,
        };
        let head = RequestHead {
            id: 0,
            cluster: self.config.cluster,
            to: None,
            term: Term::GENESIS,
            request: Wanted::Layout(LayoutRequest::Newest),
        };
        let payload = Payload::new();
        let request = Request { head, payload };
        let response = self.net.call(&peer, request, ANSWER_WITHIN).await.ok()?;
        match response.reply {
            Ok(Reply::Layout(LayoutReply::Newest { decided, .. })) => decided
                .map(|decided| decided.layout)
                .filter(|layout| layout.cluster == self.config.cluster),
            Ok(_) | Err(_) => None,
        }
    }
}
