//! What a streaming client talks to in a container: a command of its own.
//!
//! The daemon makes the pipes and hands their far ends over; a terminal is made in the container and
//! handed to us. Either way the bytes never pass through the monitor, and whatever ends our side
//! (the client, the session, the daemon) closes these descriptors: a terminal is hung up, a pipe
//! ends. The command itself is not killed: what it does then is its own business.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cria_monitor::protocol::{Exec, Request};
use cria_streaming::{AsyncFd, End, Output, Process, Size, Stdin, Wanted};
use futures_util::FutureExt as _;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Container;
use super::spec::process::Terminal;
use crate::error::Error;
use crate::node::Node;
use crate::sys;

pub(super) type Fd = Arc<AsyncFd<OwnedFd>>;

impl Container {
    /// Starts `command` for a client that is there.
    pub(crate) async fn exec_session(
        &self,
        node: &Node,
        command: Vec<String>,
        wanted: Wanted,
    ) -> Result<Process, Error> {
        let monitor = self.running_monitor().await?;
        let failed = |error| Error::io(format!("run a command in container {}", self.id), error);
        let terminal = if wanted.tty { Terminal::New } else { Terminal::None };
        let process = self.exec_process(node, command, terminal)?;
        let (ours, theirs) = pipes(wanted).map_err(failed)?;
        let (exec, end) = self.execs.begin();
        let request = Request::Exec(Exec {
            exec,
            process,
            terminal: wanted.tty,
            stdin: theirs.stdin,
            stdout: theirs.stdout,
            stderr: theirs.stderr,
            timeout: None,
            dies_with_connection: false,
            program: node.oci.program(),
        });
        let mut beginning = Beginning { container: self, exec, begun: false };
        let terminal = self.begin_exec(node, &monitor, request, None).await?.terminal;
        beginning.begun = true;
        let ended = async move {
            match end.await {
                Ok(end) => End::Exited(end.status.exit_code()),
                Err(_) => End::Failed("its monitor died, and nobody saw how it ended".to_owned()),
            }
        };
        let ended = ended.boxed().shared();
        let Some(terminal) = terminal else {
            let Ends { stdin, stdout, stderr } = ours.watched().map_err(failed)?;
            let stdin = stdin.map(Stdin::new);
            return Ok(Process {
                stdin,
                output: Output::Each { stdout, stderr },
                resize: None,
                ended,
            });
        };
        let terminal = Arc::new(sys::watch(terminal).map_err(failed)?);
        Ok(Process {
            stdin: wanted.stdin.then(|| Stdin::new(Arc::clone(&terminal))),
            resize: Some(resize(Arc::clone(&terminal))),
            output: Output::Each { stdout: Some(terminal), stderr: None },
            ended,
        })
    }
}

/// Forgets a command that does not begin, or whose client goes before it does.
struct Beginning<'a> {
    container: &'a Container,
    exec: u64,
    begun: bool,
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        if !self.begun {
            self.container.execs.forget(self.exec);
        }
    }
}

pub(super) fn resize(terminal: Fd) -> Box<dyn Fn(Size) + Send + Sync> {
    Box::new(move |Size { width, height }| {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        if let Err(error) = tcsetwinsize(&*terminal, size) {
            tracing::debug!(%error, "cannot resize a terminal");
        }
    })
}

/// One side of the three pipes, as far as they were asked for.
struct Ends<T> {
    stdin: Option<T>,
    stdout: Option<T>,
    stderr: Option<T>,
}

/// Ours and the command's; none for one with a terminal.
fn pipes(wanted: Wanted) -> io::Result<(Ends<OwnedFd>, Ends<OwnedFd>)> {
    let pipe = |wanted_here: bool| {
        let pipe = (wanted_here && !wanted.tty).then(|| pipe_with(PipeFlags::CLOEXEC));
        Ok::<_, io::Error>(pipe.transpose()?.unzip())
    };
    let (their_stdin, stdin) = pipe(wanted.stdin)?;
    let (stdout, their_stdout) = pipe(wanted.stdout)?;
    let (stderr, their_stderr) = pipe(wanted.stderr)?;
    for ours in [&stdin, &stdout, &stderr].into_iter().flatten() {
        rustix::io::ioctl_fionbio(ours, true)?;
    }
    let theirs = Ends { stdin: their_stdin, stdout: their_stdout, stderr: their_stderr };
    Ok((Ends { stdin, stdout, stderr }, theirs))
}

impl Ends<OwnedFd> {
    fn watched(self) -> io::Result<Ends<Fd>> {
        let watch = |fd: Option<OwnedFd>| fd.map(|fd| sys::watch(fd).map(Arc::new)).transpose();
        Ok(Ends {
            stdin: watch(self.stdin)?,
            stdout: watch(self.stdout)?,
            stderr: watch(self.stderr)?,
        })
    }
}
