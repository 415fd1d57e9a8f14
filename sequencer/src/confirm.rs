//! Questions to several layout servers at once.
//!
//! All are asked at the same moment, and the outcome is known as soon as the answers that came settle it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use milonga_host::{BoxFuture, CallError, Network, Peer, net};
use milonga_wire::{
    ClusterId, Decided, Kind, Layout, LayoutReply, LayoutRequest, Payload, Refusal, Reply, Request,
    RequestHead, Server, Target, Term,
};

/// How often a question for the newest layout follows a change of the layout servers.
const HOPS_MAX: usize = 4;

/// How a round of confirmations ended.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Round {
    /// A majority had accepted no layout of a later term.
    Confirmed,
    /// A layout of a later term is decided.
    Newer(Box<Decided>),
    /// Too few answered so.
    Unconfirmed,
}

/// Whether a term that skips others exists.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Jump {
    /// A layout of that term or a later one is decided: this one.
    Shown(Box<Decided>),
    /// Most of the layout servers answered, and none knows such a layout.
    Denied,
    /// Too few answered.
    Unanswered,
}

impl Jump {
    fn without_layout(answered: usize, asked: usize) -> Self {
        if answered * 2 > asked {
            Self::Denied
        } else {
            Self::Unanswered
        }
    }
}

/// What asking takes.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) net: Arc<dyn Network>,
    pub(crate) cluster: ClusterId,
    pub(crate) within: Duration,
}

impl Asker {
    /// Asks all layout servers of `layout` whether its term still stands.
    pub(crate) async fn confirm(&self, layout: &Layout) -> Round {
        let term = layout.term;
        let peers: Vec<Peer> = layout.layout_servers.iter().map(peer).collect();
        let mut calls = Calls::new();
        for (peer, server) in peers.iter().zip(&layout.layout_servers) {
            let to = Target {
                identity: server.identity,
                incarnation: server.incarnation,
            };
            calls.push(self.call(peer, Some(to), term, LayoutRequest::Confirm));
        }
        let mut confirmed = 0;
        while let Some(answer) = calls.next().await {
            match vote(term, answer) {
                Vote::Confirms => confirmed += 1,
                Vote::Newer(decided) => return Round::Newer(decided),
                Vote::Nothing => {}
            }
            if confirmed >= layout.majority() {
                return Round::Confirmed;
            }
            if confirmed + calls.len() < layout.majority() {
                return Round::Unconfirmed;
            }
        }
        Round::Unconfirmed
    }

    /// Asks `peers`, and those whom their answers name instead, for a decided layout of `term` or a later one.
    pub(crate) async fn jump(&self, mut peers: Vec<Peer>, term: Term) -> Jump {
        for _ in 0..HOPS_MAX {
            let (answered, newest) = self.newest(&peers, term).await;
            let Some(newest) = newest else {
                return Jump::without_layout(answered, peers.len());
            };
            if newest.layout.term >= term {
                return Jump::Shown(newest);
            }
            let next = peers_of(&newest.layout);
            let asked = |peer: &Peer| peers.iter().any(|asked| asked.address == peer.address);
            if next.iter().all(asked) {
                return Jump::without_layout(answered, peers.len());
            }
            peers = next;
        }
        Jump::Unanswered
    }

    /// How many of `peers` answered, and the newest layout that they know; the first that is of `enough` or later will do.
    async fn newest(&self, peers: &[Peer], enough: Term) -> (usize, Option<Box<Decided>>) {
        let mut calls = Calls::new();
        for peer in peers {
            calls.push(self.call(peer, None, enough, LayoutRequest::Newest));
        }
        let mut answered = 0;
        let mut newest: Option<Box<Decided>> = None;
        while let Some(answer) = calls.next().await {
            let reply = answer.map(|response| response.reply);
            let Ok(Ok(Reply::Layout(LayoutReply::Newest { decided, .. }))) = reply else {
                continue;
            };
            answered += 1;
            let term = |decided: &Option<Box<Decided>>| decided.as_ref().map(|d| d.layout.term);
            if term(&decided) > term(&newest) {
                newest = decided;
            }
            if term(&newest) >= Some(enough) {
                break;
            }
        }
        (answered, newest)
    }

    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        to: Option<Target>,
        term: Term,
        request: LayoutRequest,
    ) -> BoxFuture<'a, Result<net::Response, CallError>> {
        let head = RequestHead {
            id: 0,
            cluster: self.cluster,
            to,
            term,
            request: Request::Layout(request),
        };
        let request = net::Request {
            head,
            payload: Payload::new(),
        };
        self.net.call(peer, request, self.within)
    }
}

/// What one answer to a confirmation says.
#[derive(Debug, Eq, PartialEq)]
enum Vote {
    Confirms,
    Newer(Box<Decided>),
    /// No answer, or one that says neither: a layout accepted and not decided ends up here, and is somebody's to finish.
    Nothing,
}

fn vote(term: Term, answer: Result<net::Response, CallError>) -> Vote {
    match answer.map(|response| response.reply) {
        Ok(Ok(Reply::Layout(LayoutReply::Confirmed { term: said }))) if said == term => {
            Vote::Confirms
        }
        Ok(Err(
            Refusal::Decided { newest }
            | Refusal::StaleTerm {
                newest: Some(newest),
                ..
            },
        )) if newest.layout.term > term => Vote::Newer(newest),
        Ok(Ok(_) | Err(_)) | Err(_) => Vote::Nothing,
    }
}

/// How to call a layout server that a layout names.
fn peer(server: &Server) -> Peer {
    Peer {
        name: Some(server.name.clone()),
        address: server.address.clone(),
        kind: Kind::Layout.into(),
    }
}

/// The layout servers of `layout`, to be called.
pub(crate) fn peers_of(layout: &Layout) -> Vec<Peer> {
    layout.layout_servers.iter().map(peer).collect()
}

/// A few calls in flight; dropping it abandons them.
struct Calls<'a, T>(Vec<BoxFuture<'a, T>>);

impl<'a, T> Calls<'a, T> {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn push(&mut self, call: BoxFuture<'a, T>) {
        self.0.push(call);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// The outcome of the call that ends next; none when all have.
    async fn next(&mut self) -> Option<T> {
        poll_fn(|context| {
            if self.0.is_empty() {
                return Poll::Ready(None);
            }
            for index in 0..self.0.len() {
                if let Poll::Ready(outcome) = self.0[index].as_mut().poll(context) {
                    drop(self.0.remove(index));
                    return Poll::Ready(Some(outcome));
                }
            }
            Poll::Pending
        })
        .await
    }
}
