//! What one token costs the counter itself, without transport: nanoseconds per request, by the number of streams that
//! are in use. Run it with `cargo run --release -p milonga-sequencer --example token_cost`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use milonga_host::Clock;
use milonga_sequencer::Counter;
use milonga_wire::{
    BootstrapPage, Chain, ClusterId, Decided, Identity, Incarnation, Layout, Origin, Position,
    Segment, Server, Settings, StreamId, Term,
};

const REQUESTS: u32 = 1_000_000;
const CLUSTER: ClusterId = ClusterId([9; 16]);

fn server(number: u8) -> Server {
    Server {
        name: format!("s-{number}").parse().unwrap(),
        address: "127.0.0.1:7000".parse().unwrap(),
        identity: Identity([number; 16]),
        incarnation: Incarnation(1),
    }
}

fn serving() -> Counter {
    let layout = Layout {
        cluster: CLUSTER,
        term: Term(0),
        layout_servers: vec![server(1)],
        sequencer: server(2),
        standbys: vec![],
        units: vec![server(3)],
        segments: vec![Segment {
            start: Position::FIRST,
            end: None,
            stripe_width: 1,
            chains: vec![Chain::new(vec![Identity([3; 16])])],
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
    let page = BootstrapPage {
        decided: Decided {
            layout,
            acceptances: vec![],
        },
        complete: true,
        driver: [1; 16],
        page: 0,
        last: true,
        tails: vec![],
    };
    let mut counter = Counter::new(CLUSTER, Identity([2; 16]), Incarnation(1), 1_000_000);
    assert_eq!(counter.bootstrap(Term(0), &page), Ok(true));
    counter
}

/// Streams in an order that no cache foresees.
fn stream(request: u32, in_use: u64) -> StreamId {
    let scattered = u64::from(request).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let number = (scattered % in_use.max(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    StreamId(u128::from(number).rotate_left(64).to_be_bytes())
}

fn main() {
    let clock = Clock::real();
    println!("{:>10} {:>12} {:>12}", "in use", "per token", "ns");
    for (in_use, per_token) in [
        (0, 0),
        (1, 1),
        (1_000, 1),
        (100_000, 1),
        (1_000_000, 1),
        (4_000_000, 1),
        (1_000, 4),
    ] {
        let mut counter = serving();
        let requests: Vec<Vec<StreamId>> = (0..REQUESTS)
            .map(|request| {
                let mut streams: Vec<StreamId> = (0..per_token)
                    .map(|which| stream(request.wrapping_mul(4) + which, in_use))
                    .collect();
                streams.sort_unstable();
                streams.dedup();
                streams
            })
            .collect();
        let began = clock.now();
        for streams in &requests {
            std::hint::black_box(counter.tokens(Term(0), 1, streams)).unwrap();
        }
        let nanos = clock.now().since(began).as_nanos() / u128::from(REQUESTS);
        println!("{in_use:>10} {per_token:>12} {nanos:>12}");
    }
}
