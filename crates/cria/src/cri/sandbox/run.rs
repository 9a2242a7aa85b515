//! RunPodSandbox.

use std::sync::Arc;

use cria_proto::{RunPodSandboxRequest, RunPodSandboxResponse};

use super::super::convert;
use super::super::span::record;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::sandbox;

/// A repeated request attaches to the first one; after it, the same sandbox is answered as long as
/// it is Ready.
pub(in crate::cri) async fn run_pod_sandbox(
    daemon: &Daemon,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Error> {
    let handler = request.runtime_handler;
    if !daemon.node.serves_handler(&handler) {
        return Err(Error::invalid("runtime_handler", format!("there is none called {handler:?}")));
    }
    let config = convert::sandbox_config(request.config, handler)?;
    record("pod", &format!("{}/{}", config.namespace, config.name));
    let key = config.key();
    let (node, sandboxes) = (Arc::clone(&daemon.node), Arc::clone(&daemon.sandboxes));
    let create = || async move {
        let sandbox = sandbox::create(node, Arc::new(config)).await?;
        sandboxes.insert(Arc::clone(&sandbox));
        Ok(sandbox)
    };
    let sandbox = daemon.sandboxes.get_or_create(key, create).await?;
    super::note(&sandbox);
    Ok(RunPodSandboxResponse { pod_sandbox_id: sandbox.id.to_string() })
}
