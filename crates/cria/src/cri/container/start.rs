//! StartContainer.

use cria_proto::{StartContainerRequest, StartContainerResponse};

use crate::daemon::Daemon;
use crate::error::Error;

pub(in crate::cri) async fn start_container(
    daemon: &Daemon,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Error> {
    super::find(daemon, &request.container_id)?.start(&daemon.node).await?;
    Ok(StartContainerResponse {})
}
