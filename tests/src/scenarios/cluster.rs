//! A cluster on simulated machines: the real servers, each with a disk of its own that a crash leaves as disks do.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
/// Less than a file, and more than a snapshot of all that a run writes.
const ENTRY_BYTES_MAX: u32 = 16 << 10;

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
    /// Units that stand ready.
    pub spares: u64,
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
            spares: 0,
            stripe_width: *pick(random, &[1, 4, 64]),
        }
    }
}

/// A cluster, running and initialised.
pub struct Cluster {
    /// Every server: layout servers, sequencers, log units.
    pub servers: Vec<Vec<NodeId>>,
    /// Where the layout servers listen.
    pub layout: Vec<Address>,
    drives: Drives,
}

/// A disk that fails as the profile says, and tells who waits for it when the power is gone.
struct Drive {
    world: World,
    of: String,
    disk: Mutex<MemoryDisk>,
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
        Self {
            world: world.clone(),
            of: of.to_owned(),
            disk: Mutex::new(MemoryDisk::new(DISK_BYTES)),
            torn: profile.torn,
            lies,
            power: Arc::new(Power::default()),
        }
    }

    fn disk(&self) -> MemoryDisk {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.clone()
    }

    /// An empty disk takes the place of this one.
    fn wipe(&self) {
        let disk = MemoryDisk::new(DISK_BYTES);
        self.fail_as_said(&disk);
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = disk;
    }

    /// To be called when it is decided what may fail, and of each disk that comes later.
    fn fail_as_said(&self, disk: &MemoryDisk) {
        let (random, world) = (
            self.world.random(&format!("disk of {}", self.of)),
            self.world.clone(),
        );
        let (torn, lies, watched) = (self.torn, self.lies, Arc::clone(&self.power));
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
    }

    /// Opens what is on the disk. A power failure in the middle of it is one more crash, and it is opened again.
    fn open<T, E: Display>(
        &self,
        random: &Random,
        open: impl Fn(Arc<dyn Disk>) -> Result<T, E>,
    ) -> Result<T, String> {
        loop {
            match open(self.disk().attach()) {
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
            let disk = self.disk();
            let names = random.below(disk.unsynced_names() as u64 + 1) as usize;
            let survival = *pick(random, &[0, 300_000, 700_000, 1_000_000]);
            disk.crash(names, &mut |_, _| chance(random, survival));
        } else {
            self.disk().kill();
        }
        self.power.failed.store(false, Ordering::Relaxed);
    }
}

type Drives = BTreeMap<NodeId, Arc<Drive>>;

struct LayoutMachine {
    cluster: ClusterId,
    config: milonga_layout::Config,
    drive: Arc<Drive>,
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
    drive: Arc<Drive>,
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

impl Cluster {
    /// Starts the servers and has an admin initialise them.
    ///
    /// # Errors
    /// Why a server does not start, or the cluster could not be initialised.
    pub async fn start(world: &World, profile: &Profile, shape: &Shape) -> Result<Self, String> {
        let names = Names::of(shape);
        let layout = addresses(&names.layout);
        let builder = Builder {
            world,
            profile,
            random: world.random("machines"),
            layout: layout.clone(),
        };
        let (layout_servers, mut drives) = builder.add_layout_servers(&names.layout);
        let sequencers = builder.add_sequencers(&names.sequencers);
        let (units, more) = builder.add_units(&names.units, shape.replicas as usize);
        drives.extend(more);
        let servers = vec![layout_servers, sequencers, units];
        for server in servers.iter().flatten() {
            world.start(*server).await?;
        }
        let sequencers = addresses(&names.sequencers);
        let mut units = addresses(&names.units);
        let spares = units.split_off((shape.chains * shape.replicas) as usize);
        let genesis = Genesis {
            layout_servers: layout.clone(),
            sequencer: sequencers[0].clone(),
            standbys: sequencers[1..].to_vec(),
            chains: units
                .chunks(shape.replicas as usize)
                .map(<[Address]>::to_vec)
                .collect(),
            spares,
            stripe_width: shape.stripe_width,
        };
        let admin = world.add_client("admin", Role::Admin, 0);
        let log = log(world, admin, Role::Admin, &layout, Options::default());
        let initialised = reconfigure::init(&log, &genesis).await;
        initialised.map_err(|error| error.to_string())?;
        Ok(Self {
            servers,
            layout,
            drives,
        })
    }

    /// The units that have to be there all the time, because they share a chain with one whose disk lies: it would go on
    /// without them, and what it then forgets is lost.
    pub fn needed(&self) -> Vec<NodeId> {
        let lies = |id: &NodeId| self.drives[id].lies;
        let units = &self.servers[2];
        let some = units.iter().any(lies);
        units
            .iter()
            .copied()
            .filter(|id| some && !lies(id))
            .collect()
    }

