//! A cluster on simulated machines: the real servers, each with a disk of its own that a crash leaves as disks do.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milonga_client::reconfigure::{self, Genesis};
use milonga_client::{Log, Options};
use milonga_host::memory_disk::{Operation, Outcome};
use milonga_host::{BoxFuture, Disk, Host, MemoryDisk, Random, Service};
use milonga_wire::{Address, Caller, ClusterId, Role, ServerName};
use tokio::sync::Notify;

use crate::sim::faults::{chance, flip, pick};
use crate::sim::{Machine, NodeId, Profile, World};

const DISK_BYTES: u64 = 64 << 20;
const ENTRY_BYTES_MAX: u32 = 4 << 10;

/// How many servers of each kind there are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Layout servers.
    pub layout_servers: u64,
    /// Sequencers that stand by.
    pub standbys: u64,
    /// Chains.
    pub chains: u64,
    /// Units per chain.
    pub replicas: u64,
    /// Positions per stripe.
    pub stripe_width: u32,
}

impl Shape {
    /// Mostly three of everything, sometimes less.
    pub fn draw(random: &Random) -> Self {
        Self {
            layout_servers: *pick(random, &[3, 3, 3, 1]),
            standbys: random.below(2),
            chains: *pick(random, &[1, 1, 2, 3]),
            replicas: *pick(random, &[3, 3, 3, 2, 1]),
            stripe_width: *pick(random, &[1, 4, 64]),
        }
    }
}

/// A cluster, running and initialised.
pub struct Cluster {
    /// Every server.
    pub servers: Vec<NodeId>,
    /// Where the layout servers listen.
    pub layout: Vec<Address>,
    /// Log units by chain, head first.
    pub chains: Vec<Vec<NodeId>>,
}

/// A disk that fails as the profile says, and tells who waits for it when the power is gone.
struct Drive {
    disk: MemoryDisk,
    torn: bool,
    lies: bool,
    power: Arc<Power>,
}

/// Whether a machine's power failed in the middle of a write.
#[derive(Default)]
struct Power {
    failed: AtomicBool,
    notice: Notify,
}

impl Drive {
    fn new(world: &World, profile: &Profile, of: &str, lies: bool) -> Self {
        let (random, world) = (world.random(&format!("disk of {of}")), world.clone());
        let disk = MemoryDisk::new(DISK_BYTES);
        let power = Arc::new(Power::default());
        let (torn, watched) = (profile.torn, Arc::clone(&power));
        disk.set_faults(Some(Box::new(move |operation| {
            if watched.failed.load(Ordering::Relaxed) {
                return Outcome::Fail(std::io::ErrorKind::Other);
            }
            match operation {
                Operation::Write { len, .. }
                    if torn && world.is_troubled() && chance(&random, 2_000) =>
                {
                    watched.failed.store(true, Ordering::Relaxed);
                    watched.notice.notify_one();
                    // In half of the cases all of it got as far as the disk's own memory.
                    let reached = if flip(&random) {
                        *len
                    } else {
                        random.below(*len + 1)
                    };
                    Outcome::Stop(reached)
                }
                Operation::Sync { .. } if lies && world.is_troubled() && flip(&random) => {
                    world.count("sync that lied");
                    Outcome::Lie
                }
                _ => Outcome::Done,
            }
        })));
        Self {
            disk,
            torn,
            lies,
            power,
        }
    }

