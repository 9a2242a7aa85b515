//! ExecSync.

use std::time::Duration;

use cria_proto::{ExecSyncRequest, ExecSyncResponse};

use crate::daemon::Daemon;
use crate::error::Error;

/// A timeout of zero is none. One that runs out is DEADLINE_EXCEEDED: the kubelet takes it for a
/// probe's own timeout.
pub(in crate::cri) async fn exec_sync(
    daemon: &Daemon,
    request: ExecSyncRequest,
) -> Result<ExecSyncResponse, Error> {
    let container = super::find(daemon, &request.container_id)?;
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd", "it is empty"));
    }
    let timeout = match u64::try_from(request.timeout) {
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => return Err(Error::invalid("timeout", "it is negative")),
    };
    let output = container.exec_sync(&daemon.node, request.cmd, timeout).await?;
    Ok(ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    })
}
