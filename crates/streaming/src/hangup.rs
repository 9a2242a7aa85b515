//! Whether a client has gone, for whoever cannot read from it at the moment: it waits for something
//! else, and what the client sent before it went may never be read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::timeout;
use tracing::debug;

const EVERY: Duration = Duration::from_secs(1);

/// What a client gets to take our last words. Most need a moment; one that does not read is not
/// waited for.
pub(crate) const FAREWELL: Duration = Duration::from_secs(3);

/// A second descriptor of the connection.
pub(crate) struct HangUp(OwnedFd);

impl HangUp {
    pub(crate) fn of(socket: impl AsFd) -> io::Result<Self> {
        Ok(Self(socket.as_fd().try_clone_to_owned()?))
    }

    /// Returns once the client has closed its side. Looks now and then: readiness to be read would
    /// tell at once, but also of every byte that waits.
    pub(crate) async fn wait(&self) {
        while !self.seen() {
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Does `work` unless the client goes before it is done.
    pub(crate) async fn unless<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.wait() => None,
        }
    }

    /// The same where what the client sent fills the connection: its goodbye waits behind that. So
    /// something is said to it now and then that needs no answer, which the kernel of a client that
    /// has closed refuses.
    pub(crate) async fn unless_probed<T>(
        &self,
        work: impl Future<Output = T>,
        probe: impl Fn(),
    ) -> Option<T> {
        let gone = async {
            while !self.seen() {
                tokio::time::sleep(EVERY).await;
                probe();
            }
        };
        tokio::select! {
            biased;
            done = work => Some(done),
            () = gone => None,
        }
    }

    /// Says goodbye to a client that may have gone, or may not read.
    pub(crate) async fn part(&self, goodbye: impl Future<Output = io::Result<()>>) {
        if let Some(Ok(Err(error))) = self.unless(timeout(FAREWELL, goodbye)).await {
            debug!(%error, "the client has gone");
        }
    }

    fn seen(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // HUP and ERR are told unasked.
        poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
    }
}
