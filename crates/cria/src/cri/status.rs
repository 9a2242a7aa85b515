//! What the runtime says of itself.

use std::collections::BTreeMap;

use cria_proto::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigRequest,
    RuntimeConfigResponse, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus,
    StatusRequest, StatusResponse, UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse,
    VersionRequest, VersionResponse,
};

use crate::cgroup::Driver;
use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::release::VERSION;
use crate::status::ImagesStatus;

/// Of the message format before the CRI had versions; clients still compare it.
const KUBE_API_VERSION: &str = "0.1.0";

pub(super) async fn version(
    _daemon: &Daemon,
    _request: VersionRequest,
) -> Result<VersionResponse, Error> {
    Ok(VersionResponse {
        version: KUBE_API_VERSION.to_owned(),
        runtime_name: "cria".to_owned(),
        runtime_version: VERSION.to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}

pub(super) async fn status(
    daemon: &Daemon,
    request: StatusRequest,
) -> Result<StatusResponse, Error> {
    let node = &daemon.node;
    let info = match request.verbose {
        true => verbose(node)?,
        false => BTreeMap::new(),
    };
    Ok(StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![runtime_ready(), network_ready(node).await],
        }),
        info,
        runtime_handlers: handlers(node),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    })
}

/// Whoever gets an answer has found the runtime ready.
fn runtime_ready() -> RuntimeCondition {
    RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() }
}

async fn network_ready(node: &Node) -> RuntimeCondition {
    let ready = node.cni.readiness().await;
    RuntimeCondition {
        r#type: "NetworkReady".to_owned(),
        status: ready.is_ok(),
        reason: ready
            .as_ref()
            .err()
            .map(|_| "NetworkPluginNotReady".to_owned())
            .unwrap_or_default(),
        message: ready.err().map(|error| chain(&*error)).unwrap_or_default(),
    }
}

/// The default handler is listed by its name and by the empty one, which is what the kubelet asks
/// for.
fn handlers(node: &Node) -> Vec<RuntimeHandler> {
    let features = RuntimeHandlerFeatures {
        recursive_read_only_mounts: node.settings.get().facts.recursive_read_only,
        user_namespaces: false,
    };
    let handler = |name: &str| RuntimeHandler { name: name.to_owned(), features: Some(features) };
    vec![handler(""), handler(node.oci.name())]
}

fn verbose(node: &Node) -> Result<BTreeMap<String, String>, Error> {
    let config = serde_json::to_string(&node.settings.get().config)
        .map_err(|error| Error::internal("describe the configuration", error))?;
    let images = serde_json::to_string(&ImagesStatus::of(&node.images))
        .map_err(|error| Error::internal("describe the images", error))?;
    let runtime = serde_json::json!({
        "path": node.oci.path(),
        "version": node.oci.version,
        "reason": node.oci.reason,
    });
    Ok(BTreeMap::from([
        ("config".to_owned(), config),
        ("ociRuntime".to_owned(), runtime.to_string()),
        (ImagesStatus::KEY.to_owned(), images),
    ]))
}

/// Always set: the kubelet takes the driver from here.
pub(super) async fn runtime_config(
    daemon: &Daemon,
    _request: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse, Error> {
    let driver = match daemon.node.cgroup_driver {
        Driver::Systemd => CgroupDriver::Systemd,
        Driver::Cgroupfs => CgroupDriver::Cgroupfs,
    };
    Ok(RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }),
    })
}

/// The pod CIDR is the CNI plugin's business; there is nothing to do, and nothing to refuse.
pub(super) async fn update_runtime_config(
    _daemon: &Daemon,
    _request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Error> {
    Ok(UpdateRuntimeConfigResponse {})
}
