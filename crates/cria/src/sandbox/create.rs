//! RunPodSandbox: namespaces, network, files and, where the pod shares a PID namespace, its init.
//! The network is attached while the rest is made; what fails is undone by `teardown`.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::config::{NamespaceMode, SandboxConfig};
use super::state::State;
use super::{Network, PodInit, Record, Sandbox, namespaces};
use crate::cgroup::Parent;
use crate::checkpoint::Checkpoint;
use crate::clock;
use crate::cni::Attachment;
use crate::error::Error;
use crate::id::SandboxId;
use crate::node::Node;
use crate::tree;

/// Makes the sandbox; a failure leaves nothing.
pub(crate) async fn create(
    node: Arc<Node>,
    config: Arc<SandboxConfig>,
) -> Result<Arc<Sandbox>, Error> {
    check(&config)?;
    let id = SandboxId::random().map_err(|error| Error::io("draw a sandbox id", error))?;
    let network = intended_network(&node, &id, &config).await?;
    let sandbox = Arc::new(begin(&node, id, config, network).await?);
    match sandbox.make(&node).await {
        Ok(()) => {
            sandbox.watch_init();
            Ok(sandbox)
        }
        Err(error) => {
            // Recorded as incomplete: should we end before it is undone, the next start undoes it.
            sandbox.undo(&node).await;
            Err(error)
        }
    }
}

/// Refuses what could never be made, before anything is.
fn check(config: &SandboxConfig) -> Result<(), Error> {
    let asked = &config.security.namespaces;
    for (field, mode) in [("network", asked.network), ("ipc", asked.ipc)] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            let field = format!("namespace_options.{field}");
            return Err(Error::invalid(field, "a pod shares it, or has the node's"));
        }
    }
    if asked.user.as_ref().is_some_and(|user| user.mode != NamespaceMode::Node) {
        return Err(Error::Unimplemented { what: "a user namespace for a pod" });
    }
    if config.hostname.len() > 64 {
        return Err(Error::invalid("hostname", "it is longer than 64 bytes"));
    }
    check_sysctls(config)
}

/// A sysctl of a namespace that is the node's would change the node.
fn check_sysctls(config: &SandboxConfig) -> Result<(), Error> {
    let own = namespaces::own(config);
    for key in config.sysctls.keys() {
        let reason = match namespaces::of_sysctl(key) {
            None => "it belongs to no namespace of a pod",
            Some(kind) if !own.contains(&kind) => "the pod shares this namespace with the node",
            Some(_) => continue,
        };
        return Err(Error::invalid(format!("linux.sysctls[{key:?}]"), reason));
    }
    Ok(())
}

async fn intended_network(
    node: &Node,
    id: &SandboxId,
    config: &SandboxConfig,
) -> Result<Option<Network>, Error> {
    if config.security.namespaces.network == NamespaceMode::Node {
        return Ok(None);
    }
    let failed = |error| Error::internal(format!("attach pod {}", config.name), error);
    let network = node.cni.network().await.map_err(failed)?;
    // All that it refuses is the client's to mend.
    let attachment = Attachment::new(network, id.clone(), node.paths.netns(id), config)
        .map_err(|error| Error::invalid("config", error.to_string()))?;
    Ok(Some(Network { attachment, added: None }))
}

/// Writes the intent: from here on a crash leaves a record that says what to undo.
async fn begin(
    node: &Node,
    id: SandboxId,
    config: Arc<SandboxConfig>,
    network: Option<Network>,
) -> Result<Sandbox, Error> {
    let failed = |error| Error::io(format!("write the record of pod sandbox {id}"), error);
    let cgroup = Parent::new(node.cgroup_driver, &config.cgroup_parent, &id)
        .map_err(|error| Error::invalid("linux.cgroup_parent", error.to_string()))?;
    let path = node.paths.sandbox_record(&id);
    let record = Record {
        id: id.clone(),
        config,
        created_at_ns: clock::now_ns(),
        cgroup,
        boot_id: node.boot_id.clone(),
        complete: false,
        state: State::Ready,
        removing: false,
        network,
        init: None,
        unknown: serde_json::Map::new(),
    };
    match Checkpoint::create(path, record).await {
        Ok(record) => Ok(Sandbox::of(record)),
        Err(error) => {
            let directory = node.paths.sandbox(&id);
            let removed = spawn_blocking(move || tree::remove(&directory)).await;
            if let Err(error) = removed.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
                tracing::warn!(sandbox = %id, %error, "cannot undo a failed sandbox");
            }
            Err(failed(error))
        }
    }
}

impl Sandbox {
    async fn make(&self, node: &Arc<Node>) -> Result<(), Error> {
        self.blocking(node, "make the namespaces", |node, id, config| {
            fs_err::create_dir_all(node.paths.sandbox_run(id))?;
            namespaces::make(&node.spawner, &node.paths, id, config)
        })
        .await?;
        let (attached, init) = tokio::join!(self.attach(node), self.make_files_and_init(node));
        let init = init?;
        attached?;
        self.change(|record| {
            record.init = init;
            record.complete = true;
        })
        .await
    }

    async fn make_files_and_init(&self, node: &Arc<Node>) -> Result<Option<PodInit>, Error> {
        self.blocking(node, "make the files and the init", |node, id, config| {
            super::files::Files::of(&node.paths, id, config).make(id, config)?;
            if config.security.namespaces.pid != NamespaceMode::Pod {
                return Ok(None);
            }
            let kinds = namespaces::own(config);
            PodInit::start(&node.spawner, &node.paths, id, &kinds, &node.monitor_cgroups).map(Some)
        })
        .await
    }

    /// Runs blocking work for this sandbox; `action` completes "cannot ... of pod sandbox ID".
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        node: &Arc<Node>,
        action: &'static str,
        work: impl FnOnce(&Node, &SandboxId, &SandboxConfig) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (node, id, config) = (Arc::clone(node), self.id.clone(), Arc::clone(&self.config));
        let done = spawn_blocking(move || work(&node, &id, &config)).await;
        done.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .map_err(|error| Error::io(format!("{action} of pod sandbox {}", self.id), error))
    }

    pub(super) async fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        self.record
            .change(change)
            .await
            .map_err(|error| Error::io(format!("write the record of sandbox {}", self.id), error))
    }
}
