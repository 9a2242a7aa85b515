//! The two services: one line per RPC, through `call`, which spans, times, logs and maps errors.

use std::sync::Arc;
use std::time::Instant;

use cria_proto::image_service_server::{ImageService, ImageServiceServer};
use cria_proto::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use cria_proto::{
    AttachRequest, AttachResponse, ContainerStatsRequest, ContainerStatsResponse,
    ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest,
    CreateContainerResponse, ExecRequest, ExecResponse, ExecSyncRequest, ExecSyncResponse,
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse,
    ListContainerStatsRequest, ListContainerStatsResponse, ListContainersRequest,
    ListContainersResponse, ListImagesRequest, ListImagesResponse, ListPodSandboxRequest,
    ListPodSandboxResponse, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse,
    PodSandboxStatsRequest, PodSandboxStatsResponse, PodSandboxStatusRequest,
    PodSandboxStatusResponse, PortForwardRequest, PortForwardResponse, PullImageRequest,
    PullImageResponse, RemoveContainerRequest, RemoveContainerResponse, RemoveImageRequest,
    RemoveImageResponse, RemovePodSandboxRequest, RemovePodSandboxResponse,
    ReopenContainerLogRequest, ReopenContainerLogResponse, RunPodSandboxRequest,
    RunPodSandboxResponse, RuntimeConfigRequest, RuntimeConfigResponse, StartContainerRequest,
    StartContainerResponse, StatusRequest, StatusResponse, StopContainerRequest,
    StopContainerResponse, StopPodSandboxRequest, StopPodSandboxResponse,
    StreamContainerStatsRequest, StreamContainerStatsResponse, StreamContainersRequest,
    StreamContainersResponse, StreamImagesRequest, StreamImagesResponse,
    StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse, StreamPodSandboxesRequest,
    StreamPodSandboxesResponse, UpdateContainerResourcesRequest, UpdateContainerResourcesResponse,
    UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
    UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse, VersionRequest, VersionResponse,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tracing::{Instrument, debug, field, info, info_span, warn};

use super::{Items, container, image, sandbox, stats, status, streaming};
use crate::daemon::Daemon;
use crate::error::{Error, chain};

/// What the kubelet and crictl allow for, too.
const MESSAGE_BYTES: usize = 16 << 20;

type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone)]
struct Service {
    daemon: Arc<Daemon>,
}

/// Both services, as routes of gRPC.
pub(super) fn routes(daemon: Arc<Daemon>) -> Routes {
    let service = Service { daemon };
    let runtime = RuntimeServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let images = ImageServiceServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    Routes::new(runtime).add_service(images)
}

/// Whether an RPC changes something: those are logged where operators look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Change,
    Query,
}

/// Runs a handler; `sandbox`, `container`, `pod` and `image` are filled in by whoever knows them.
async fn call<T>(
    kind: Kind,
    rpc: &'static str,
    handler: impl Future<Output = Result<T, Error>>,
) -> Answer<T> {
    let span = info_span!(
        "rpc",
        rpc,
        pod = field::Empty,
        sandbox = field::Empty,
        container = field::Empty,
        image = field::Empty
    );
    let began = Instant::now();
    let result = handler.instrument(span.clone()).await;
    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let _in_span = span.enter();
    match result {
        Ok(answer) => {
            match kind {
                Kind::Change => info!(elapsed_ms, "done"),
                Kind::Query => debug!(elapsed_ms, "answered"),
            }
            Ok(Response::new(answer))
        }
        Err(error) => {
            match kind {
                Kind::Change => warn!(elapsed_ms, error = chain(&error), "failed"),
                // The kubelet asks for what may be gone as a matter of course.
                Kind::Query => debug!(elapsed_ms, error = chain(&error), "refused"),
            }
            Err(Status::from(&error))
        }
    }
}

