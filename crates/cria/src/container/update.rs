//! UpdateContainerResources and ReopenContainerLog.

use std::sync::Arc;
use std::time::Duration;

use cria_monitor::protocol::Request;

use super::Container;
use super::config::Resources;
use super::spec::resources;
use super::state::State;
use crate::cgroup::Version;
use crate::error::Error;
use crate::node::Node;

/// Opening a file may take as long as its file system does; the kubelet waits two minutes.
const REOPEN_DEADLINE: Duration = Duration::from_secs(60);

impl Container {
    /// Changes the limits that `update` names, and leaves the others. Runs to its end even if the
    /// caller goes away.
    pub(crate) async fn update(
        self: &Arc<Self>,
        node: &Arc<Node>,
        update: Resources,
    ) -> Result<(), Error> {
        let (container, node) = (Arc::clone(self), Arc::clone(node));
        tokio::spawn(async move {
            let _alone = container.lifecycle.lock().await;
            container.update_alone(&node, &update).await
        })
        .await
        .map_err(|panic| Error::internal("update the container", panic))?
    }

    async fn update_alone(&self, node: &Node, update: &Resources) -> Result<(), Error> {
        let merged = resources::merge(&self.record.get().resources, update);
        match self.state() {
            State::Exited(_) => return Err(self.wrong_state("exited")),
            // There is no process to limit; StartContainer will say why.
            State::Created { broken: Some(_) } => {}
            State::Created { broken: None } | State::Running { .. } => {
                let failed =
                    |error| Error::internal(format!("update container {}", self.id), error);
                let limits = resources::for_update(&merged, &node.settings.get().facts);
                node.oci.update(&self.id, &limits).await.map_err(failed)?;
                self.write_the_rest(node, update)?;
            }
        }
        self.record
            .change(|record| record.resources = merged)
            .await
            .map_err(|error| Error::io(format!("write the record of container {}", self.id), error))
    }

    /// What no OCI runtime's `update` takes, as far as the node has it (see `resources`).
    fn write_the_rest(&self, node: &Node, update: &Resources) -> Result<(), Error> {
        let cgroup = self.record.get().cgroup.clone();
        let by_version = match node.cgroups.version() {
            Version::V1 if update.cpu_quota < 0 => node.cgroups.lift_cpu_quota(&cgroup),
            Version::V1 => Ok(()),
            Version::V2 => node.cgroups.write_unified(&cgroup, &update.unified),
        };
        let hugepages = match node.settings.get().facts.cgroups.hugetlb {
            true => node.cgroups.write_hugepages(&cgroup, &update.hugepage_limits),
            false => Ok(()),
        };
        by_version.and(hugepages).map_err(|error| {
            Error::internal(format!("update the cgroup of container {}", self.id), error)
        })
    }

    /// Opens the log anew, at the same path. A container that does not run gets no new file.
    pub(crate) async fn reopen_log(&self) -> Result<(), Error> {
        let monitor = match self.state() {
            State::Running { .. } => self.monitor(),
            State::Created { .. } => return Err(self.wrong_state("not running yet")),
            State::Exited(_) => return Err(self.wrong_state("exited")),
        };
        let monitor = monitor.ok_or_else(|| self.wrong_state("without a monitor"))?;
        monitor
            .tell(Request::ReopenLog, REOPEN_DEADLINE)
            .await
            .map_err(|error| Error::internal(format!("reopen the log of {}", self.id), error))
    }
}
