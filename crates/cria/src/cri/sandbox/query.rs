//! PodSandboxStatus and the lists.

use std::collections::BTreeMap;

use cria_proto::{
    LinuxPodSandboxStatus, ListPodSandboxRequest, ListPodSandboxResponse, Namespace, PodIp,
    PodSandbox, PodSandboxFilter, PodSandboxMetadata, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse, StreamPodSandboxesRequest,
    StreamPodSandboxesResponse,
};

use super::super::{Items, convert, stream_list};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::sandbox::state::State;

pub(in crate::cri) async fn pod_sandbox_status(
    daemon: &Daemon,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Error> {
    let sandbox = super::find(daemon, &request.pod_sandbox_id)?;
    let info = match request.verbose {
        true => verbose(&sandbox)?,
        false => BTreeMap::new(),
    };
    Ok(PodSandboxStatusResponse { status: Some(status(&sandbox)), info, ..Default::default() })
}

pub(in crate::cri) async fn list_pod_sandbox(
    daemon: &Daemon,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Error> {
    Ok(ListPodSandboxResponse { items: list(daemon, request.filter) })
}

pub(in crate::cri) async fn stream_pod_sandboxes(
    daemon: &Daemon,
    request: StreamPodSandboxesRequest,
) -> Result<Items<StreamPodSandboxesResponse>, Error> {
    let sandboxes = list(daemon, request.filter);
    Ok(stream_list(sandboxes, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}

fn list(daemon: &Daemon, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
    let filter = filter.unwrap_or_default();
    let wanted = |sandbox: &Sandbox| {
        let state = filter.state.as_ref().is_none_or(|wanted| wanted.state == state(sandbox));
        state && matches(&filter.id, &filter.label_selector, sandbox)
    };
    let sandboxes = daemon.sandboxes.all();
    sandboxes.iter().filter(|sandbox| wanted(sandbox)).map(|sandbox| item(sandbox)).collect()
}

/// Whether the sandbox has this prefix of an id and these labels; empty ones fit all.
pub(in crate::cri) fn matches(
    id: &str,
    labels: &BTreeMap<String, String>,
    sandbox: &Sandbox,
) -> bool {
    sandbox.id.as_str().starts_with(id)
        && labels.iter().all(|(key, value)| sandbox.config.labels.get(key) == Some(value))
}

fn item(sandbox: &Sandbox) -> PodSandbox {
    PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(metadata(sandbox)),
        state: state(sandbox),
        created_at: sandbox.created_at_ns,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.config.runtime_handler.clone(),
    }
}

fn status(sandbox: &Sandbox) -> PodSandboxStatus {
    let options = convert::namespaces_asked(&sandbox.config.security.namespaces);
    PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(metadata(sandbox)),
        state: state(sandbox),
        created_at: sandbox.created_at_ns,
        network: network(sandbox),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(options) }),
        }),
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.config.runtime_handler.clone(),
    }
}

/// On the host's network there is none: the kubelet knows the node's addresses itself.
fn network(sandbox: &Sandbox) -> Option<PodSandboxNetworkStatus> {
    if sandbox.is_on_host_network() {
        return None;
    }
    let mut ips = sandbox.ips().into_iter();
    let ip = ips.next().unwrap_or_default();
    Some(PodSandboxNetworkStatus { ip, additional_ips: ips.map(|ip| PodIp { ip }).collect() })
}

pub(in crate::cri) fn metadata(sandbox: &Sandbox) -> PodSandboxMetadata {
    PodSandboxMetadata {
        name: sandbox.config.name.clone(),
        uid: sandbox.config.uid.clone(),
        namespace: sandbox.config.namespace.clone(),
        attempt: sandbox.config.attempt,
    }
}

fn state(sandbox: &Sandbox) -> i32 {
    match sandbox.state() {
        State::Ready => PodSandboxState::SandboxReady.into(),
        State::NotReady => PodSandboxState::SandboxNotready.into(),
    }
}

/// The whole record, for people (`crictl inspectp`).
fn verbose(sandbox: &Sandbox) -> Result<BTreeMap<String, String>, Error> {
    let record = sandbox.record.get().clone();
    let text = serde_json::to_string(&record)
        .map_err(|error| Error::internal(format!("describe sandbox {}", sandbox.id), error))?;
    Ok(BTreeMap::from([("info".to_owned(), text)]))
}
