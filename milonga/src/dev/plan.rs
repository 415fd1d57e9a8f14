//! What a dev cluster consists of: decided at the first start on a directory, and kept there.
//!
//! ```text
//! DIR/dev.json        the plan: names, roles, ports        DIR/NAME/          a server's own directory
//! DIR/certs/          the cluster's authority and leaves   DIR/logs/NAME.log  what it says
//! DIR/config/*.toml   one file per server                  DIR/milonga.toml   for clients
//! ```

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use milonga_client::reconfigure::Genesis;
use milonga_host::Random;
use milonga_wire::Address;
use milonga_wire::limits::{STRIPE_WIDTH_MAX, STRIPE_WIDTH_MIN};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Outcome};
use crate::serve::Role;

/// Ports are looked for here: below those that the machine hands out for outgoing traffic, so that nothing takes the
/// port of a server that is down for a moment.
const PORTS: std::ops::Range<u16> = 17_000..32_000;
/// Attempts to find free ports.
const PORT_TRIES: u32 = 100;

/// How large a dev cluster is.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) chains: u16,
    pub(crate) replicas: u16,
    pub(crate) layout_servers: u16,
    pub(crate) standbys: u16,
    pub(crate) spares: u16,
    pub(crate) stripe_width: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            chains: 2,
            replicas: 3,
            layout_servers: 3,
            standbys: 1,
            spares: 1,
            stripe_width: 256,
        }
    }
}

/// One server of the plan. It listens on the same port for calls (UDP) and for its admin endpoint (TCP).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) port: u16,
}

impl Planned {
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// The whole of it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) servers: Vec<Planned>,
    /// Whether the first layout was decided.
    pub(crate) initialised: bool,
}

impl Plan {
    /// The plan kept in `dir`, or a new one. `wanted` must agree with the one kept, if it says anything.
    pub(crate) fn open(
        dir: &Path,
        wanted: Option<Shape>,
        port_base: Option<u16>,
        random: &Random,
    ) -> Outcome<Self> {
        match std::fs::read_to_string(file(dir)) {
            Ok(text) => {
                let plan: Self = serde_json::from_str(&text).map_err(|why| {
                    Failure::file(
                        &file(dir),
                        format!("{why}; expected a plan of `milonga dev`"),
                    )
                })?;
                plan.agrees(wanted, port_base, dir)?;
                Ok(plan)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let plan = Self::new(wanted.unwrap_or_default(), port_base, random)?;
                plan.save(dir)?;
                Ok(plan)
            }
            Err(why) => Err(Failure::file(&file(dir), why)),
        }
    }

