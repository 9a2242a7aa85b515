//! The daemon's end. It may be the node's too: then the containers have just been stopped, in front
//! of us, and after the boot nobody but our records knows how they ended.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::warn;

use crate::daemon::Daemon;
use crate::sandbox::Sandbox;
use crate::systemd;

/// A dead container's monitor has output to write, on a disk that may be busy at such a time.
const SETTLE_WITHIN: Duration = Duration::from_secs(13);

const SYNC_WITHIN: Duration = Duration::from_secs(5);

/// A killed process ends at once, unless one of its namespace is stuck.
const INITS_END_WITHIN: Duration = Duration::from_secs(5);

/// Takes in the ends that are under way, and has the disk hold what this daemon wrote. A restart
/// hardly waits: nothing has ended, and few records are new.
pub(crate) async fn take_leave(daemon: &Daemon) {
    let containers = daemon.containers.all();
    let settled = join_all(containers.iter().map(|container| container.settle()));
    if timeout(SETTLE_WITHIN, settled).await.is_err() {
        warn!("a container has ended, and its monitor does not say how");
    }
    // Before anything else waits for processes: systemd does not wait for us much longer.
    sync_records(daemon).await;
    if daemon.node.unit.is_some() && systemd::is_stopping().await {
        end_pod_inits(daemon).await;
        sync_records(daemon).await;
    }
}

/// Where they are the last processes of their pods: they are in no scope, and the end of the system
/// would wait for them.
async fn end_pod_inits(daemon: &Daemon) {
    let containers = daemon.containers.all();
    let has_ended = |sandbox: &Arc<Sandbox>| {
        let mut own = containers.iter().filter(|container| container.sandbox == sandbox.id);
        own.all(|container| container.state().is_exited())
    };
    let mut ended = daemon.sandboxes.all();
    ended.retain(has_ended);
    join_all(ended.iter().map(|sandbox| end_pod_init(sandbox))).await;
}

async fn end_pod_init(sandbox: &Sandbox) {
    let Some(init) = sandbox.record.get().init else { return };
    let ended = timeout(INITS_END_WITHIN, async {
        // As after the boot; and nobody is to wonder at its init's end.
        sandbox.begin_stop().await;
        init.end().await
    });
    if let Err(error) = ended.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
        warn!(sandbox = %sandbox.id, %error, "the pod's init stays");
    }
}

async fn sync_records(daemon: &Daemon) {
    if timeout(SYNC_WITHIN, sync_all(daemon)).await.is_err() {
        warn!("the disk does not take the records in time");
    }
}

async fn sync_all(daemon: &Daemon) {
    let (sandboxes, containers) = (daemon.sandboxes.all(), daemon.containers.all());
    let sandboxes = join_all(sandboxes.iter().map(|sandbox| sandbox.record.sync()));
    let containers = join_all(containers.iter().map(|container| container.record.sync()));
    for error in sandboxes.await.into_iter().chain(containers.await).filter_map(Result::err) {
        warn!(%error, "a record may be lost with the power");
    }
}