    /// Opens what is on the disk. A power failure in the middle of it is one more crash, and it is opened again.
    fn open<T, E: Display>(
        &self,
        random: &Random,
        open: impl Fn(Arc<dyn Disk>) -> Result<T, E>,
    ) -> Result<T, String> {
        loop {
            match open(self.disk.attach()) {
                Ok(opened) => return Ok(opened),
                Err(_) if self.power.failed.load(Ordering::Relaxed) => self.crashed(random),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// A process ends, or a machine loses its power: then each sector that was not synced is old or new by itself.
    fn crashed(&self, random: &Random) {
        let power_loss = self.power.failed.load(Ordering::Relaxed) || flip(random);
        if self.lies || self.torn && power_loss {
            let names = random.below(self.disk.unsynced_names() as u64 + 1) as usize;
            let survival = *pick(random, &[0, 300_000, 700_000, 1_000_000]);
            self.disk.crash(names, &mut |_, _| chance(random, survival));
        } else {
            self.disk.kill();
        }
        self.power.failed.store(false, Ordering::Relaxed);
    }
}

struct LayoutMachine {
    cluster: ClusterId,
    config: milonga_layout::Config,
    drive: Drive,
}

impl Machine for LayoutMachine {
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>> {
        Box::pin(async move {
            let server = self.drive.open(&host.random, |disk| {
                milonga_layout::Server::start(&host, disk, self.cluster, &self.config)
            })?;
            Ok(server as Arc<dyn Service>)
        })
    }

    fn crashed(&self, random: &Random) {
        self.drive.crashed(random);
    }
}

struct SequencerMachine {
    cluster: ClusterId,
    config: milonga_sequencer::Config,
}

impl Machine for SequencerMachine {
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>> {
        let server = milonga_sequencer::Sequencer::start(host, self.cluster, &self.config);
        Box::pin(std::future::ready(Ok(server as Arc<dyn Service>)))
    }

    fn crashed(&self, _: &Random) {}
}

struct UnitMachine {
    config: milonga_logunit::Config,
    file_bytes: u64,
    drive: Drive,
}

impl Machine for UnitMachine {
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>> {
        Box::pin(async move {
            let options = milonga_logunit::store::Options {
                file_bytes: self.file_bytes,
                map: false,
                ..milonga_logunit::store::Options::new(
                    self.config.cluster,
                    self.config.name.clone(),
                )
            };
            let store = self.drive.open(&host.random, |disk| {
                milonga_logunit::store::Store::open(disk, options.clone(), &host.random)
            })?;
            let server =
                milonga_logunit::Server::start(&host, Box::new(store), self.config.clone());
            Ok(server as Arc<dyn Service>)
        })
    }

    fn crashed(&self, random: &Random) {
        self.drive.crashed(random);
    }
}

fn name(text: &str) -> ServerName {
    text.parse().expect("a server name")
}

fn address(name: &str) -> Address {
    World::address_of(name)
}

impl Cluster {
    /// Starts the servers and has an admin initialise them.
    ///
    /// # Errors
    /// Why a server does not start, or the cluster could not be initialised.
    pub async fn start(world: &World, profile: &Profile, shape: &Shape) -> Result<Self, String> {
        let random = world.random("cluster");
        let skew = |random: &Random| match profile.skew_ppm_max {
            0 => 0,
            most => random.below(2 * u64::from(most.unsigned_abs()) + 1) as i32 - most,
        };
        let names = |kind: &str, count: u64| -> Vec<String> {
            (1..=count)
                .map(|number| format!("{kind}-{number}"))
                .collect()
        };
        let layout_names = names("l", shape.layout_servers);
        let sequencer_names = names("s", 1 + shape.standbys);
        let unit_names = names("u", shape.chains * shape.replicas);
        let layout: Vec<Address> = layout_names.iter().map(|name| address(name)).collect();
        let cluster = world.cluster();
        let mut servers = vec![];
        for text in &layout_names {
            let machine = LayoutMachine {
                cluster,
                config: layout_config(text, &layout),
                drive: Drive::new(world, profile, text, false),
            };
            let power = Arc::clone(&machine.drive.power);
            servers.push(add(
                world,
                text,
                Role::Layout,
                skew(&random),
                machine,
                power,
            ));
        }
        for text in &sequencer_names {
            let machine = Arc::new(SequencerMachine {
                cluster,
                config: sequencer_config(text, &layout),
            });
            servers.push(world.add_server(text, Role::Sequencer, skew(&random), machine));
        }
        let file_bytes = *pick(&random, &[64 << 10, 256 << 10, 1 << 20]);
        let mut units = vec![];
        let replicas = shape.replicas as usize;
        // One liar per chain, and none where nobody else holds what it forgets.
        let liar = random.below(shape.replicas) as usize;
        for (number, text) in unit_names.iter().enumerate() {
            let lies = profile.lying && replicas > 1 && number % replicas == liar;
            let machine = UnitMachine {
                config: milonga_logunit::Config {
                    cluster,
                    name: name(text),
                    entry_bytes_max: ENTRY_BYTES_MAX,
                    queue_bytes_max: 16 << 20,
                    layout_servers: layout.clone(),
                    version: "simulated".to_owned(),
                },
                file_bytes,
                drive: Drive::new(world, profile, text, lies),
            };
            let power = Arc::clone(&machine.drive.power);
            units.push(add(
                world,
                text,
                Role::LogUnit,
                skew(&random),
                machine,
                power,
            ));
        }
        servers.extend(&units);
        for server in &servers {
            world.start(*server).await?;
        }
        let addresses: Vec<Address> = unit_names.iter().map(|name| address(name)).collect();
        let genesis = Genesis {
            layout_servers: layout.clone(),
            sequencer: address(&sequencer_names[0]),
            standbys: sequencer_names[1..]
                .iter()
                .map(|name| address(name))
                .collect(),
            chains: addresses
                .chunks(replicas)
                .map(<[Address]>::to_vec)
                .collect(),
            spares: vec![],
            stripe_width: shape.stripe_width,
        };
        let admin = world.add_client("admin", Role::Admin, 0);
        let log = log(world, admin, Role::Admin, &layout, Options::default());
        let initialised = reconfigure::init(&log, &genesis).await;
        initialised.map_err(|error| error.to_string())?;
        Ok(Self {
            servers,
            layout,
            chains: units.chunks(replicas).map(<[NodeId]>::to_vec).collect(),
        })
    }
}

/// Adds a server that crashes when the power of its machine fails.
fn add<M: Machine>(
    world: &World,
    name: &str,
    role: Role,
    skew_ppm: i32,
    machine: M,
    power: Arc<Power>,
) -> NodeId {
    let id = world.add_server(name, role, skew_ppm, Arc::new(machine));
    let random = world.random(&format!("power of {name}"));
    let (watching, clock) = (world.clone(), world.clock().clone());
    world.watch(async move {
        loop {
            power.notice.notified().await;
            // The process may see its write fail before it is gone.
            clock
                .sleep(Duration::from_millis(*pick(&random, &[0, 0, 5, 2_000])))
                .await;
            watching.count("power failed in a write");
            if watching.is_up(id) {
                watching.crash(id);
            }
            clock
                .sleep(Duration::from_millis(random.below(3_000)))
                .await;
            if let Err(why) = watching.start(id).await {
                let name = watching.name(id);
                watching.violation(format!("{name} does not start again: {why}"));
            }
        }
    });
    id
}

/// A client library on node `id`.
pub fn log(world: &World, id: NodeId, role: Role, layout: &[Address], options: Options) -> Log {
    let caller = Caller {
        cluster: world.cluster(),
        role,
        name: world.name(id),
    };
    Log::new(world.host(id), caller, layout.to_vec(), options)
}

fn layout_config(text: &str, layout: &[Address]) -> milonga_layout::Config {
    milonga_layout::Config {
        name: name(text),
        listen: address(text),
        admin: None,
        dir: PathBuf::new(),
        layout: layout.to_vec(),
        ca: PathBuf::new(),
        cert: PathBuf::new(),
        key: PathBuf::new(),
        caretaker: false,
        reports_max: milonga_layout::Config::REPORTS_MAX,
    }
}

fn sequencer_config(text: &str, layout: &[Address]) -> milonga_sequencer::Config {
    milonga_sequencer::Config {
        name: name(text),
        listen: address(text),
        admin: None,
        layout: layout.to_vec(),
        ca: PathBuf::new(),
        cert: PathBuf::new(),
        key: PathBuf::new(),
        streams_max: 1_000,
        confirm: milonga_sequencer::Config::CONFIRM,
        ends_max: milonga_sequencer::Config::ENDS_MAX,
    }
}
