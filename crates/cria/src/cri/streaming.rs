//! Exec, Attach and PortForward: each leaves what is to be done with the streaming server, and answers with
//! the URL where a client finds it.

use std::num::NonZeroU16;
use std::sync::Arc;

use cria_proto::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest,
    PortForwardResponse,
};
use cria_streaming::{Command, Pending, PortForward, Wanted};
use futures_util::FutureExt as _;

use super::{container, sandbox};
use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::sandbox::forward;

/// The container must run now, and again when the client comes.
pub(super) async fn exec(daemon: &Daemon, request: ExecRequest) -> Result<ExecResponse, Error> {
    let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    let wanted = checked(Wanted { stdin, stdout, stderr, tty })?;
    let container = container::find(daemon, &container_id)?;
    if cmd.is_empty() {
        return Err(Error::invalid("cmd", "it is empty"));
    }
    container.check_running()?;
    let node = Arc::clone(&daemon.node);
    let start = move || {
        async move {
            let process = container.exec_session(&node, cmd, wanted).await;
            process.map_err(|error| chain(&error))
        }
        .boxed()
    };
    let pending = Pending::Exec(Command { wanted, start: Box::new(start) });
    Ok(ExecResponse { url: daemon.streaming.url(pending)? })
}

/// The same for the container's own process.
pub(super) async fn attach(
    daemon: &Daemon,
    request: AttachRequest,
) -> Result<AttachResponse, Error> {
    let AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let wanted = checked(Wanted { stdin, stdout, stderr, tty })?;
    let container = container::find(daemon, &container_id)?;
    container.check_running()?;
    let node = Arc::clone(&daemon.node);
    let start = move || {
        async move {
            let process = container.attach_session(&node, wanted).await;
            process.map_err(|error| chain(&error))
        }
        .boxed()
    };
    let pending = Pending::Attach(Command { wanted, start: Box::new(start) });
    Ok(AttachResponse { url: daemon.streaming.url(pending)? })
}

/// The ports are said by the client, with each connection; those of the old form over WebSocket come with
/// the request, if not from the client.
pub(super) async fn port_forward(
    daemon: &Daemon,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, Error> {
    let sandbox = sandbox::find(daemon, &request.pod_sandbox_id)?;
    let ports = request.port.into_iter().map(port).collect::<Result<_, _>>()?;
    sandbox.check_ready()?;
    let node = Arc::clone(&daemon.node);
    let connect = move |port| {
        let (sandbox, node) = (Arc::clone(&sandbox), Arc::clone(&node));
        async move { forward::connect(&sandbox, &node.paths, port).await }.boxed()
    };
    let pending = Pending::PortForward(PortForward { ports, connect: Arc::new(connect) });
    Ok(PortForwardResponse { url: daemon.streaming.url(pending)? })
}

fn port(number: i32) -> Result<NonZeroU16, Error> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    port.ok_or_else(|| Error::invalid("port", format!("{number} is none")))
}

fn checked(wanted: Wanted) -> Result<Wanted, Error> {
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    if tty && stderr {
        return Err(Error::invalid("stderr", "a terminal has one output only"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Error::invalid("stdout", "one of stdin, stdout and stderr must be set"));
    }
    Ok(wanted)
}
