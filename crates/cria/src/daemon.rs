//! The daemon: this node's sandboxes and containers, and what concerns both of them.

use std::sync::Arc;

use futures_util::future::join_all;
use std::time::Duration;

use crate::container::Container;
use crate::error::Error;
use crate::node::Node;
use crate::registry::Objects;
use crate::sandbox::Sandbox;

pub(crate) struct Daemon {
    pub(crate) node: Arc<Node>,
    pub(crate) sandboxes: Arc<Objects<Sandbox>>,
    pub(crate) containers: Arc<Objects<Container>>,
}

impl Daemon {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, sandboxes: Arc::default(), containers: Arc::default() }
    }

    /// Containers first, with the network still there; then the network, then the namespaces.
    /// NotReady from the first call on, and repeated until all of it has succeeded.
    pub(crate) async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        sandbox.begin_stop().await;
        let containers = self.containers_of(sandbox);
        // What still runs now had its grace: the kubelet stops containers one by one before.
        let stopped = join_all(containers.iter().map(|container| container.stop(Duration::ZERO)));
        stopped.await.into_iter().collect::<Result<(), Error>>()?;
        sandbox.take_down(&self.node).await
    }

    pub(crate) async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        sandbox.begin_removal().await;
        let containers = self.containers_of(sandbox);
        let removed = join_all(containers.iter().map(|container| self.remove_container(container)));
        removed.await.into_iter().collect::<Result<(), Error>>()?;
        sandbox.clean(&self.node).await?;
        self.sandboxes.remove(sandbox);
        Ok(())
    }

    pub(crate) async fn remove_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        container.remove(&self.node).await?;
        self.containers.remove(container);
        Ok(())
    }

    fn containers_of(&self, sandbox: &Sandbox) -> Vec<Arc<Container>> {
        let mut containers = self.containers.all();
        containers.retain(|container| container.sandbox == sandbox.id);
        containers
    }
}
