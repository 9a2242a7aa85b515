//! RemovePodSandbox.

use cria_proto::{RemovePodSandboxRequest, RemovePodSandboxResponse};

use crate::daemon::Daemon;
use crate::error::Error;

/// Idempotent: a sandbox that is gone counts as removed. Its containers go with it.
pub(in crate::cri) async fn remove_pod_sandbox(
    daemon: &Daemon,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Error> {
    if let Some(sandbox) = daemon.sandboxes.find(&request.pod_sandbox_id) {
        super::note(&sandbox);
        daemon.remove_sandbox(&sandbox).await?;
    }
    Ok(RemovePodSandboxResponse {})
}
