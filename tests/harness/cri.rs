//! A CRI client that blocks, and short ways to make what its requests carry.
//!
//! Each RPC is a method of its own name that takes the generated request. [`Pod`] and
//! [`Container`] are the everyday path; they panic where a test has nothing to say about failure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cria_proto::image_service_client::ImageServiceClient;
use cria_proto::runtime_service_client::RuntimeServiceClient;
use cria_proto::*;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_stream::StreamExt as _;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::blocking::{block_on, runtime};
use crate::wait::until;

/// As the kubelet: larger answers are refused.
const LARGEST_MESSAGE: usize = 16 * 1024 * 1024;

/// No call of a test may hang for ever.
const CALL: Duration = Duration::from_secs(240);

/// An answer, or the status that was given instead.
pub type Answer<T> = Result<T, Status>;

/// A client of one socket. Clones share the connection, which is made again when it breaks.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
}

impl Cri {
    /// Does not connect yet: the first call does.
    pub fn connect(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let _inside = runtime().enter();
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL);
        let channel = endpoint.connect_with_connector_lazy(connector);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(LARGEST_MESSAGE),
            image: ImageServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE),
        }
    }

    /// The generated client, for calls in the background or with deadlines of their own.
    pub fn runtime_service(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// The generated client of the image service.
    pub fn image_service(&self) -> ImageServiceClient<Channel> {
        self.image.clone()
    }

    /// Pulls as the kubelet does without credentials; the answer is the image's id.
    #[track_caller]
    pub fn pull(&self, image: &str) -> String {
        let request = PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
        let answer = self.pull_image(request);
        answer.unwrap_or_else(|status| panic!("pull {image}: {status}")).image_ref
    }

    /// Runs a pod with the default runtime handler.
    #[track_caller]
    pub fn run_pod(&self, config: PodSandboxConfig) -> Pod {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let answer = self.run_pod_sandbox(request);
        let id = answer.unwrap_or_else(|status| panic!("run pod: {status}")).pod_sandbox_id;
        Pod { cri: self.clone(), id, config }
    }

    /// Stops and removes every pod there is; failures are returned, and the next pod is tried.
    pub fn remove_all_pods(&self) -> Answer<Vec<Status>> {
        let pods = self.list_pod_sandbox(ListPodSandboxRequest::default())?.items;
        let mut failures = vec![];
        for PodSandbox { id: pod_sandbox_id, .. } in pods {
            let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            failures.extend(self.stop_pod_sandbox(stop).err());
            let remove = RemovePodSandboxRequest { pod_sandbox_id };
            failures.extend(self.remove_pod_sandbox(remove).err());
        }
        Ok(failures)
    }
}

macro_rules! blocking {
    ($client:ident: $($rpc:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            $(pub fn $rpc(&self, request: $request) -> Answer<$response> {
                block_on(self.$client.clone().$rpc(request)).map(tonic::Response::into_inner)
            })*
        }
    };
}

macro_rules! collecting {
    ($client:ident: $($rpc:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            /// All messages of the stream, up to its end.
            $(pub fn $rpc(&self, request: $request) -> Answer<Vec<$response>> {
                block_on(async {
                    let stream = self.$client.clone().$rpc(request).await?.into_inner();
                    stream.collect::<Result<Vec<_>, _>>().await
                })
            })*
        }
    };
}

blocking! { runtime:
    version(VersionRequest) -> VersionResponse;
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    start_container(StartContainerRequest) -> StartContainerResponse;
    stop_container(StopContainerRequest) -> StopContainerResponse;
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    list_containers(ListContainersRequest) -> ListContainersResponse;
    container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    exec(ExecRequest) -> ExecResponse;
    attach(AttachRequest) -> AttachResponse;
    port_forward(PortForwardRequest) -> PortForwardResponse;
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    status(StatusRequest) -> StatusResponse;
    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
    restore_pod(RestorePodRequest) -> RestorePodResponse;
    list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
}

collecting! { runtime:
    stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse;
    stream_containers(StreamContainersRequest) -> StreamContainersResponse;
    stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse;
    stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse;
    stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse;
    get_container_events(GetEventsRequest) -> ContainerEventResponse;
}

