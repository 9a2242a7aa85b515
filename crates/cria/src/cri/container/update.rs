//! UpdateContainerResources and ReopenContainerLog.

use cria_proto::{
    ReopenContainerLogRequest, ReopenContainerLogResponse, UpdateContainerResourcesRequest,
    UpdateContainerResourcesResponse,
};

use super::super::convert;
use crate::daemon::Daemon;
use crate::error::Error;

/// Partial: what is zero or empty stays as it is (the CPU manager sends `cpuset_cpus` alone).
pub(in crate::cri) async fn update_container_resources(
    daemon: &Daemon,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Error> {
    let container = super::find(daemon, &request.container_id)?;
    let linux = request.linux.ok_or_else(|| Error::invalid("linux", "it is missing"))?;
    container.update(&daemon.node, convert::resources(linux)).await?;
    Ok(UpdateContainerResourcesResponse {})
}

pub(in crate::cri) async fn reopen_container_log(
    daemon: &Daemon,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Error> {
    super::find(daemon, &request.container_id)?.reopen_log().await?;
    Ok(ReopenContainerLogResponse {})
}
