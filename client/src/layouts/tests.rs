//! Layouts are read from a majority: on three layout servers that are no more than what they answer, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_host::net::{Request, Response};
use milonga_host::{BoxFuture, CallError, Clock, Host, Network, Peer, Random, Tasks};
use milonga_wire::{
    Chain, ClusterId, Identity, Incarnation, Origin, Payload, Position, Reply, Segment, Server,
    Settings,
};

use super::*;

const CLUSTER: ClusterId = ClusterId([9; 16]);

/// Answers of layout servers, by address: after how many milliseconds which layout. Others cannot be reached.
struct Answers(BTreeMap<Address, (u64, Decided)>);

impl Network for Answers {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        _: Request,
        _: Duration,
    ) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let Some((after_ms, decided)) = self.0.get(&peer.address) else {
                return Err(CallError::NotSent {
                    peer: peer.to_string(),
                    why: "it is down".to_owned(),
                });
            };
            Clock::real().sleep(Duration::from_millis(*after_ms)).await;
            let reply = LayoutReply::Newest {
                decided: Some(Box::new(decided.clone())),
                standing: Standing {
                    promised: None,
                    accepted: None,
                },
            };
            Ok(Response {
                reply: Ok(Reply::Layout(reply)),
                payload: Payload::new(),
            })
        })
    }
}

fn server(number: u8) -> Server {
    Server {
        name: format!("s-{number}").parse().unwrap(),
        address: address(number),
        identity: Identity([number; 16]),
        incarnation: Incarnation(1),
    }
}

fn address(number: u8) -> Address {
    format!("127.0.0.1:{}", 7000 + u16::from(number))
        .parse()
        .unwrap()
}

fn of_term(term: u64) -> Decided {
    let layout = Layout {
        cluster: CLUSTER,
        term: Term(term),
        layout_servers: vec![server(1), server(2), server(3)],
        sequencer: server(4),
        standbys: vec![],
        units: vec![server(5)],
        segments: vec![Segment {
            start: Position::FIRST,
            end: None,
            stripe_width: 1,
            chains: vec![Chain::new(vec![Identity([5; 16])])],
        }],
        spares: vec![],
        lost: vec![],
        left: vec![],
        settings: Settings {
            replicas: 1,
            trust_restarted: true,
        },
        origin: Origin::default(),
    };
    Decided {
        layout,
        acceptances: vec![],
    }
}

fn layouts(answers: &[(u8, u64, u64)]) -> Layouts {
    let answers = answers
        .iter()
        .map(|(server, after_ms, term)| (address(*server), (*after_ms, of_term(*term))));
    let host = Host {
        net: Arc::new(Answers(answers.collect())),
        clock: Clock::real(),
        random: Random::seeded(1),
        tasks: Tasks::new(),
    };
    let calls = Calls::new(host, CLUSTER, Duration::from_secs(1));
    Layouts::new(calls, [1, 2, 3].map(address).to_vec())
}

/// C6; H3: a server that fell behind answers first, and alone it is not believed.
#[tokio::test(start_paused = true)]
async fn one_stale_layout_server_misleads_nobody() {
    let layouts_here = layouts(&[(1, 1, 0), (2, 50, 1)]);
    let known = layouts_here.read().await.unwrap();
    assert_eq!(known.decided.layout.term, Term(1));
    // How far the next term has got, only a server that knows this one can say.
    assert_eq!(known.standings.len(), 1);

    let alone = layouts(&[(1, 1, 0)]);
    let error = alone.read().await.unwrap_err();
    let too_few = matches!(
        error,
        LayoutsError::NoMajority {
            answered: 1,
            needed: 2,
            ..
        }
    );
    assert!(too_few, "{error}");
    assert_eq!(alone.known(), None);
}

/// C6: not even a majority takes a client back, if all of it fell behind what the client has seen.
#[tokio::test(start_paused = true)]
async fn a_client_never_goes_back_to_an_older_layout() {
    let layouts = layouts(&[(1, 1, 0), (2, 1, 0), (3, 1, 0)]);
    layouts.adopt(of_term(2));
    layouts.read().await.unwrap();
    layouts.adopt(of_term(1));

    assert_eq!(layouts.known().unwrap().layout.term, Term(2));
}
