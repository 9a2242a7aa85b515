//! A container's three streams, as its monitor holds them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cria_monitor::protocol::{Create, Descriptors};
use cria_monitor::socket;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::pipe2;

use super::set_nonblocking;
use crate::log::Output;

/// The monitor's ends. A terminal takes the place of all three.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
}

/// The container's ends, for the OCI runtime's `create`.
pub(super) struct ContainerEnds {
    pub(super) stdin: Stdio,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
}

impl Streams {
    pub(super) fn pipes(container: &Create) -> io::Result<(Self, ContainerEnds)> {
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let (stdin, their_stdin) = match container.stdin {
            true => {
                let (theirs, ours) = pipe()?;
                (Some(ours), theirs.into())
            }
            false => (None, Stdio::null()),
        };
        set_nonblocking(&stdout)?;
        set_nonblocking(&stderr)?;
        let ours = Self { stdout: Some(stdout), stderr: Some(stderr), terminal: None, stdin };
        let theirs = ContainerEnds {
            stdin: their_stdin,
            stdout: their_stdout.into(),
            stderr: their_stderr.into(),
        };
        Ok((ours, theirs))
    }

    pub(super) fn adopt(descriptors: Descriptors) -> io::Result<(Self, Option<OwnedFd>)> {
        let Descriptors { init, stdout, stderr, terminal, stdin } = descriptors;
        for fd in [&stdout, &stderr, &terminal].into_iter().flatten() {
            set_nonblocking(fd)?;
        }
        Ok((Self { stdout, stderr, terminal, stdin }, init))
    }

    pub(super) fn source(&self, output: Output) -> Option<BorrowedFd<'_>> {
        match output {
            Output::Stdout => self.terminal.as_ref().or(self.stdout.as_ref()).map(AsFd::as_fd),
            Output::Stderr => self.stderr.as_ref().map(AsFd::as_fd),
        }
    }

    pub(super) fn close(&mut self, output: Output) {
        match output {
            Output::Stdout => (self.stdout, self.terminal) = (None, None),
            Output::Stderr => self.stderr = None,
        }
    }

    /// Copies for the daemon of everything that is still open.
    pub(super) fn descriptors(&self, init: Option<&OwnedFd>) -> io::Result<Descriptors> {
        let copy = |fd: Option<&OwnedFd>| fd.map(OwnedFd::try_clone).transpose();
        Ok(Descriptors {
            init: copy(init)?,
            stdout: copy(self.stdout.as_ref())?,
            stderr: copy(self.stderr.as_ref())?,
            terminal: copy(self.terminal.as_ref())?,
            stdin: copy(self.stdin.as_ref())?,
        })
    }
}

/// Read end and write end. Whoever is given them may open them again by `/dev/stdout` and the
/// like, under whatever user the container runs.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fchmod(&read, Mode::from_bits_truncate(0o666))?;
    Ok((read, write))
}

/// What is in a pipe now: the end of an OCI runtime's complaint.
pub(super) fn read_rest(pipe: Option<&OwnedFd>) -> String {
    let Some(pipe) = pipe.and_then(|pipe| pipe.try_clone().ok()) else { return String::new() };
    let mut text = vec![];
    // The pipe does not block: this ends with an error, and what came before it counts.
    let _ = File::from(pipe).take(64 << 10).read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Where an OCI runtime delivers the terminal that it made in the container.
pub(super) struct Console {
    listener: UnixListener,
    name: String,
}

impl Console {
    /// In the working directory, the container's run directory: a path must fit in 108 bytes.
    pub(super) fn listen(name: String) -> io::Result<Self> {
        let _ = std::fs::remove_file(&name);
        let listener = UnixListener::bind(&name)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, name })
    }

    /// The socket's path for another process: short, wherever the run directory is.
    pub(super) fn path(&self) -> PathBuf {
        let monitor = std::process::id();
        Path::new("/proc").join(monitor.to_string()).join("cwd").join(&self.name)
    }

    /// The terminal, after the OCI runtime has ended: it is there, or it was never sent.
    pub(super) fn receive(self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept()?;
        connection.set_nonblocking(true)?;
        let mut packet =
            socket::receive_datagram(connection.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let terminal = packet.fds.pop().ok_or(io::ErrorKind::InvalidData)?;
        set_nonblocking(&terminal)?;
        add_carriage_returns(&terminal)?;
        Ok(terminal)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.name);
    }
}

/// runc clears ONLCR; clients put their own terminals into raw mode and count on it.
fn add_carriage_returns(terminal: &OwnedFd) -> io::Result<()> {
    let mut settings = tcgetattr(terminal)?;
    settings.output_flags |= OutputFlags::ONLCR;
    tcsetattr(terminal, SetArg::TCSANOW, &settings)?;
    Ok(())
}

/// A descriptor's place under `/proc`, for a child that does not inherit it.
pub(super) fn path_for_child(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}
