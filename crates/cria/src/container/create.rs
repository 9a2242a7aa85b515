//! CreateContainer: image, root file system, spec, monitor; undone by `discard` if any of it fails.

use std::collections::BTreeMap;
use std::iter;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cria_images::{Image, Lease};
use cria_monitor::protocol::{Create, OciRuntime, Request};
use oci_spec::image::ImageConfiguration;
use tokio::task::spawn_blocking;

use super::config::ContainerConfig;
use super::image_volume::ImageVolume;
use super::rootfs::Rootfs;
use super::spec::{self, PidNamespace, SpecError, SpecNamespaces, SpecRequest};
use super::state::State;
use super::{Container, ImageUse, Record, discard};
use crate::cgroup::scope::{self, Stop};
use crate::cgroup::{CgroupPath, Driver};
use crate::checkpoint::{self, Checkpoint};
use crate::clock;
use crate::error::Error;
use crate::id::ContainerId;
use crate::monitor::Monitor;
use crate::node::Node;
use crate::process;
use crate::retry;
use crate::sandbox::Sandbox;
use crate::sandbox::config::NamespaceMode;
use crate::sandbox::namespaces::{self, Kind};
use crate::signal;

/// What a monitor may take beyond the OCI runtime's own deadline.
const MONITOR_DEADLINE: Duration = Duration::from_secs(30);

/// What is to be created, checked and resolved.
pub(crate) struct Creation {
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) image: Arc<Image>,
    /// The image's: an artifact has none, and cannot be run.
    pub(crate) image_config: Arc<ImageConfiguration>,
    /// Taken when the image was found, so that nobody removes its layers meanwhile.
    pub(crate) lease: Arc<Lease>,
    pub(crate) image_volumes: Vec<ImageVolume>,
    /// For the modes Pod and Target.
    pub(crate) pid_namespace: Option<PidNamespaceFile>,
}

impl Creation {
    /// Of all that it mounts.
    fn leases(&self) -> Vec<Arc<Lease>> {
        let of_volumes = self.image_volumes.iter().map(|volume| &volume.lease);
        iter::once(&self.lease).chain(of_volumes).cloned().collect()
    }
}

/// A PID namespace to join.
pub(crate) enum PidNamespaceFile {
    Pinned(PathBuf),
    /// The target's, held open: the descriptor is its name.
    Held(OwnedFd),
}

impl PidNamespaceFile {
    fn path(&self) -> PathBuf {
        match self {
            Self::Pinned(path) => path.clone(),
            Self::Held(namespace) => {
                format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()).into()
            }
        }
    }
}

/// Creates the container; a failure leaves nothing. A command that the OCI runtime refuses is no
/// failure: the container is kept, and StartContainer will say why.
pub(crate) async fn create(node: Arc<Node>, creation: Creation) -> Result<Arc<Container>, Error> {
    let id = ContainerId::random().map_err(|error| Error::io("draw a container id", error))?;
    let cgroup = creation.sandbox.cgroup.container(&id).path;
    let leases = creation.leases();
    let made = make(&node, &id, creation).await;
    if made.is_err() {
        undo(node, id, cgroup, leases).await;
    }
    made
}

/// Its monitor may be there already, and layers are in use until nothing mounts them.
async fn undo(node: Arc<Node>, id: ContainerId, cgroup: CgroupPath, leases: Vec<Arc<Lease>>) {
    retry::until_done("undo a failed creation", id.to_string(), move || {
        let (node, id, cgroup) = (Arc::clone(&node), id.clone(), cgroup.clone());
        let in_use = leases.clone();
        async move {
            let undone = discard(&node, &id, Some(cgroup)).await;
            drop(in_use);
            undone
        }
    })
    .await;
}

async fn make(
    node: &Arc<Node>,
    id: &ContainerId,
    creation: Creation,
) -> Result<Arc<Container>, Error> {
    let record = new_record(node, id, &creation);
    let record = Checkpoint::create(node.paths.container_record(id), record)
        .await
        .map_err(|error| Error::io(format!("write the record of container {id}"), error))?;

    let bundle = prepare_bundle(node, id, creation, &record).await?;
    let container = Arc::new(Container::of(node, record));
    container.held().leases = bundle.leases;
    // The spec may name it by our descriptor: held until the process is made.
    let _pid_namespace = bundle.pid_namespace;
    container.create_process(node).await?;
    Ok(container)
}

fn new_record(node: &Node, id: &ContainerId, creation: &Creation) -> Record {
    let Creation { sandbox, config, image, image_config, .. } = creation;
    Record {
        id: id.clone(),
        sandbox: sandbox.id.clone(),
        config: Arc::clone(config),
        image: image_use(config, image, &creation.lease),
        image_volumes: creation.image_volumes.iter().map(volume_use).collect(),
        created_at_ns: clock::now_ns(),
        boot_id: node.boot_id.clone(),
        log_path: sandbox.log_path(&config.log_path),
        complete: false,
        removing: false,
        user: None,
        stop_signal: stop_signal(config, image_config),
        init_pid: 0,
        init_start_time: 0,
        cgroup: sandbox.cgroup.container(id).path,
        own_pid_namespace: config.security.namespaces.pid == NamespaceMode::Container,
        state: State::Created { broken: None },
        resources: config.resources.clone(),
        stop_deadline_ns: None,
        unknown: serde_json::Map::new(),
    }
}

