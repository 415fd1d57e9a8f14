//! How a command finds its cluster, and becomes a client of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use milonga_client::{ClusterConfig, Log, Options};

use crate::failure::{Failure, Outcome};

/// The name of a cluster file.
pub(crate) const FILE: &str = "milonga.toml";
/// Where `milonga dev` keeps a cluster unless told otherwise.
pub(crate) const DEV_DIR: &str = "milonga-dev";

/// What the command line says of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    /// The cluster file.
    pub(crate) file: Option<PathBuf>,
    /// How long an operation may take.
    pub(crate) deadline: Option<Duration>,
}

impl Cluster {
    /// The cluster file: the one given, else the first of the usual places that exists.
    pub(crate) fn path(&self) -> Outcome<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let usual = usual_places();
        let found = usual.iter().find(|path| path.exists()).cloned();
        found.ok_or_else(|| {
            Failure::failed(format!(
                "no cluster is configured; expected ./{FILE}; \
                 try --cluster FILE, MILONGA_CLUSTER=FILE, or `milonga dev`"
            ))
        })
    }

    /// What the cluster file says.
    pub(crate) fn config(&self) -> Outcome<ClusterConfig> {
        Ok(ClusterConfig::load(&self.path()?)?)
    }

    /// Connects. Nothing is asked of any server yet. Must be called inside a runtime.
    pub(crate) fn connect(&self) -> Outcome<Log> {
        self.connect_with(|_| {})
    }

    /// Connects with other options than the file asks for.
    pub(crate) fn connect_with(&self, change: impl FnOnce(&mut Options)) -> Outcome<Log> {
        let log = self.config()?.connect()?;
        let mut options = log.options().clone();
        if let Some(deadline) = self.deadline {
            options.deadline = deadline;
        }
        change(&mut options);
        Ok(log.with_options(options))
    }
}

fn usual_places() -> Vec<PathBuf> {
    let home = || {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        home.map(|home| Path::new(&home).join(".config"))
    };
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(home);
    let mut places = vec![PathBuf::from(FILE), Path::new(DEV_DIR).join(FILE)];
    places.extend(user.map(|user| user.join("milonga").join("cluster.toml")));
    places
}
