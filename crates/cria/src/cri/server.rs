//! HTTP/2 on the unix socket.
//!
//! Served by hyper itself, because tonic's server ends a call when the client's own deadline (the
//! `grpc-timeout` header) is over, and says CANCELLED: that answer races with the client's timer,
//! and the kubelet and critest want to read DEADLINE_EXCEEDED. A client that gives up resets its
//! stream, and its handler is dropped; that is all a deadline needs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::service;
use crate::daemon::Daemon;

/// After a failed accept (no descriptors left, most likely) the next one is not tried at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What requests under way get to be answered at the end. What takes longer is the next daemon's to
/// finish, as after a crash; the service manager would not wait much longer either.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until `stop` is done, and then until the answers under way are given.
pub(crate) async fn serve(
    daemon: Arc<Daemon>,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) {
    let service = TowerToHyperService::new(service::routes(daemon));
    let mut http = http2::Builder::new(TokioExecutor::new());
    // The kubelet has one connection, and a drain of the node as many stops in it as there are
    // containers, each for its grace.
    http.max_concurrent_streams(None);
    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => TokioIo::new(stream),
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        let connection = connections.watch(http.serve_connection(stream, service.clone()));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended badly");
            }
        });
    }
    drop(listener);
    if timeout(GRACE, connections.shutdown()).await.is_err() {
        warn!("requests are cut off; the next daemon finishes what they began");
    }
}