fn image_use(config: &ContainerConfig, image: &Image, lease: &Lease) -> ImageUse {
    let asked = &config.image;
    let name = [&asked.user_specified_image]
        .into_iter()
        .chain(image.tags.first())
        .chain([&asked.image])
        .find(|name| !name.is_empty());
    ImageUse {
        id: image.id.to_string(),
        name: name.cloned().unwrap_or_default(),
        reference: asked.reference_among(&image.digests),
        layers: lease.layers().iter().map(ToString::to_string).collect(),
    }
}

fn volume_use(volume: &ImageVolume) -> (String, ImageUse) {
    let image = ImageUse {
        id: volume.lease.image().to_string(),
        name: volume.name.clone(),
        reference: volume.reference.clone(),
        layers: volume.lease.layers().iter().map(ToString::to_string).collect(),
    };
    (volume.container_path.clone(), image)
}

/// As asked, else the image's; one that means nothing is SIGTERM, as everywhere.
fn stop_signal(config: &ContainerConfig, image: &ImageConfiguration) -> i32 {
    let of_image = image.config().as_ref().and_then(|config| config.stop_signal().as_deref());
    config.stop_signal.or_else(|| signal::number(of_image?)).unwrap_or(libc::SIGTERM)
}

/// Root file system and `config.json`.
async fn prepare_bundle(
    node: &Arc<Node>,
    id: &ContainerId,
    creation: Creation,
    record: &Checkpoint<Record>,
) -> Result<Prepared, Error> {
    let bundle = Bundle { node: Arc::clone(node), id: id.clone(), creation };
    let (prepared, user) = spawn_blocking(move || bundle.prepare())
        .await
        .map_err(|panic| Error::internal("prepare a bundle", panic))??;
    record
        .change(|record| record.user = Some(user))
        .await
        .map_err(|error| Error::io(format!("write the record of container {id}"), error))?;
    Ok(prepared)
}

/// What the bundle's files rely on.
struct Prepared {
    leases: Vec<Arc<Lease>>,
    pid_namespace: Option<PidNamespaceFile>,
}

struct Bundle {
    node: Arc<Node>,
    id: ContainerId,
    creation: Creation,
}

impl Bundle {
    /// Blocking.
    fn prepare(self) -> Result<(Prepared, spec::user::User), Error> {
        let bundle = self.node.paths.container_run(&self.id);
        let failed = |action: &'static str| {
            let id = self.id.clone();
            move |error| Error::io(format!("{action} of container {id}"), error)
        };
        fs_err::create_dir_all(&bundle).map_err(failed("make the bundle"))?;
        let rootfs = Rootfs {
            lower: &self.creation.lease.lower_directories(),
            directory: &self.node.paths.container(&self.id),
            target: &self.node.paths.rootfs(&self.id),
        };
        rootfs.mount().map_err(failed("mount the root file system"))?;
        let volumes = self.mount_image_volumes()?;
        let (spec, user) = self.spec(&volumes)?;
        let text =
            serde_json::to_vec(&spec).map_err(|error| failed("write the spec")(error.into()))?;
        checkpoint::replace(&bundle.join("config.json"), &text)
            .map_err(failed("write the spec"))?;
        let leases = self.creation.leases();
        Ok((Prepared { leases, pid_namespace: self.creation.pid_namespace }, user))
    }

    /// Where each was mounted, by its path in the container.
    fn mount_image_volumes(&self) -> Result<BTreeMap<String, PathBuf>, Error> {
        let directory = self.node.paths.image_volumes(&self.id);
        let numbered = self.creation.image_volumes.iter().enumerate();
        numbered
            .map(|(number, volume)| {
                let target = directory.join(number.to_string());
                let mounted = volume.mount(&target);
                mounted.map_err(|error| Error::image_volume(&volume.name, error))?;
                Ok((volume.container_path.clone(), target))
            })
            .collect()
    }

    fn spec(
        &self,
        image_volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<(oci_spec::runtime::Spec, spec::user::User), Error> {
        let (node, Creation { sandbox, config, image_config, .. }) = (&*self.node, &self.creation);
        let settings = node.settings.get();
        let rootfs = node.paths.rootfs(&self.id);
        let user = spec::user::look_up(&rootfs, &config.security, image_user(image_config))?;
        let volumes = spec::volumes::look_up(&config.mounts, image_volumes, &settings.facts)?;
        let devices = match config.security.privileged {
            true => spec::devices::of_host("/dev".as_ref())?,
            false => spec::devices::look_up(&config.devices)?,
        };
        let cgroups_path = sandbox.cgroup.container(&self.id).oci;
        let stop = Stop::new(stop_signal(config, image_config), &config.annotations);
        let scope = match sandbox.cgroup.driver() {
            Driver::Systemd => scope::annotations(stop, node.unit.as_deref()),
            Driver::Cgroupfs => BTreeMap::new(),
        };
        let spec = spec::build(SpecRequest {
            sandbox_id: &sandbox.id,
            sandbox: &sandbox.config,
            hostname: &namespaces::hostname(&sandbox.config, &sandbox.id),
            config,
            image: image_config,
            user: &user,
            rootfs: &rootfs,
            namespaces: &self.namespaces(),
            files: &sandbox.files(&node.paths),
            volumes: &volumes,
            devices: &devices,
            cgroups_path: &cgroups_path,
            scope: &scope,
            seccomp: self.seccomp()?,
            node: &settings.facts,
        })?;
        Ok((spec, user))
    }

    fn namespaces(&self) -> SpecNamespaces {
        let Creation { sandbox, config, pid_namespace, .. } = &self.creation;
        let own = namespaces::own(&sandbox.config);
        let pin = |kind: Kind| own.contains(&kind).then(|| kind.pin(&self.node.paths, &sandbox.id));
        let pid = match (config.security.namespaces.pid, pid_namespace) {
            (NamespaceMode::Node, _) => PidNamespace::Host,
            (NamespaceMode::Pod | NamespaceMode::Target, Some(file)) => {
                PidNamespace::Join(file.path())
            }
            (NamespaceMode::Pod | NamespaceMode::Target | NamespaceMode::Container, _) => {
                PidNamespace::Own
            }
        };
        SpecNamespaces { network: pin(Kind::Net), ipc: pin(Kind::Ipc), uts: pin(Kind::Uts), pid }
    }

    fn seccomp(&self) -> Result<Option<oci_spec::runtime::LinuxSeccomp>, Error> {
        let security = &self.creation.config.security;
        if security.privileged {
            // Privileged means unconfined, whatever the profile says.
            return Ok(None);
        }
        let capabilities = spec::capabilities::of(security, &self.node.settings.get().facts)?;
        self.node.seccomp(&security.seccomp, &capabilities.held)
    }
}

