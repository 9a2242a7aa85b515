//! The daemon: this node's sandboxes and containers, and what concerns both of them.
//!
//! Stopping and removing run in tasks of their own, to their end, even if the caller goes away.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use cria_streaming::Server;
use tokio::sync::Notify;

use crate::container::Container;
use crate::error::Error;
use crate::node::Node;
use crate::registry::Objects;
use crate::sandbox::Sandbox;

#[derive(Clone)]
pub(crate) struct Daemon {
    pub(crate) node: Arc<Node>,
    pub(crate) sandboxes: Arc<Objects<Sandbox>>,
    pub(crate) containers: Arc<Objects<Container>>,
    /// Exec, attach and port-forward, once somebody comes for them.
    pub(crate) streaming: Arc<Server>,
    /// Told when the configuration is read again: other files may be in it.
    pub(crate) reloaded: Arc<Notify>,
}

impl Daemon {
    pub(crate) fn new(node: Arc<Node>, streaming: Arc<Server>) -> Self {
        Self {
            node,
            sandboxes: Arc::default(),
            containers: Arc::default(),
            streaming,
            reloaded: Arc::default(),
        }
    }

    /// Containers first, with the network still there; then the network, then the namespaces.
    /// NotReady from the first call on, and repeated until all of it has succeeded.
    pub(crate) async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let (daemon, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_its_end("stop the sandbox", async move {
            sandbox.begin_stop().await;
            let containers = daemon.containers_of(&sandbox);
            // What still runs now had its grace: the kubelet stops containers one by one before.
            let stopped = containers.iter().map(|container| container.stop(Duration::ZERO));
            join_all(stopped).await.into_iter().collect::<Result<(), Error>>()?;
            sandbox.take_down(&daemon.node).await
        })
        .await
    }

    pub(crate) async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let (daemon, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_its_end("remove the sandbox", async move {
            sandbox.begin_removal().await;
            let containers = daemon.containers_of(&sandbox);
            let removed = containers.iter().map(|container| daemon.remove_container(container));
            join_all(removed).await.into_iter().collect::<Result<(), Error>>()?;
            sandbox.clean(&daemon.node).await?;
            daemon.sandboxes.remove(&sandbox);
            Ok(())
        })
        .await
    }

    pub(crate) async fn remove_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        let (daemon, container) = (self.clone(), Arc::clone(container));
        to_its_end("remove the container", async move {
            container.remove(&daemon.node).await?;
            daemon.containers.remove(&container);
            Ok(())
        })
        .await
    }

    fn containers_of(&self, sandbox: &Sandbox) -> Vec<Arc<Container>> {
        let mut containers = self.containers.all();
        containers.retain(|container| container.sandbox == sandbox.id);
        containers
    }
}

/// A kubelet that times out drops its request: what was begun goes on without it.
async fn to_its_end(
    action: &'static str,
    operation: impl Future<Output = Result<(), Error>> + Send + 'static,
) -> Result<(), Error> {
    tokio::spawn(operation).await.map_err(|panic| Error::internal(action, panic))?
}
