//! A network of namespaces: each node has one link to a router of its own, which drops what a test cuts. Needs root and
//! `ip`; leaves nothing behind, not even when the test fails.
//!
//! ```text
//! node 1  10.201.1.2 ── 10.201.1.1 ┐
//! node 2  10.201.2.2 ── 10.201.2.1 ┼ router     a cut: a rule of the router, for one way between two nodes or for all of them
//!   …                              ┘            link down: the node's link, at the router's end
//! ```

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::link::{Slow, SlowLink, device};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What all namespaces of tests begin with.
const PREFIX: &str = "milonga-test-";

/// Namespaces that end with it.
pub(crate) struct Net {
    /// Of the names of its namespaces.
    prefix: String,
    nodes: Vec<String>,
}

/// Which packets.
#[derive(Clone, Copy)]
pub(crate) enum Way<'a> {
    /// From the one node to the other.
    Between(&'a str, &'a str),
    /// From a node to everybody.
    From(&'a str),
    /// From everybody to a node.
    To(&'a str),
}

impl Net {
    /// A router and `nodes`. None, with the reason printed, where this machine or this user has no namespaces.
    pub(crate) fn new(nodes: &[&str]) -> Option<Self> {
        static NETS: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NETS.fetch_add(1, Ordering::Relaxed);
        let net = Self {
            prefix: format!("{PREFIX}{}-{number}-", std::process::id()),
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        };
        if let Err(why) = net.probe() {
            let skipped =
                format!("skipped: no network namespaces ({why}); run as root, with iproute2");
            // Past the test harness, which shows nothing of a test that passes.
            let _ = writeln!(std::io::stderr(), "{skipped}");
            return None;
        }
        net.build().unwrap();
        Some(net)
    }

    /// Makes the router, and tries whatever a user or a kernel may lack.
    fn probe(&self) -> Result<(), String> {
        let router = self.namespace("router");
        ip(None, &format!("netns add {router}\n"))?;
        let rule = "from 10.201.0.9 blackhole pref 50\n";
        let all = "link add try0 type veth peer name try1\nlink del try0\n";
        ip(
            Some(&router),
            &format!("{all}rule add {rule}rule del {rule}"),
        )
    }

    fn build(&self) -> Result<(), String> {
        let (mut all, mut within) = (String::new(), String::new());
        for (number, node) in self.nodes.iter().enumerate() {
            all += &format!("netns add {}\n", self.namespace(node));
            within += &format!(
                "link add n{number} type veth peer name eth0 netns {}\n\
                 addr add 10.201.{number}.1/24 dev n{number}\nlink set n{number} up\n",
                self.namespace(node)
            );
        }
        ip(None, &all)?;
        ip(Some(&self.namespace("router")), &within)?;
        for (number, node) in self.nodes.iter().enumerate() {
            let within = format!(
                "addr add {}/24 dev eth0\nlink set eth0 up\nlink set lo up\n\
                 route add default via 10.201.{number}.1\n",
                self.host(node)
            );
            ip(Some(&self.namespace(node)), &within)?;
        }
        let forward = "/proc/sys/net/ipv4/ip_forward";
        self.inside("router", || std::fs::write(forward, "1"))
            .map_err(|why| why.to_string())
    }

    fn namespace(&self, node: &str) -> String {
        format!("{}{node}", self.prefix)
    }

    fn number(&self, node: &str) -> usize {
        let number = self.nodes.iter().position(|other| other == node);
        number.unwrap_or_else(|| panic!("{node} is no node"))
    }

    /// The address of a node.
    pub(crate) fn host(&self, node: &str) -> String {
        format!("10.201.{}.2", self.number(node))
    }

    /// Does something on this thread as if it ran on `node`: sockets and processes that it makes stay there.
    pub(crate) fn inside<T>(&self, node: &str, act: impl FnOnce() -> T) -> T {
        struct Back(File);
        impl Drop for Back {
            fn drop(&mut self) {
                enter(&self.0);
            }
        }
        let _back = Back(File::open("/proc/thread-self/ns/net").unwrap());
        self.door(node)();
        act()
    }

    /// Takes the thread that calls it to `node`.
    pub(crate) fn door(&self, node: &str) -> impl FnOnce() + Send + 'static {
        let path = PathBuf::from("/run/netns").join(self.namespace(node));
        let file = File::open(path).unwrap();
        move || enter(&file)
    }

    /// From now on what goes this way is lost, without a word to anybody.
    pub(crate) fn cut(&self, way: Way<'_>) {
        self.rule("add", way);
    }

    /// Undoes a cut.
    pub(crate) fn mend(&self, way: Way<'_>) {
        self.rule("del", way);
    }

    fn rule(&self, verb: &str, way: Way<'_>) {
        let which = match way {
            Way::Between(from, to) => format!("from {} to {}", self.host(from), self.host(to)),
            Way::From(node) => format!("from {}", self.host(node)),
            Way::To(node) => format!("to {}", self.host(node)),
        };
        let rule = format!("rule {verb} {which} blackhole pref 100\n");
        ip(Some(&self.namespace("router")), &rule).unwrap();
    }

    /// Makes the link of a node slow until what this returns is dropped. None, with the reason printed, where there are no TUN
    /// devices.
    pub(crate) fn slow(&self, node: &str, slow: Slow) -> Option<SlowLink> {
        let name = format!("s{}", self.number(node));
        let made = self
            .inside(node, || device(&name))
            .and_then(|near| Ok([near, self.inside("router", || device(&name))?]));
        let devices = match made {
            Ok(devices) => devices,
            Err(why) => {
                let skipped = format!("skipped: no TUN devices (/dev/net/tun: {why}); run as root");
                let _ = writeln!(std::io::stderr(), "{skipped}");
                return None;
            }
        };
        let host = self.host(node);
        let near = format!("link set {name} up\nroute add 10.201.0.0/16 dev {name} src {host}\n");
        ip(Some(&self.namespace(node)), &near).unwrap();
        let far = format!("link set {name} up\nroute add {host}/32 dev {name}\n");
        ip(Some(&self.namespace("router")), &far).unwrap();
        Some(SlowLink::new(devices, slow))
    }

    /// Pulls the cable of a node, or plugs it in.
    pub(crate) fn link(&self, node: &str, up: bool) {
        let state = if up { "up" } else { "down" };
        let set = format!("link set n{} {state}\n", self.number(node));
        ip(Some(&self.namespace("router")), &set).unwrap();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in self.nodes.iter().map(String::as_str).chain(["router"]) {
            // Those that were not made are not there; the others must go in any case.
            let _ = ip(None, &format!("netns del {}\n", self.namespace(node)));
        }
    }
}

fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// Has `ip` do several things in a namespace.
fn ip(namespace: Option<&str>, lines: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|why| format!("ip: {why}"))?;
    let mut stdin = child.stdin.take().unwrap();
    let written = stdin.write_all(lines.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|why| why.to_string())?;
    if output.status.success() && written.is_ok() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("ip failed").to_owned())
}

/// Removes what a test left that was killed.
fn sweep() {
    let Ok(namespaces) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for namespace in namespaces.flatten() {
        let name = namespace.file_name().into_string().unwrap_or_default();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !PathBuf::from("/proc").join(owner).exists()) {
            let _ = ip(None, &format!("netns del {name}\n"));
        }
    }
}