/// The RPCs that are not here answer UNIMPLEMENTED: events, metrics and checkpoints.
#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, request: Request<VersionRequest>) -> Answer<VersionResponse> {
        let answer = status::version(&self.daemon, request.into_inner());
        call(Kind::Query, "Version", answer).await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        let answer = sandbox::run_pod_sandbox(&self.daemon, request.into_inner());
        call(Kind::Change, "RunPodSandbox", answer).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let answer = sandbox::stop_pod_sandbox(&self.daemon, request.into_inner());
        call(Kind::Change, "StopPodSandbox", answer).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let answer = sandbox::remove_pod_sandbox(&self.daemon, request.into_inner());
        call(Kind::Change, "RemovePodSandbox", answer).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let answer = sandbox::pod_sandbox_status(&self.daemon, request.into_inner());
        call(Kind::Query, "PodSandboxStatus", answer).await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let answer = sandbox::list_pod_sandbox(&self.daemon, request.into_inner());
        call(Kind::Query, "ListPodSandbox", answer).await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Items<StreamPodSandboxesResponse>> {
        let answer = sandbox::stream_pod_sandboxes(&self.daemon, request.into_inner());
        call(Kind::Query, "StreamPodSandboxes", answer).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let answer = sandbox::update_pod_sandbox_resources(&self.daemon, request.into_inner());
        call(Kind::Change, "UpdatePodSandboxResources", answer).await
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let answer = container::create_container(&self.daemon, request.into_inner());
        call(Kind::Change, "CreateContainer", answer).await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let answer = container::start_container(&self.daemon, request.into_inner());
        call(Kind::Change, "StartContainer", answer).await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        let answer = container::stop_container(&self.daemon, request.into_inner());
        call(Kind::Change, "StopContainer", answer).await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let answer = container::remove_container(&self.daemon, request.into_inner());
        call(Kind::Change, "RemoveContainer", answer).await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let answer = container::list_containers(&self.daemon, request.into_inner());
        call(Kind::Query, "ListContainers", answer).await
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Items<StreamContainersResponse>> {
        let answer = container::stream_containers(&self.daemon, request.into_inner());
        call(Kind::Query, "StreamContainers", answer).await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let answer = container::container_status(&self.daemon, request.into_inner());
        call(Kind::Query, "ContainerStatus", answer).await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let answer = container::update_container_resources(&self.daemon, request.into_inner());
        call(Kind::Change, "UpdateContainerResources", answer).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let answer = container::reopen_container_log(&self.daemon, request.into_inner());
        call(Kind::Change, "ReopenContainerLog", answer).await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let answer = container::exec_sync(&self.daemon, request.into_inner());
        call(Kind::Query, "ExecSync", answer).await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let answer = streaming::exec(&self.daemon, request.into_inner());
        call(Kind::Query, "Exec", answer).await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let answer = streaming::attach(&self.daemon, request.into_inner());
        call(Kind::Query, "Attach", answer).await
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Answer<PortForwardResponse> {
        let answer = streaming::port_forward(&self.daemon, request.into_inner());
        call(Kind::Query, "PortForward", answer).await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let answer = stats::container_stats(&self.daemon, request.into_inner());
        call(Kind::Query, "ContainerStats", answer).await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let answer = stats::list_container_stats(&self.daemon, request.into_inner());
        call(Kind::Query, "ListContainerStats", answer).await
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Items<StreamContainerStatsResponse>> {
        let answer = stats::stream_container_stats(&self.daemon, request.into_inner());
        call(Kind::Query, "StreamContainerStats", answer).await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let answer = stats::pod_sandbox_stats(&self.daemon, request.into_inner());
        call(Kind::Query, "PodSandboxStats", answer).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let answer = stats::list_pod_sandbox_stats(&self.daemon, request.into_inner());
        call(Kind::Query, "ListPodSandboxStats", answer).await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Items<StreamPodSandboxStatsResponse>> {
        let answer = stats::stream_pod_sandbox_stats(&self.daemon, request.into_inner());
        call(Kind::Query, "StreamPodSandboxStats", answer).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let answer = status::update_runtime_config(&self.daemon, request.into_inner());
        call(Kind::Query, "UpdateRuntimeConfig", answer).await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let answer = status::status(&self.daemon, request.into_inner());
        call(Kind::Query, "Status", answer).await
    }

    async fn runtime_config(
        &self,
        request: Request<RuntimeConfigRequest>,
    ) -> Answer<RuntimeConfigResponse> {
        let answer = status::runtime_config(&self.daemon, request.into_inner());
        call(Kind::Query, "RuntimeConfig", answer).await
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let answer = image::list_images(&self.daemon, request.into_inner());
        call(Kind::Query, "ListImages", answer).await
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Answer<Items<StreamImagesResponse>> {
        let answer = image::stream_images(&self.daemon, request.into_inner());
        call(Kind::Query, "StreamImages", answer).await
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Answer<ImageStatusResponse> {
        let answer = image::image_status(&self.daemon, request.into_inner());
        call(Kind::Query, "ImageStatus", answer).await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let answer = image::pull_image(&self.daemon, request.into_inner());
        call(Kind::Change, "PullImage", answer).await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Answer<RemoveImageResponse> {
        let answer = image::remove_image(&self.daemon, request.into_inner());
        call(Kind::Change, "RemoveImage", answer).await
    }

    async fn image_fs_info(
        &self,
        request: Request<ImageFsInfoRequest>,
    ) -> Answer<ImageFsInfoResponse> {
        let answer = image::image_fs_info(&self.daemon, request.into_inner());
        call(Kind::Query, "ImageFsInfo", answer).await
    }
}
