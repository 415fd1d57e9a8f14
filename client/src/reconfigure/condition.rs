//! How a server does, as it says itself: whether it answers, and whether it writes.

use std::pin::pin;
use std::time::Duration;

use milonga_host::net;
use milonga_wire::{Description, Kind, Payload, Server, Term, UnitRequest};

use crate::calls::{Failure, peer};
use crate::log::Log;

/// How long a server is waited for that nothing depends on, while service may stand still.
const BRIEFLY: Duration = Duration::from_millis(250);

/// Whether a server answers before long, which is a while if it is far away.
pub(super) async fn answers_soon(log: &Log, server: &Server, kind: Kind) -> bool {
    let (clock, net) = (&log.host().clock, &log.host().net);
    let mut said = pin!(describe(log, server, kind));
    if let Ok(said) = clock.within(BRIEFLY, &mut said).await {
        return said.is_ok();
    }
    let within = net::long_enough(&**net, &peer(server, kind), BRIEFLY);
    let said = clock.within(within.saturating_sub(BRIEFLY), said).await;
    matches!(said, Ok(Ok(_)))
}

pub(super) async fn describe(
    log: &Log,
    server: &Server,
    kind: Kind,
) -> Result<Description, Failure> {
    log.shared.calls.describe(&peer(server, kind)).await
}

/// What is said at the address of `unit` by whoever answers there, if it writes: there are disks that do everything but that. It
/// may be on another directory by now.
pub(super) async fn writing(log: &Log, unit: &Server, term: Term) -> Option<Description> {
    let said = describe(log, unit, Kind::LogUnit).await.ok()?;
    if matches!(said.state.as_str(), "failed" | "full" | "draining") {
        return None;
    }
    let unit = Server {
        identity: said.identity,
        incarnation: said.incarnation,
        ..unit.clone()
    };
    let (calls, payload) = (&log.shared.calls, Payload::new());
    let probed = calls.unit(&unit, term, UnitRequest::Probe, payload).await;
    probed.is_ok().then_some(said)
}
