//! The RPCs about pod sandboxes.

mod query;
mod remove;
mod run;
mod stop;

pub(super) use query::{
    list_pod_sandbox, matches, metadata, pod_sandbox_status, stream_pod_sandboxes,
};
pub(super) use remove::remove_pod_sandbox;
pub(super) use run::run_pod_sandbox;
pub(super) use stop::stop_pod_sandbox;

use std::sync::Arc;

use cria_proto::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

use super::span::record;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::sandbox::Sandbox;

/// The sandbox of this id, or of this prefix of one.
pub(super) fn find(daemon: &Daemon, id: &str) -> Result<Arc<Sandbox>, Error> {
    let sandbox = daemon
        .sandboxes
        .find(id)
        .ok_or_else(|| Error::NotFound { kind: "pod sandbox", id: id.to_owned() })?;
    note(&sandbox);
    Ok(sandbox)
}

/// Tells the log which sandbox an RPC is about.
pub(super) fn note(sandbox: &Sandbox) {
    record("sandbox", &sandbox.id);
    record("pod", &format!("{}/{}", sandbox.config.namespace, sandbox.config.name));
}

/// The kubelet owns the pod's cgroup and has changed it already; there is nothing left to do but
/// to know the sandbox.
pub(super) async fn update_pod_sandbox_resources(
    daemon: &Daemon,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Error> {
    find(daemon, &request.pod_sandbox_id)?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
