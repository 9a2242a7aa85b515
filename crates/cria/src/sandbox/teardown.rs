//! StopPodSandbox and RemovePodSandbox, and the undoing of a RunPodSandbox that failed. The
//! containers are the caller's business, and come first.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::config::NamespaceMode;
use super::namespaces::Kind;
use super::state::State;
use super::{Sandbox, files, init, namespaces};
use crate::cni::Attachment;
use crate::error::{Error, chain};
use crate::id::SandboxId;
use crate::node::Node;
use crate::{retry, tree};

/// What is left in the cgroup of a pod that cria made it for gets to end.
const CGROUP_DEADLINE: Duration = Duration::from_secs(10);

/// Clears a sandbox away of which nothing is known but the id.
pub(crate) async fn discard(node: &Arc<Node>, id: &SandboxId) -> Result<(), Error> {
    let action = format!("clear pod sandbox {id} away");
    init::end_pinned(&node.paths, id).await.map_err(|error| Error::io(action.clone(), error))?;
    detach_forgotten(node, id).await;
    let (node, id) = (Arc::clone(node), id.clone());
    let cleared = spawn_blocking(move || {
        for kind in [Kind::Net, Kind::Ipc, Kind::Uts] {
            namespaces::unpin(&kind.pin(&node.paths, &id))?;
        }
        namespaces::unpin(&namespaces::pid_pin(&node.paths, &id))?;
        files::unmount(&node.paths, &id)?;
        tree::remove(&node.paths.sandbox_run(&id))?;
        tree::remove(&node.paths.sandbox(&id))
    });
    cleared
        .await
        .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        .map_err(|error| Error::io(action, error))
}

/// CNI DEL as far as it can be told without the record: whether the sandbox was attached, and to
/// this network, is unknown. So a plugin that refuses does not keep the rest.
async fn detach_forgotten(node: &Node, id: &SandboxId) {
    let Ok(network) = node.cni.network().await else { return };
    let netns = Kind::Net.pin(&node.paths, id);
    let attachment = Attachment::forgotten(network, id.clone(), netns);
    if let Err(error) = node.cni.del(&attachment, None).await {
        tracing::warn!(sandbox = %id, error = chain(&error), "CNI DEL without a record failed");
    }
}

impl Sandbox {
    /// From here on the sandbox is NotReady, whatever else fails. A full disk must not keep a pod
    /// from being stopped.
    pub(crate) async fn begin_stop(&self) {
        self.note("NotReady", |record| record.state = State::NotReady).await;
    }

    /// So that a restarted daemon continues.
    pub(crate) async fn begin_removal(&self) {
        self.note("being removed", |record| {
            record.state = State::NotReady;
            record.removing = true;
        })
        .await;
    }

    async fn note(&self, what: &'static str, change: impl FnOnce(&mut super::Record)) {
        if let Err(error) = self.record.note(change).await {
            tracing::warn!(sandbox = %self.id, %error, what, "cannot write the record");
        }
    }

    /// Detaches the network and lets go of the namespaces. Each step can be repeated; if CNI DEL
    /// fails the namespace stays, because the plugin will need it again.
    pub(crate) async fn take_down(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Error> {
        let (sandbox, node) = (Arc::clone(self), Arc::clone(node));
        tokio::spawn(async move {
            let _alone = sandbox.teardown.lock().await;
            sandbox.take_down_alone(&node).await
        })
        .await
        .map_err(|panic| Error::internal("take the sandbox down", panic))?
    }

    async fn take_down_alone(&self, node: &Arc<Node>) -> Result<(), Error> {
        self.end_init(node).await?;
        // The open counters keep the namespace alive.
        self.stats.close_network();
        self.detach(node).await?;
        self.blocking(node, "let go of the namespaces", |node, id, config| {
            for kind in [Kind::Net, Kind::Ipc, Kind::Uts] {
                namespaces::unpin(&kind.pin(&node.paths, id))?;
            }
            if config.security.namespaces.pid == NamespaceMode::Pod {
                namespaces::unpin(&namespaces::pid_pin(&node.paths, id))?;
            }
            files::unmount(&node.paths, id)
        })
        .await
    }

    async fn end_init(&self, node: &Node) -> Result<(), Error> {
        if self.config.security.namespaces.pid != NamespaceMode::Pod {
            return Ok(());
        }
        let recorded = self.record.get().init;
        let ended = match recorded {
            Some(init) => init.end().await,
            None => init::end_pinned(&node.paths, &self.id).await,
        };
        ended.map_err(|error| Error::io(format!("end the init of pod sandbox {}", self.id), error))
    }

    /// Leaves nothing; the record goes last.
    pub(crate) async fn clean(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Error> {
        self.take_down(node).await?;
        let cgroup = self.cgroup.to_remove().cloned();
        self.blocking(node, "remove the files", move |node, id, _| {
            if let Some(cgroup) = cgroup {
                node.cgroups.remove(&cgroup, CGROUP_DEADLINE).map_err(std::io::Error::other)?;
            }
            tree::remove(&node.paths.sandbox_run(id))?;
            tree::remove(&node.paths.sandbox(id))
        })
        .await
    }

    /// Cleans a sandbox that nobody was told of, if need be in the background.
    pub(crate) async fn undo(self: &Arc<Self>, node: &Arc<Node>) {
        let (sandbox, node) = (Arc::clone(self), Arc::clone(node));
        retry::until_done("undo a pod sandbox", self.id.to_string(), move || {
            let (sandbox, node) = (Arc::clone(&sandbox), Arc::clone(&node));
            async move { sandbox.clean(&node).await }
        })
        .await;
    }

    /// A sandbox of an earlier daemon. What a reboot ended is NotReady, and its init's pid and start
    /// time may be those of anybody's process now.
    pub(crate) async fn recover(self: &Arc<Self>, node: &Node) {
        if self.record.get().boot_id != node.boot_id {
            self.note("ended by a reboot", |record| {
                record.state = State::NotReady;
                record.init = None;
            })
            .await;
        }
        self.watch_init();
    }

    /// The pod's containers cannot live without its init: when that dies, the pod is NotReady.
    pub(crate) fn watch_init(self: &Arc<Self>) {
        let Some(init) = self.record.get().init else { return };
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            init.ended().await;
            if sandbox.state() == State::Ready {
                tracing::warn!(sandbox = %sandbox.id, "the pod's init died");
                sandbox.begin_stop().await;
            }
        });
    }
}
