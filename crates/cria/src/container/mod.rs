//! The container: its record, its state, and who watches over it.
//!
//! A container's process belongs to its monitor, never to the daemon. What the daemon holds is the
//! record on disk, a connection to the monitor, and duplicates of the descriptors that must outlive
//! a monitor. One task per container (`supervise`) hears the monitor; operations run in tasks of
//! their own, to their end, whoever asked.

mod attach;
pub(crate) mod config;
mod create;
mod exec;
mod image_volume;
mod overlay;
mod reconnect;
mod remove;
mod rootfs;
mod session;
pub(crate) mod spec;
mod start;
pub(crate) mod state;
mod stop;
mod supervise;
mod update;

use std::collections::BTreeMap;
use std::iter;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cria_monitor::exit::Status;
use cria_monitor::protocol::Descriptors;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

pub(crate) use create::{Creation, PidNamespaceFile, create};
pub(crate) use image_volume::ImageVolume;
pub(crate) use reconnect::recover;
pub(crate) use remove::{discard, is_alive};

use crate::cgroup::CgroupPath;
use crate::checkpoint::Checkpoint;
use crate::id::{ContainerId, SandboxId};
use crate::monitor::Monitor;
use crate::node::Node;
use crate::process;
use crate::registry::{ContainerKey, Named};
use crate::stats::ContainerStats;
use config::{ContainerConfig, Resources};
use state::State;

/// Within this a monitor that died is replaced, also on a busy node.
const REPLACEMENT: Duration = Duration::from_secs(10);

/// Everything that is known of a container, as it stands on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: SandboxId,
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) image: ImageUse,
    /// The images that are volumes, by their path in the container.
    #[serde(default)]
    pub(crate) image_volumes: BTreeMap<String, ImageUse>,
    pub(crate) created_at_ns: i64,
    /// The boot in which its process was made.
    pub(crate) boot_id: String,
    pub(crate) log_path: Option<PathBuf>,
    /// False until CreateContainer has done all of it: such a record is undone at the next start.
    pub(crate) complete: bool,
    /// RemoveContainer was asked for: it is continued at the next start.
    #[serde(default)]
    pub(crate) removing: bool,
    /// Who the process runs as; known once the container is complete.
    #[serde(default)]
    pub(crate) user: Option<spec::user::User>,
    /// The signal's number, for StopContainer.
    pub(crate) stop_signal: i32,
    /// The container's process, for a daemon that finds no monitor; 0 before it is made.
    #[serde(default)]
    pub(crate) init_pid: i32,
    #[serde(default)]
    pub(crate) init_start_time: u64,
    pub(crate) cgroup: CgroupPath,
    /// Whether init's end ends every process of the container.
    pub(crate) own_pid_namespace: bool,
    pub(crate) state: State,
    /// What was asked at the creation, with every update merged in.
    pub(crate) resources: Resources,
    /// When a container that is being stopped will be killed: the stop is continued after a
    /// restart.
    #[serde(default)]
    pub(crate) stop_deadline_ns: Option<i64>,
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

/// An image as the container uses it: what it runs from, or a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageUse {
    /// `sha256:` and the digest of its config.
    pub(crate) id: String,
    /// What ContainerStatus calls it: as the user wrote it, else a tag, else what was asked; of a
    /// volume, what was asked.
    pub(crate) name: String,
    /// `repository@digest` of the manifest that was pulled; empty for an image without one.
    pub(crate) reference: String,
    /// The layers it mounts, which are in use until the container is gone.
    pub(crate) layers: Vec<String>,
}

impl Record {
    /// The container's process, if it still is the one that was made.
    fn init(&self) -> Option<OwnedFd> {
        process::open(self.init_pid, self.init_start_time)
    }

    /// Whether it runs from the image with this id, or has it as a volume.
    pub(crate) fn uses_image(&self, id: &str) -> bool {
        iter::once(&self.image).chain(self.image_volumes.values()).any(|image| image.id == id)
    }
}

pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: SandboxId,
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) created_at_ns: i64,
    pub(crate) record: Checkpoint<Record>,
    /// One operation that changes the container at a time; stopping is none (see `stop`).
    lifecycle: tokio::sync::Mutex<()>,
    /// To the monitor; none once it has been released, while it is looked for again, or if there never was
    /// one.
    monitor: watch::Sender<Option<Arc<Monitor>>>,
    held: Mutex<Held>,
    stopping: stop::Stopping,
    execs: exec::Execs,
    pub(crate) stats: ContainerStats,
}

/// What the daemon keeps for the container as long as it lives.
#[derive(Default)]
struct Held {
    /// So that the container survives its monitor.
    descriptors: Descriptors,
    /// Keep the layers of its image, and of those that are volumes.
    leases: Vec<Arc<cria_images::Lease>>,
    /// A SIGKILL of ours is no OOM kill.
    killed: bool,
    /// How init ended, where that was ours to learn.
    init_status: Option<Status>,
}

impl Container {
    pub(crate) fn state(&self) -> State {
        self.record.get().state.clone()
    }

    /// Keeps an image's layers until the container is gone.
    pub(crate) fn keep(&self, lease: cria_images::Lease) {
        self.held().leases.push(Arc::new(lease));
    }

    fn monitor(&self) -> Option<Arc<Monitor>> {
        self.monitor.borrow().clone()
    }

    /// The monitor; one that has died is being replaced, which is waited for.
    async fn monitor_soon(&self) -> Option<Arc<Monitor>> {
        let mut monitors = self.monitor.subscribe();
        let there = monitors.wait_for(|monitor| monitor.is_some() || self.state().is_exited());
        let found = timeout(REPLACEMENT, there).await.ok()?.ok()?;
        found.clone()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Plain assignments; a panic between them leaves nothing half-done.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container whose record was read, or has just been written.
    fn of(node: &Node, record: Checkpoint<Record>) -> Self {
        let (id, sandbox, config, created_at_ns) = {
            let record = record.get();
            let config = Arc::clone(&record.config);
            (record.id.clone(), record.sandbox.clone(), config, record.created_at_ns)
        };
        let stats =
            ContainerStats::of(&record.get().cgroup, node.disk.layer(node.paths.upper(&id)));
        Self {
            id,
            sandbox,
            config,
            created_at_ns,
            record,
            lifecycle: tokio::sync::Mutex::new(()),
            monitor: watch::Sender::new(None),
            held: Mutex::default(),
            stopping: stop::Stopping::default(),
            execs: exec::Execs::default(),
            stats,
        }
    }
}

impl Named for Container {
    const KIND: &'static str = "container";
    type Id = ContainerId;
    type Key = ContainerKey;

    fn id(&self) -> &ContainerId {
        &self.id
    }

    fn key(&self) -> ContainerKey {
        ContainerKey {
            sandbox: self.sandbox.clone(),
            name: self.config.name.clone(),
            attempt: self.config.attempt,
        }
    }

    fn is_usable(&self) -> bool {
        !self.record.get().state.is_exited()
    }
}
