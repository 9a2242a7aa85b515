//! StopPodSandbox.

use cria_proto::{StopPodSandboxRequest, StopPodSandboxResponse};

use crate::daemon::Daemon;
use crate::error::Error;

/// Idempotent: a sandbox that is gone counts as stopped. If CNI DEL fails, so does this, each time
/// until it succeeds; the sandbox is NotReady all the same.
pub(in crate::cri) async fn stop_pod_sandbox(
    daemon: &Daemon,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Error> {
    if let Some(sandbox) = daemon.sandboxes.find(&request.pod_sandbox_id) {
        super::note(&sandbox);
        daemon.stop_sandbox(&sandbox).await?;
    }
    Ok(StopPodSandboxResponse {})
}