blocking! { image:
    list_images(ListImagesRequest) -> ListImagesResponse;
    image_status(ImageStatusRequest) -> ImageStatusResponse;
    pull_image(PullImageRequest) -> PullImageResponse;
    remove_image(RemoveImageRequest) -> RemoveImageResponse;
    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

collecting! { image:
    stream_images(StreamImagesRequest) -> StreamImagesResponse;
}

/// A pod that runs, or ran. Dropping it does nothing: the node cleans up.
#[derive(Clone)]
pub struct Pod {
    pub cri: Cri,
    pub id: String,
    pub config: PodSandboxConfig,
}

/// A container of a pod.
#[derive(Clone)]
pub struct Container {
    pub cri: Cri,
    pub id: String,
}

impl Pod {
    /// What CreateContainer answers for this pod.
    pub fn create(&self, config: ContainerConfig) -> Answer<Container> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.cri.create_container(request)?.container_id;
        Ok(Container { cri: self.cri.clone(), id })
    }

    /// Creates and starts.
    #[track_caller]
    pub fn run(&self, config: ContainerConfig) -> Container {
        let created = self.create(config);
        let container = created.unwrap_or_else(|status| panic!("create container: {status}"));
        container.start().unwrap_or_else(|status| panic!("start container: {status}"));
        container
    }

    #[track_caller]
    pub fn status(&self) -> PodSandboxStatus {
        let request =
            PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        let answer = self.cri.pod_sandbox_status(request);
        let answer = answer.unwrap_or_else(|status| panic!("pod status: {status}"));
        answer.status.expect("a status response carries a status")
    }

    /// The pod's address on the pod network.
    #[track_caller]
    pub fn ip(&self) -> String {
        self.status().network.expect("a pod on the pod network has an address").ip
    }

    pub fn stop(&self) -> Answer<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.cri.stop_pod_sandbox(request).map(drop)
    }

    pub fn remove(&self) -> Answer<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.cri.remove_pod_sandbox(request).map(drop)
    }
}

impl Container {
    pub fn start(&self) -> Answer<()> {
        self.cri.start_container(StartContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    /// `grace` in whole seconds, as the CRI carries it.
    pub fn stop(&self, grace: Duration) -> Answer<()> {
        let timeout = i64::try_from(grace.as_secs()).expect("a test's grace is short");
        let request = StopContainerRequest { container_id: self.id.clone(), timeout };
        self.cri.stop_container(request).map(drop)
    }

    pub fn remove(&self) -> Answer<()> {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.cri.remove_container(request).map(drop)
    }

    #[track_caller]
    pub fn status(&self) -> ContainerStatus {
        let request =
            ContainerStatusRequest { container_id: self.id.clone(), ..Default::default() };
        let answer = self.cri.container_status(request);
        let answer = answer.unwrap_or_else(|status| panic!("container status: {status}"));
        answer.status.expect("a status response carries a status")
    }

    /// Runs `command` inside, for at most a minute.
    pub fn exec(&self, command: &[&str]) -> Answer<Output> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: 60,
        };
        self.cri.exec_sync(request).map(|response| Output {
            stdout: String::from_utf8_lossy(&response.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&response.stderr).into_owned(),
            exit_code: response.exit_code,
        })
    }

    /// Waits until the container has exited.
    #[track_caller]
    pub fn await_exit(&self, limit: Duration) -> ContainerStatus {
        until(&format!("container {} exits", self.id), limit, || {
            let status = self.status();
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
    }

    pub fn log_file(&self) -> PathBuf {
        self.status().log_path.into()
    }

    /// The log file as it is now, without interpretation.
    #[track_caller]
    pub fn log(&self) -> String {
        let bytes = fs_err::read(self.log_file()).expect("a started container has a log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the container wrote to `stream` (stdout or stderr), put together from its log.
    #[track_caller]
    pub fn written(&self, stream: &str) -> String {
        let mut text = String::new();
        // Not `lines`, which would take a carriage return away that the container wrote.
        for line in self.log().split_terminator('\n') {
            let mut fields = line.splitn(4, ' ').skip(1);
            let (name, tag) = (fields.next(), fields.next());
            if name != Some(stream) {
                continue;
            }
            text += fields.next().unwrap_or("");
            if tag == Some("F") {
                text.push('\n');
            }
        }
        text
    }

    /// Waits until the log holds `text`.
    #[track_caller]
    pub fn await_log(&self, text: &str, limit: Duration) {
        until(&format!("{text:?} in the log"), limit, || self.log().contains(text).then_some(()));
    }
}

/// What a command run by ExecSync left.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i32,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}, {:?}, {:?}", self.exit_code, self.stdout, self.stderr)
    }
}

/// A pod as the kubelet would ask for it: on the pod network, a PID namespace per container. Its
/// uid is new with each call. Logs and cgroup parent are the node's to give: [`crate::Node::pod`].
pub fn pod_config(name: &str) -> PodSandboxConfig {
    static PODS: AtomicU64 = AtomicU64::new(1);
    let uid = format!("{}-{}", std::process::id(), PODS.fetch_add(1, Ordering::Relaxed));
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid,
            namespace: "tests".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(NamespaceMode::Pod)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same pod on the host's network.
pub fn on_host_network(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options = Some(namespaces(NamespaceMode::Node));
    config.hostname.clear();
    config
}

/// The same pod with one PID namespace for all its containers, and an init in it.
pub fn with_shared_processes(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().set_pid(NamespaceMode::Pod);
    config
}

/// The same container in its pod's PID namespace.
pub fn among_its_pods_processes(mut config: ContainerConfig) -> ContainerConfig {
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().set_pid(NamespaceMode::Pod);
    config
}

/// A container that runs `command`, or the image's own if that is empty. It logs to `NAME.log`.
pub fn container_config(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image_spec(image)),
        command: command.iter().map(ToString::to_string).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(NamespaceMode::Pod)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}