    fn new(shape: Shape, port_base: Option<u16>, random: &Random) -> Outcome<Self> {
        let width = shape.stripe_width;
        if !(STRIPE_WIDTH_MIN..=STRIPE_WIDTH_MAX).contains(&width) {
            return Err(Failure::usage(format!(
                "stripes of {width} positions; expected {STRIPE_WIDTH_MIN} to {STRIPE_WIDTH_MAX}; try --stripe-width 256"
            )));
        }
        let named = |role: Role, word: &'static str, count: u16| {
            (1..=count).map(move |number| (role, format!("{word}-{number}")))
        };
        let units = shape.chains * shape.replicas + shape.spares;
        let all: Vec<(Role, String)> = named(Role::Layout, "layout", shape.layout_servers)
            .chain(named(Role::Sequencer, "sequencer", 1 + shape.standbys))
            .chain(named(Role::LogUnit, "unit", units))
            .collect();
        let count = all.len() as u16;
        let ports = match port_base {
            Some(base) => given_ports(base, count)?,
            None => free_ports(count, random)?,
        };
        let servers = all
            .into_iter()
            .zip(ports)
            .map(|((role, name), port)| Planned { name, role, port });
        Ok(Self {
            shape,
            servers: servers.collect(),
            initialised: false,
        })
    }

    fn agrees(&self, wanted: Option<Shape>, port_base: Option<u16>, dir: &Path) -> Outcome {
        let base = self.servers.first().map(|server| server.port);
        if let (Some(asked), Some(base)) = (port_base, base)
            && asked != base
        {
            return Err(Failure::failed(format!(
                "{} holds a cluster on ports from {base}, not from {asked}; leave --port-base out, or use another --dir",
                dir.display()
            )));
        }
        match wanted {
            Some(wanted) if wanted != self.shape => Err(Failure::failed(format!(
                "{} holds a cluster of {}, not of {}; leave the flags out, or use another --dir",
                dir.display(),
                self.shape,
                wanted
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// Keeps the plan, whole or not at all.
    pub(crate) fn save(&self, dir: &Path) -> Outcome {
        write(&file(dir), &(crate::output::json(self) + "\n"))
    }

    fn of(&self, role: Role) -> Vec<Address> {
        let servers = self.servers.iter().filter(|server| server.role == role);
        servers
            .map(|server| {
                let address = server.address();
                address.parse().expect("a host and a port make an address")
            })
            .collect()
    }

    /// The addresses of the layout servers.
    pub(crate) fn layout_servers(&self) -> Vec<Address> {
        self.of(Role::Layout)
    }

    /// The first layout.
    pub(crate) fn genesis(&self) -> Genesis {
        let mut sequencers = self.of(Role::Sequencer);
        let mut units = self.of(Role::LogUnit);
        let in_chains = usize::from(self.shape.chains * self.shape.replicas);
        let spares = units.split_off(in_chains);
        let chains = units.chunks(usize::from(self.shape.replicas));
        Genesis {
            layout_servers: self.layout_servers(),
            sequencer: sequencers.remove(0),
            standbys: sequencers,
            chains: chains.map(<[Address]>::to_vec).collect(),
            spares,
            stripe_width: self.shape.stripe_width,
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} chains of {}, {} layout servers, {} standbys and {} spares with stripes of {}",
            self.chains,
            self.replicas,
            self.layout_servers,
            self.standbys,
            self.spares,
            self.stripe_width
        )
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("dev.json")
}

/// Writes a file through a second name, so that nobody reads half of it.
pub(crate) fn write(path: &Path, text: &str) -> Outcome {
    let partial = path.with_extension("new");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|why| Failure::file(path, why))
}

/// `count` ports from `base` on, if there are so many and nobody has one of them: a plan keeps its ports for good.
fn given_ports(base: u16, count: u16) -> Outcome<std::ops::Range<u16>> {
    let highest = u16::MAX - count;
    if !(1..=highest).contains(&base) {
        return Err(Failure::usage(format!(
            "{count} servers need ports from {base} on; expected --port-base 1 to {highest}; try --port-base {}",
            PORTS.start
        )));
    }
    let ports = base..base + count;
    match ports.clone().find(|port| !is_free(*port)) {
        None => Ok(ports),
        Some(port) => Err(Failure::failed(format!(
            "port {port} of 127.0.0.1 is in use by another program; expected {count} free ports from {base} on; \
             try another --port-base, or none"
        ))),
    }
}

/// `count` consecutive ports that nobody has now.
fn free_ports(count: u16, random: &Random) -> Outcome<std::ops::Range<u16>> {
    let room = u64::from(PORTS.end - PORTS.start - count);
    for _ in 0..PORT_TRIES {
        let base = PORTS.start + random.below(room) as u16;
        if (base..base + count).all(is_free) {
            return Ok(base..base + count);
        }
    }
    Err(Failure::failed(format!(
        "no {count} free ports in a row from {} to {}; try --port-base",
        PORTS.start, PORTS.end
    )))
}

fn is_free(port: u16) -> bool {
    let here = (Ipv4Addr::LOCALHOST, port);
    UdpSocket::bind(here).is_ok() && TcpListener::bind(here).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_kept_and_another_shape_on_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let random = Random::seeded(1);
        let ports = free_ports(12, &random).unwrap();
        let first = Plan::open(dir.path(), None, Some(ports.start), &random).unwrap();
        let again = Plan::open(dir.path(), None, Some(ports.start), &random).unwrap();
        let smaller = Shape {
            chains: 1,
            ..Shape::default()
        };

        assert_eq!(first, again);
        assert_eq!(first.servers.len(), 3 + 2 + 7);
        let genesis = first.genesis();
        assert_eq!(genesis.chains.len(), 2);
        assert_eq!(
            genesis.spares[0].as_str(),
            format!("127.0.0.1:{}", ports.end - 1)
        );
        assert!(Plan::open(dir.path(), Some(smaller), None, &random).is_err());
        let moved = Plan::open(dir.path(), None, Some(ports.start + 1), &random);
        assert!(moved.unwrap_err().to_string().contains("on ports from"));
    }

    /// What can never start is refused before anything is kept, so that the next attempt is a first one again.
    #[test]
    fn ports_that_are_none_or_taken_and_stripes_of_nothing_leave_no_plan() {
        let dir = tempfile::tempdir().unwrap();
        let random = Random::seeded(1);
        let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = held.local_addr().unwrap().port().min(u16::MAX - 12);
        let _held = UdpSocket::bind((Ipv4Addr::LOCALHOST, taken));
        let flat = Shape {
            stripe_width: 0,
            ..Shape::default()
        };
        for (shape, base, word) in [
            (None, Some(0), "--port-base 1 to"),
            (None, Some(65_530), "--port-base 1 to 65523"),
            (None, Some(taken), "in use"),
            (Some(flat), None, "expected 1 to"),
        ] {
            let refused = Plan::open(dir.path(), shape, base, &random).unwrap_err();
            assert!(refused.to_string().contains(word), "{refused}");
        }
        assert!(!file(dir.path()).exists());
    }
}
