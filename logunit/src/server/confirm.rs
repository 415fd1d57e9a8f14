//! Seals that skip terms: a layout server must know the layout before the one they are for (U2).
//!
//! A unit that was left out of several terms is sealed over all of them at once. Nobody else may do that: a seal of the
//! largest term would end the unit for ever.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use milonga_host::net::{Peer, PeerKind, Request};
use milonga_wire::{
    Address, LayoutReply, LayoutRequest, Payload, Refusal, Reply, Request as Wanted, RequestHead,
    Term,
};
use tokio::sync::Notify;

use super::{Shared, Waiting, busy, lock};

/// How long a layout server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Seals that wait for a layout server's word at most.
const WAITING_MAX: usize = 64;

/// Seals that wait, each with the term that a layout server must have seen decided.
#[derive(Default)]
pub(super) struct Confirmations {
    waiting: Mutex<Vec<(Waiting, Term)>>,
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
}

impl Shared {
    pub(super) async fn confirm_for_ever(self: Arc<Self>) {
        loop {
            self.confirmations.work.notified().await;
            let waiting = std::mem::take(&mut *lock(&self.confirmations.waiting));
            let least = waiting.iter().map(|(_, least)| *least).max();
            let Some(least) = least else { continue };
            let newest = self.newest_term(least).await;
            for (mut seal, least) in waiting {
                if newest.is_some_and(|newest| newest >= least) {
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

    /// The highest term that a layout server says is decided, as soon as one says `enough`.
    async fn newest_term(&self, enough: Term) -> Option<Term> {
        let servers = &self.config.layout_servers;
        let mut calls: Vec<Pin<Box<_>>> = servers
            .iter()
            .map(|address| Box::pin(self.ask(address)))
            .collect();
        let mut newest = None;
        poll_fn(|cx| {
            calls.retain_mut(|call| match call.as_mut().poll(cx) {
                Poll::Ready(term) => {
                    newest = newest.max(term);
                    false
                }
                Poll::Pending => true,
            });
            if calls.is_empty() || newest >= Some(enough) {
                Poll::Ready(newest)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    async fn ask(&self, address: &Address) -> Option<Term> {
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
                .filter(|decided| decided.layout.cluster == self.config.cluster)
                .map(|decided| decided.layout.term),
            Ok(_) | Err(_) => None,
        }
    }
}
