//! ContainerStatus and the lists.

use std::collections::BTreeMap;

use cria_proto as proto;
use cria_proto::{
    Container as Item, ContainerFilter, ContainerResources, ContainerState, ContainerStatus,
    ContainerStatusRequest, ContainerStatusResponse, ContainerUser, ImageSpec, LinuxContainerUser,
    ListContainersRequest, ListContainersResponse, StreamContainersRequest,
    StreamContainersResponse,
};

use super::super::{Items, convert, stream_list};
use super::metadata;
use crate::container::config::Mount;
use crate::container::state::{Exited, State};
use crate::container::{Container, Record};
use crate::daemon::Daemon;
use crate::error::Error;

pub(in crate::cri) async fn container_status(
    daemon: &Daemon,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Error> {
    let container = super::find(daemon, &request.container_id)?;
    let record = container.record.get().clone();
    let info = match request.verbose {
        true => verbose(daemon, &record)?,
        false => BTreeMap::new(),
    };
    Ok(ContainerStatusResponse { status: Some(status(&container, record)), info })
}

pub(in crate::cri) async fn list_containers(
    daemon: &Daemon,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Error> {
    Ok(ListContainersResponse { containers: list(daemon, request.filter) })
}

pub(in crate::cri) async fn stream_containers(
    daemon: &Daemon,
    request: StreamContainersRequest,
) -> Result<Items<StreamContainersResponse>, Error> {
    let containers = list(daemon, request.filter);
    Ok(stream_list(containers, |containers| StreamContainersResponse { containers }))
}

fn list(daemon: &Daemon, filter: Option<ContainerFilter>) -> Vec<Item> {
    let filter = filter.unwrap_or_default();
    let containers = daemon.containers.all();
    let wanted = containers.iter().filter(|container| {
        container.id.as_str().starts_with(&filter.id)
            && container.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
            && has_labels(container, &filter.label_selector)
    });
    let items = wanted.map(|container| item(container));
    let in_state = |item: &Item| filter.state.as_ref().is_none_or(|it| it.state == item.state);
    items.filter(in_state).collect()
}

pub(in crate::cri) fn has_labels(
    container: &Container,
    selector: &BTreeMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| container.config.labels.get(key) == Some(value))
}

fn item(container: &Container) -> Item {
    let record = container.record.get();
    Item {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox.to_string(),
        metadata: Some(metadata(container)),
        image: Some(image(&record)),
        image_ref: record.image.reference.clone(),
        state: state(&record.state).into(),
        created_at: container.created_at_ns,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

fn status(container: &Container, record: Record) -> ContainerStatus {
    let Times { started_at, finished_at, exit_code, reason, message } = Times::of(&record.state);
    let config = &record.config;
    let user = record.user.as_ref().map(|user| LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: user.additional_gids.iter().copied().map(i64::from).collect(),
    });
    let log_path = record.log_path.as_ref().map(|path| path.display().to_string());
    ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata(container)),
        state: state(&record.state).into(),
        created_at: container.created_at_ns,
        started_at,
        finished_at,
        exit_code,
        image: Some(image(&record)),
        image_ref: record.image.reference.clone(),
        reason,
        message,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.iter().map(|asked| mount(asked, &record)).collect(),
        log_path: log_path.unwrap_or_default(),
        resources: Some(ContainerResources {
            linux: Some(convert::resources_held(&record.resources)),
            windows: None,
        }),
        image_id: record.image.id.clone(),
        user: user.map(|linux| ContainerUser { linux: Some(linux) }),
        stop_signal: convert::signal(record.stop_signal).into(),
    }
}

/// As it was asked for, an image with what it is now: the kubelet keeps it by the one, and tells
/// people the other.
fn mount(asked: &Mount, record: &Record) -> proto::Mount {
    let mut mount = convert::mount_asked(asked);
    let volume = record.image_volumes.get(&asked.container_path);
    if let (Some(image), Some(volume)) = (&mut mount.image, volume) {
        image.image_ref.clone_from(&volume.reference);
    }
    mount
}

fn image(record: &Record) -> ImageSpec {
    let asked = &record.config.image;
    ImageSpec {
        image: record.image.name.clone(),
        annotations: asked.annotations.clone(),
        user_specified_image: asked.user_specified_image.clone(),
        runtime_handler: asked.runtime_handler.clone(),
        image_ref: asked.image_ref.clone(),
    }
}

fn state(state: &State) -> ContainerState {
    match state {
        State::Created { .. } => ContainerState::ContainerCreated,
        State::Running { .. } => ContainerState::ContainerRunning,
        State::Exited(_) => ContainerState::ContainerExited,
    }
}

/// What a status says of a container's life; zero where it has not come to that.
#[derive(Default)]
struct Times {
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    reason: String,
    message: String,
}

impl Times {
    fn of(state: &State) -> Self {
        match state {
            State::Created { .. } => Self::default(),
            State::Running { started_at_ns, .. } => {
                Self { started_at: *started_at_ns, ..Self::default() }
            }
            State::Exited(Exited { code, reason, message, started_at_ns, finished_at_ns }) => {
                Self {
                    started_at: *started_at_ns,
                    finished_at: *finished_at_ns,
                    exit_code: *code,
                    reason: reason.as_str().to_owned(),
                    message: message.clone(),
                }
            }
        }
    }
}

/// The record, the process and the OCI runtime's spec, for people (`crictl inspect`).
fn verbose(daemon: &Daemon, record: &Record) -> Result<BTreeMap<String, String>, Error> {
    let failed =
        |error: serde_json::Error| Error::internal(format!("describe {}", record.id), error);
    let config = daemon.node.paths.container_run(&record.id).join("config.json");
    // Gone with the boot in which the container ran.
    let spec: Option<serde_json::Value> =
        fs_err::read(config).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let pid = match record.state {
        State::Running { init_pid, .. } => init_pid,
        State::Created { .. } | State::Exited(_) => 0,
    };
    let info = serde_json::json!({
        "sandboxID": record.sandbox,
        "pid": pid,
        "privileged": record.config.security.privileged,
        "runtimeSpec": spec,
        "record": record,
    });
    let text = serde_json::to_string(&info).map_err(failed)?;
    Ok(BTreeMap::from([("info".to_owned(), text)]))
}