fn image_user(config: &ImageConfiguration) -> &str {
    config.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default()
}

/// What a monitor is told of its container.
pub(super) fn order(node: &Node, record: &Record) -> Result<Create, SpecError> {
    let run_dir = node.paths.container_run(&record.id);
    let settings = node.settings.get();
    Ok(Create {
        id: record.id.to_string(),
        bundle: run_dir.clone(),
        run_dir,
        runtime: OciRuntime {
            path: node.oci.path().to_owned(),
            arguments: node.oci.arguments(),
            deadline: node.oci.deadline(),
        },
        log: record.log_path.clone(),
        terminal: record.config.tty,
        stdin: record.config.stdin,
        stdin_once: record.config.stdin_once,
        cgroup: node.cgroups.for_monitor(&record.cgroup),
        own_pid_namespace: record.own_pid_namespace,
        oom_score_adj: spec::resources::oom_score_adj(&record.resources, &settings.facts)?,
        join_cgroups: node.monitor_cgroups.clone(),
    })
}

impl Container {
    /// The running container's PID namespace. Opened by pid, and then held against the pidfd: if
    /// that has not ended, the pid was no other process's meanwhile.
    pub(crate) fn pid_namespace(&self) -> Result<PidNamespaceFile, Error> {
        let failed = |error| Error::io(format!("join the PID namespace of {}", self.id), error);
        let pid = self.record.get().init_pid;
        let namespace = fs_err::File::open(format!("/proc/{pid}/ns/pid")).map_err(failed)?;
        let held = self.held();
        let alive = held.descriptors.init.as_ref().is_some_and(process::is_alive);
        match alive {
            true => Ok(PidNamespaceFile::Held(namespace.into_parts().0.into())),
            false => Err(self.wrong_state("exited")),
        }
    }

    /// Starts the monitor and has it run the OCI runtime's `create`.
    async fn create_process(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Error> {
        let failed = |error| Error::internal(format!("create container {}", self.id), error);
        let order = order(node, &self.record.get())?;
        let started = Monitor::start(&node.spawner, self.id.as_str()).await;
        let (monitor, news) = started.map_err(failed)?;
        let deadline = node.oci.deadline() + MONITOR_DEADLINE;
        let request = Request::Create { container: Box::new(order), program: node.oci.program() };
        let state = match monitor.ask_state(request, deadline).await {
            Ok(state) => state,
            Err(error) => {
                let refusal = error.refusal().map(str::to_owned);
                let broken = refusal.ok_or_else(|| failed(error))?;
                return self
                    .complete(|record| record.state = State::Created { broken: Some(broken) })
                    .await;
            }
        };
        let (pid, start_time) = (state.init_pid, process::start_time(state.init_pid).unwrap_or(0));
        self.held().descriptors = state.descriptors;
        self.attend(node, Arc::new(monitor), news);
        self.complete(|record| {
            record.init_pid = pid;
            record.init_start_time = start_time;
        })
        .await
    }

    async fn complete(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let completed = self.record.change(|record| {
            change(record);
            record.complete = true;
        });
        completed
            .await
            .map_err(|error| Error::io(format!("write the record of container {}", self.id), error))
    }
}