    /// An empty disk takes the place of the one that server `id`, which is down, had.
    ///
    /// # Panics
    /// If it is a sequencer, which has none.
    pub fn wipe(&self, id: NodeId) {
        self.drives[&id].wipe();
    }
}

/// The names of all servers, by kind.
struct Names {
    layout: Vec<String>,
    sequencers: Vec<String>,
    units: Vec<String>,
}

impl Names {
    fn of(shape: &Shape) -> Self {
        let names = |kind: &str, count: u64| -> Vec<String> {
            let numbers = 1..=count;
            numbers.map(|number| format!("{kind}-{number}")).collect()
        };
        Self {
            layout: names("l", shape.layout_servers),
            sequencers: names("s", 1 + shape.standbys),
            units: names("u", shape.chains * shape.replicas + shape.spares),
        }
    }
}

/// Adds the machines of a cluster to a world.
struct Builder<'a> {
    world: &'a World,
    profile: &'a Profile,
    random: Random,
    layout: Vec<Address>,
}

impl Builder<'_> {
    /// By how much one machine's clock runs fast.
    fn skew(&self) -> i32 {
        let most = self.profile.skew_ppm_max;
        let range = 2 * u64::from(most.unsigned_abs()) + 1;
        self.random.below(range) as i32 - most
    }

    fn add_layout_servers(&self, names: &[String]) -> (Vec<NodeId>, Drives) {
        let add = |text: &String| {
            let drive = Arc::new(Drive::new(self.world, self.profile, text, false));
            drive.fail_as_said(&drive.disk());
            let machine = LayoutMachine {
                cluster: self.world.cluster(),
                config: layout_config(text, &self.layout),
                drive: Arc::clone(&drive),
            };
            let power = Arc::clone(&drive.power);
            let id = add(self.world, text, Role::Layout, self.skew(), machine, power);
            (id, (id, drive))
        };
        names.iter().map(add).unzip()
    }

    fn add_sequencers(&self, names: &[String]) -> Vec<NodeId> {
        let add = |text: &String| {
            let machine = Arc::new(SequencerMachine {
                cluster: self.world.cluster(),
                config: sequencer_config(text, &self.layout),
            });
            self.world
                .add_server(text, Role::Sequencer, self.skew(), machine)
        };
        names.iter().map(add).collect()
    }

    fn add_units(&self, names: &[String], replicas: usize) -> (Vec<NodeId>, Drives) {
        let file_bytes = *pick(&self.random, &[64 << 10, 256 << 10, 1 << 20]);
        // One liar per chain, and none where nobody else holds what it forgets.
        let liar = self.random.below(replicas as u64) as usize;
        let add = |(number, text): (usize, &String)| {
            let lies = self.profile.lying && replicas > 1 && number % replicas == liar;
            let mut drive = Drive::new(self.world, self.profile, text, lies);
            // Where one disk of a chain lies, the others' machines keep their power.
            drive.torn &= lies || !self.profile.lying || replicas == 1;
            drive.fail_as_said(&drive.disk());
            let drive = Arc::new(drive);
            let machine = UnitMachine {
                config: self.unit_config(text),
                file_bytes,
                drive: Arc::clone(&drive),
            };
            let power = Arc::clone(&drive.power);
            let id = add(self.world, text, Role::LogUnit, self.skew(), machine, power);
            (id, (id, drive))
        };
        names.iter().enumerate().map(add).unzip()
    }

    fn unit_config(&self, text: &str) -> milonga_logunit::Config {
        milonga_logunit::Config {
            cluster: self.world.cluster(),
            name: name(text),
            entry_bytes_max: ENTRY_BYTES_MAX,
            queue_bytes_max: 16 << 20,
            layout_servers: self.layout.clone(),
            scrub: None,
            version: "simulated".to_owned(),
        }
    }
}

fn addresses(names: &[String]) -> Vec<Address> {
    names.iter().map(|name| World::address_of(name)).collect()
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
        listen: World::address_of(text),
        admin: None,
        dir: PathBuf::new(),
        layout: layout.to_vec(),
        ca: PathBuf::new(),
        cert: PathBuf::new(),
        key: PathBuf::new(),
        caretaker: false,
        reports_max: milonga_layout::Config::REPORTS_MAX,
        opinion: milonga_layout::Config::OPINION,
    }
}

fn sequencer_config(text: &str, layout: &[Address]) -> milonga_sequencer::Config {
    milonga_sequencer::Config {
        name: name(text),
        listen: World::address_of(text),
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
