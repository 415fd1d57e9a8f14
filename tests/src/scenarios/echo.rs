//! The simulator's own test: servers that answer what they are asked, and clients that hold the network to N1, N2, N3.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milonga_host::{
    BoxFuture, CallError, Host, Peer, Random, Responder, Service, Tasks, net::PeerKind,
    net::Request,
};
use milonga_wire::{
    Caller, ClusterId, Identity, Incarnation, Kind, Payload, Refusal, Reply, RequestHead, Role,
    SequencerReply, SequencerRequest, ServerName, Target, Term,
};

use crate::sim::nemesis::{Nemesis, Targets};
use crate::sim::{Machine, NodeId, Profile, World};

const SERVERS: u64 = 3;

/// Every request that reached a server, by server, caller and in the order of arrival.
#[derive(Debug, Default)]
struct Seen(Mutex<BTreeMap<(ServerName, ServerName), Vec<u64>>>);

struct EchoMachine {
    name: ServerName,
    seen: Arc<Seen>,
}

struct Echo {
    name: ServerName,
    seen: Arc<Seen>,
    random: Random,
    clock: milonga_host::Clock,
    tasks: Tasks,
}

impl Machine for EchoMachine {
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>> {
        let echo: Arc<dyn Service> = Arc::new(Echo {
            name: self.name.clone(),
            seen: Arc::clone(&self.seen),
            random: host.random,
            clock: host.clock,
            tasks: host.tasks,
        });
        Box::pin(std::future::ready(Ok(echo)))
    }

    fn crashed(&self, _: &Random) {}
}

impl Service for Echo {
    fn serve(&self, caller: &Caller, request: Request, respond: Responder) {
        let number = number(&request.payload);
        self.seen
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((self.name.clone(), caller.name.clone()))
            .or_default()
            .push(number);
        let (clock, wait) = (self.clock.clone(), self.random.below(5));
        self.tasks.spawn(async move {
            clock.sleep(Duration::from_millis(wait)).await;
            let reply = if number.is_multiple_of(7) {
                Err(Refusal::Draining)
            } else {
                Ok(Reply::Sequencer(SequencerReply::Probed { serving: true }))
            };
            respond.send_with(reply, request.payload);
        });
    }
}

/// The number that a payload carries.
fn number(payload: &Payload) -> u64 {
    let bytes = payload.clone().into_bytes();
    u64::from_le_bytes(bytes.as_ref().try_into().expect("eight bytes were sent"))
}

/// Plays it.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let seen = Arc::new(Seen::default());
        let servers: Vec<NodeId> = (1..=SERVERS)
            .map(|server| {
                let name = format!("s-{server}");
                let machine = EchoMachine {
                    name: name.parse().expect("a server name"),
                    seen: Arc::clone(&seen),
                };
                world.add_server(
                    &name,
                    Role::Sequencer,
                    profile.skew_ppm_max,
                    Arc::new(machine),
                )
            })
            .collect();
        for server in &servers {
            if let Err(why) = world.start(*server).await {
                world.violation(format!("a server does not start: {why}"));
            }
        }
        let clients: Vec<NodeId> = (1..=profile.clients)
            .map(|client| world.add_client(&format!("c-{client}"), Role::Admin, 0))
            .collect();
        world.trouble(profile.network.clone());
        let nemesis = Nemesis::start(
            &world,
            &profile,
            &Targets {
                servers: vec![servers.clone()],
                clients: clients.clone(),
                clients_crash: false,
                spared: vec![],
            },
        );
        let mut asking = vec![];
        for client in clients {
            let name = world.name(client);
            asking.push(tokio::spawn(ask(
                world.clone(),
                world.host(client),
                name,
                servers.clone(),
                profile.clone(),
            )));
        }
        let mut unsent = vec![];
        for client in asking {
            unsent.extend(client.await.unwrap_or_default());
        }
        nemesis.stop().await;
        // What is still on its way arrives now, if ever.
        world.clock().sleep(Duration::from_secs(200)).await;
        check(&world, &profile, &seen, &unsent);
    })
}

/// Asks until the time is up; returns what certainly was not sent.
async fn ask(
    world: World,
    host: Host,
    name: ServerName,
    servers: Vec<NodeId>,
    profile: Profile,
) -> Vec<u64> {
    let from = host.clock.now();
    let mut unsent = vec![];
    let mut next = 0;
    while host.clock.now().since(from) < profile.busy {
        let server = servers[host.random.below(servers.len() as u64) as usize];
        let peer = Peer {
            name: Some(world.name(server)),
            address: world.address(server).expect("servers have addresses"),
            kind: PeerKind::from(Kind::Sequencer),
        };
        let within = Duration::from_millis(1 + host.random.below(3_000));
        let wave = 1 + host.random.below(4);
        let mut calls = vec![];
        for _ in 0..wave {
            next += 1;
            let (number, host, peer) = (next, host.clone(), peer.clone());
            let request = Request {
                head: RequestHead {
                    id: 0,
                    cluster: ClusterId([0; 16]),
                    to: Some(Target {
                        identity: Identity([0; 16]),
                        incarnation: Incarnation(0),
                    }),
                    term: Term(0),
                    request: milonga_wire::Request::Sequencer(SequencerRequest::Probe),
                },
                payload: Payload::from(u64::to_le_bytes(number).to_vec()),
            };
            calls.push(tokio::spawn(async move {
                (number, host.net.call(&peer, request, within).await)
            }));
        }
        for call in calls {
            let Ok((number_asked, outcome)) = call.await else {
                continue;
            };
            match outcome {
                Ok(response) => {
                    world.count("echo");
                    if number(&response.payload) != number_asked {
                        world.violation(format!(
                            "N1: {name} asked {number_asked}, got another reply"
                        ));
                    }
                }
                Err(CallError::NotSent { .. }) => unsent.push(number_asked),
                Err(CallError::Lost { .. }) => world.count("echo lost"),
                Err(CallError::Deadline { .. }) => world.count("echo deadline"),
                Err(error @ CallError::Protocol { .. }) => world.violation(format!("{error}")),
            }
        }
    }
    // Numbers are a client's own: its name is what makes them unique.
    world.note(&format!("{name} asked {next} times"));
    let bits = name.as_str().bytes().last().map_or(0, u64::from) << 48;
    unsent.into_iter().map(|number| number | bits).collect()
}

fn check(world: &World, profile: &Profile, seen: &Seen, unsent: &[u64]) {
    let seen = seen.0.lock().unwrap_or_else(PoisonError::into_inner);
    let unsent: BTreeSet<u64> = unsent.iter().copied().collect();
    for ((server, caller), numbers) in &*seen {
        let bits = caller.as_str().bytes().last().map_or(0, u64::from) << 48;
        for number in numbers {
            if unsent.contains(&(number | bits)) {
                world.violation(format!(
                    "N2: {server} saw {number} of {caller}, which was not sent"
                ));
            }
        }
        let ordered = profile.network.lanes == 1 && profile.network.duplicate_ppm == 0;
        if ordered && numbers.windows(2).any(|pair| pair[0] >= pair[1]) {
            world.violation(format!(
                "N3: {server} saw the requests of {caller} out of order"
            ));
        }
    }
}
