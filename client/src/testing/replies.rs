//! What the servers of the miniature have in common to say.

use milonga_wire::{Description, Kind, Payload, Position, Refusal, Reply, Server, Term};

pub(super) fn wrong_kind() -> Refusal {
    Refusal::WrongKind {
        needs: "server of that kind".to_owned(),
    }
}

/// What a server says of itself; of positions, its end and its trim point, and how many are damaged.
pub(super) fn described(
    server: &Server,
    kind: Kind,
    term: Term,
    blank: bool,
    [end, trimmed]: [Position; 2],
    damaged: u64,
) -> (Reply, Payload) {
    let description = Description {
        kind,
        name: server.name.clone(),
        identity: server.identity,
        incarnation: server.incarnation,
        term,
        blank,
        end,
        trimmed,
        bytes: end.0 * 100,
        reads: 0,
        state: if blank { "blank" } else { "serving" }.to_owned(),
        version: "test".to_owned(),
        damaged,
        busy_per_mille: 0,
    };
    (Reply::Described(description.into()), Payload::new())
}
