//! TEMPORARY
use cria_proto::*;
use super::Items;
use crate::daemon::Daemon;
use crate::error::Error;
pub(super) async fn container_stats(_d: &Daemon, _r: ContainerStatsRequest) -> Result<ContainerStatsResponse, Error> { Err(Error::Unimplemented{what:"stats"}) }
pub(super) async fn list_container_stats(_d: &Daemon, _r: ListContainerStatsRequest) -> Result<ListContainerStatsResponse, Error> { Ok(Default::default()) }
pub(super) async fn stream_container_stats(_d: &Daemon, _r: StreamContainerStatsRequest) -> Result<Items<StreamContainerStatsResponse>, Error> { Err(Error::Unimplemented{what:"stats"}) }
pub(super) async fn pod_sandbox_stats(_d: &Daemon, _r: PodSandboxStatsRequest) -> Result<PodSandboxStatsResponse, Error> { Err(Error::Unimplemented{what:"stats"}) }
pub(super) async fn list_pod_sandbox_stats(_d: &Daemon, _r: ListPodSandboxStatsRequest) -> Result<ListPodSandboxStatsResponse, Error> { Ok(Default::default()) }
pub(super) async fn stream_pod_sandbox_stats(_d: &Daemon, _r: StreamPodSandboxStatsRequest) -> Result<Items<StreamPodSandboxStatsResponse>, Error> { Err(Error::Unimplemented{what:"stats"}) }
