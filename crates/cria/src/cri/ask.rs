//! The one question that cria itself asks a running daemon, as any client of the CRI would.

use std::io;
use std::path::Path;
use std::time::Duration;

use cria_proto::runtime_service_client::RuntimeServiceClient;
use cria_proto::{RuntimeCondition, StatusRequest, VersionRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;
use tower::service_fn;

use crate::status::{Condition, ImagesStatus, Report};

/// A daemon that is well answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Asks the daemon on `socket` for its status.
pub(crate) async fn ask_status(socket: &Path) -> anyhow::Result<Report> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    // The name is never looked up: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://localhost").timeout(ANSWER_WITHIN);
    let channel = endpoint.connect_with_connector(connector).await?;
    let mut daemon = RuntimeServiceClient::new(channel);
    let version = daemon.version(VersionRequest::default()).await?.into_inner();
    let answer = daemon.status(StatusRequest { verbose: true }).await?.into_inner();
    let conditions = answer.status.unwrap_or_default().conditions;
    let images = answer.info.get(ImagesStatus::KEY).map(String::as_str).unwrap_or_default();
    Ok(Report {
        version: version.runtime_version,
        conditions: conditions.into_iter().map(condition).collect(),
        images: serde_json::from_str(images)?,
    })
}

fn condition(told: RuntimeCondition) -> Condition {
    let why = [told.reason, told.message];
    let why = why.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ");
    Condition { name: told.r#type, holds: told.status, why }
}
