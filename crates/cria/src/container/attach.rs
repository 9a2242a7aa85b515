//! What an attached client talks to: the container itself.
//!
//! The monitor copies the output to a socket that we hand over, and drops a client that does not
//! keep up. What the client types goes straight to the container's stdin or terminal, of which the
//! daemon holds a duplicate.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cria_monitor::protocol::Request;
use cria_streaming::{End, Output, Process, Stdin, Wanted};
use futures_util::FutureExt as _;
use nix::sys::socket::sockopt::{SndBuf, SndBufForce};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair};

use super::Container;
use super::session::{Fd, resize};
use super::state::State;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::sys;

/// Between two reads of ours a fast container writes some of this.
const BUFFER: usize = 4 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

impl Container {
    /// Attaches to the container for a client that is there.
    pub(crate) async fn attach_session(
        self: &Arc<Self>,
        node: &Node,
        wanted: Wanted,
    ) -> Result<Process, Error> {
        let monitor = self.running_monitor().await?;
        let action = || format!("attach to container {}", self.id);
        let failed = |error| Error::io(action(), error);
        let (ours, theirs) = sockets().map_err(failed)?;
        let socket = Arc::new(sys::watch(ours).map_err(failed)?);
        let Input { stdin, terminal } = self.input().map_err(failed)?;
        let request = Request::Attach {
            stdin: wanted.stdin && stdin.is_some(),
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            socket: theirs,
        };
        let attached = monitor.tell(request, node.oci.patience()).await;
        attached.map_err(|error| Error::internal(action(), error))?;
        let stdin = match (stdin, &terminal) {
            _ if !wanted.stdin => None,
            (Some(stdin), _) => Some(self.stdin(stdin)),
            (None, terminal) => terminal.clone().map(Stdin::new),
        };
        let mut record = self.record.subscribe();
        let ended = async move {
            let exited = record.wait_for(|record| record.state.is_exited()).await;
            match exited.map(|record| record.state.clone()) {
                Ok(State::Exited(exited)) => End::Exited(exited.code),
                Ok(State::Created { .. } | State::Running { .. }) | Err(_) => {
                    End::Failed("the container is no longer watched".to_owned())
                }
            }
        };
        let (output, resize) = (Output::Packets(socket), terminal.map(resize));
        Ok(Process { stdin, output, resize, ended: ended.boxed().shared() })
    }

    /// Duplicates of the container's stdin and terminal, as far as it has them.
    fn input(&self) -> io::Result<Input> {
        let held = self.held();
        let copy = |fd: &Option<OwnedFd>| {
            let fd = fd.as_ref().map(OwnedFd::try_clone).transpose()?;
            fd.map(|fd| sys::watch(fd).map(Arc::new)).transpose()
        };
        let stdin = copy(&held.descriptors.stdin)?;
        if let Some(stdin) = &stdin {
            // The monitor has the same pipe, and never writes.
            rustix::io::ioctl_fionbio(stdin.get_ref(), true)?;
        }
        Ok(Input { stdin, terminal: copy(&held.descriptors.terminal)? })
    }

    /// A stdin that serves once ends for good with the first client that ends it.
    fn stdin(self: &Arc<Self>, fd: Fd) -> Stdin {
        if !self.config.stdin_once {
            return Stdin::new(fd);
        }
        let container = Arc::clone(self);
        let runtime = tokio::runtime::Handle::current();
        Stdin::on_end(fd, move || {
            runtime.spawn(async move { container.close_stdin().await });
        })
    }

    async fn close_stdin(&self) {
        self.held().descriptors.stdin = None;
        let Some(monitor) = self.monitor() else { return };
        if let Err(error) = monitor.tell(Request::CloseStdin, DEADLINE).await {
            tracing::warn!(container = %self.id, error = chain(&error), "cannot close stdin");
        }
    }
}

struct Input {
    stdin: Option<Fd>,
    terminal: Option<Fd>,
}

/// Our end, which never blocks, and the monitor's, which holds what we have not read yet.
fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    // Beyond the node's limit, if we may.
    setsockopt(&theirs, SndBufForce, &BUFFER).or_else(|_| setsockopt(&theirs, SndBuf, &BUFFER))?;
    Ok((ours, theirs))
}
