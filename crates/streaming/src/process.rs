//! What a session is attached to: the daemon's ends of a process's streams. They are non-blocking.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::{BoxFuture, Shared};
use rustix::io::Errno;
use serde::Deserialize;

use crate::chunk::Chunk;

pub use tokio::io::unix::AsyncFd;

/// A process that a client talks to. Dropping it lets go of the streams: a terminal is hung up.
pub struct Process {
    pub stdin: Option<Stdin>,
    pub output: Output,
    /// For a process with a terminal: gives it another size.
    pub resize: Option<Box<dyn Fn(Size) + Send + Sync>>,
    pub ended: Shared<BoxFuture<'static, End>>,
}

/// What the process reads. Dropped when the client has ended it, or has gone.
pub struct Stdin {
    fd: Arc<AsyncFd<OwnedFd>>,
    /// What else is to be done then.
    on_end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Stdin {
    pub fn new(fd: Arc<AsyncFd<OwnedFd>>) -> Self {
        Self { fd, on_end: None }
    }

    pub fn on_end(
        fd: Arc<AsyncFd<OwnedFd>>,
        on_end: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        Self { fd, on_end: Some(Box::new(on_end)) }
    }

    /// Writes all of `bytes`, as fast as the process reads.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            if let Ok(result) = ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                bytes = &bytes[result?..];
            }
        }
        Ok(())
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            on_end();
        }
    }
}

pub enum Output {
    /// A descriptor each. A terminal has the first only.
    Each { stdout: Option<Arc<AsyncFd<OwnedFd>>>, stderr: Option<Arc<AsyncFd<OwnedFd>>> },
    /// One seqpacket socket for both: the first byte of each packet is 1 (stdout) or 2 (stderr).
    Packets(Arc<AsyncFd<OwnedFd>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this code: 0 is a success.
    Exited(i32),
    /// Nobody knows how, or it ended before it began.
    Failed(String),
}

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    #[serde(alias = "width")]
    pub width: u16,
    #[serde(alias = "height")]
    pub height: u16,
}

/// Reads into `chunk`; 0 is the end.
pub(crate) fn poll_read(
    fd: &AsyncFd<OwnedFd>,
    context: &mut Context<'_>,
    chunk: &mut Chunk,
) -> Poll<io::Result<usize>> {
    loop {
        let mut ready = ready!(fd.poll_read_ready(context))?;
        if let Ok(result) = ready.try_io(|fd| chunk.fill(fd)) {
            return Poll::Ready(end_of_terminal(result));
        }
    }
}

/// Reads what is there already; 0 is the end, or nothing.
pub(crate) fn read_now(fd: &AsyncFd<OwnedFd>, chunk: &mut Chunk) -> io::Result<usize> {
    match chunk.fill(fd) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => end_of_terminal(result),
    }
}

/// EIO is how a terminal says that nobody has it open any more.
fn end_of_terminal(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Ok(0),
        result => result,
    }
}
