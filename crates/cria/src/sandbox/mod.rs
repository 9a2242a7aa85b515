//! The pod sandbox: its record, its state, and what it lends to its containers.
//!
//! A sandbox is a set of pinned namespaces, a few files and a network attachment; there is no
//! process in it, except for the init of a pod that shares one PID namespace. `create` makes it,
//! `teardown` takes it apart; both work by id alone, so that either can be repeated or undone by a
//! daemon that knows nothing but the record.

pub(crate) mod config;
mod create;
mod files;
pub(crate) mod forward;
mod init;
pub(crate) mod namespaces;
mod network;
pub(crate) mod state;
mod teardown;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

pub(crate) use create::create;
pub(crate) use files::Files;
pub(crate) use init::PodInit;
pub(crate) use network::Network;
pub(crate) use teardown::discard;

use crate::cgroup::Parent;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::id::SandboxId;
use crate::paths::Paths;
use crate::registry::{Named, SandboxKey};
use crate::stats::PodStats;
use config::{NamespaceMode, SandboxConfig};
use state::State;

/// Everything that is known of a sandbox, as it stands on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: SandboxId,
    pub(crate) config: Arc<SandboxConfig>,
    pub(crate) created_at_ns: i64,
    /// Where its containers' cgroups are.
    pub(crate) cgroup: Parent,
    /// The boot in which its namespaces were made.
    pub(crate) boot_id: String,
    /// False until RunPodSandbox has done all of it: such a record is undone at the next start.
    pub(crate) complete: bool,
    pub(crate) state: State,
    /// RemovePodSandbox was asked for: it is continued at the next start.
    #[serde(default)]
    pub(crate) removing: bool,
    /// The attachment to the pod network; kept until CNI DEL has succeeded.
    pub(crate) network: Option<Network>,
    pub(crate) init: Option<PodInit>,
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) config: Arc<SandboxConfig>,
    pub(crate) created_at_ns: i64,
    pub(crate) cgroup: Parent,
    pub(crate) record: Checkpoint<Record>,
    pub(crate) stats: PodStats,
    /// One operation at a time takes the sandbox apart.
    teardown: Mutex<()>,
}

impl Sandbox {
    /// A sandbox whose record was read, or has just been written.
    pub(crate) fn of(record: Checkpoint<Record>) -> Self {
        let Record { id, config, created_at_ns, cgroup, .. } = record.get().clone();
        let stats = PodStats::of(cgroup.pod());
        Self { id, config, created_at_ns, cgroup, record, stats, teardown: Mutex::new(()) }
    }

    pub(crate) fn state(&self) -> State {
        self.record.get().state
    }

    pub(crate) fn check_ready(&self) -> Result<(), Error> {
        match self.state() {
            State::Ready => Ok(()),
            State::NotReady => {
                let id = self.id.to_string();
                Err(Error::WrongState { kind: "pod sandbox", id, state: "not ready" })
            }
        }
    }

    /// The addresses on the pod network, bare; none on the host's network.
    pub(crate) fn ips(&self) -> Vec<String> {
        self.record.get().network.as_ref().map(Network::ips).unwrap_or_default()
    }

    pub(crate) fn is_on_host_network(&self) -> bool {
        self.config.security.namespaces.network == NamespaceMode::Node
    }

    /// The files that its containers share.
    pub(crate) fn files(&self, paths: &Paths) -> Files {
        Files::of(paths, &self.id, &self.config)
    }

    /// Where the container's log goes; none if the pod or the container keeps none.
    pub(crate) fn log_path(&self, log_path: &str) -> Option<PathBuf> {
        let directory = &self.config.log_directory;
        (!directory.is_empty() && !log_path.is_empty())
            .then(|| PathBuf::from(directory).join(log_path))
    }
}

impl Named for Sandbox {
    const KIND: &'static str = "pod sandbox";
    type Id = SandboxId;
    type Key = SandboxKey;

    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn key(&self) -> SandboxKey {
        self.config.key()
    }

    fn is_usable(&self) -> bool {
        self.state() == State::Ready
    }
}

impl SandboxConfig {
    pub(crate) fn key(&self) -> SandboxKey {
        SandboxKey {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            attempt: self.attempt,
        }
    }
}
