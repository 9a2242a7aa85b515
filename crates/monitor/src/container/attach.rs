//! Attached clients: each has a socket that gets a copy of the output, as packets that begin with
//! the output's number (1 stdout, 2 stderr).
//!
//! A client that does not keep up holds the container's output up for a second, and after that for a
//! tenth of the time; then it is dropped. But the client whose input a container serves once sets the
//! pace: it is what the container runs for, and has a second for each packet. The log loses nothing: what
//! is not read waits in the pipe.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use cria_monitor::protocol::{Event as Told, Reply};
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, sendmsg};

use super::connection::Asker;
use super::oci;
use super::run::{Monitor, Source};
use super::state::Phase;
use crate::log::Output;

const PATIENCE: Duration = Duration::from_secs(1);
/// Patience that is used up comes back ten times as slowly.
const RECOVERY: u32 = 10;

pub(super) struct Client {
    serial: u32,
    socket: OwnedFd,
    wants: [bool; 2],
    /// What the container reads comes from it, or from a client before it.
    stdin: bool,
    /// What its socket did not take.
    owed: Option<Vec<u8>>,
    patience: Patience,
}

/// How long a client may still hold the output up.
#[derive(Debug)]
struct Patience {
    left: Duration,
    /// While it does: the beginning of that; else the end of the last time.
    since: Instant,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { left: PATIENCE, since: now }
    }

    /// It begins to hold the output up.
    fn begin(&mut self, now: Instant, sets_pace: bool) {
        let regained = now.duration_since(self.since) / RECOVERY;
        self.left = if sets_pace { PATIENCE } else { PATIENCE.min(self.left + regained) };
        self.since = now;
    }

    /// It has kept up again.
    fn end(&mut self, now: Instant) {
        self.left = self.left.saturating_sub(now.duration_since(self.since));
        self.since = now;
    }

    fn deadline(&self) -> Instant {
        self.since + self.left
    }
}

/// What became of a packet.
enum Sent {
    Whole,
    Later,
    Gone,
}

impl Client {
    fn send(&self, output: &[u8], bytes: &[u8]) -> Sent {
        let parts = [IoSlice::new(output), IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], flags, None) {
                Ok(_) => return Sent::Whole,
                Err(Errno::EINTR) => {}
                // ENOBUFS: the kernel is short of memory, which passes or the second does.
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Sent::Later,
                Err(_) => return Sent::Gone,
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.owed.as_ref().map(|_| self.patience.deadline())
    }
}

impl Monitor {
    pub(super) fn attach(&mut self, asker: Asker, wants: [bool; 2], stdin: bool, socket: OwnedFd) {
        if !matches!(self.state.phase, Phase::Created | Phase::Running) || self.state.releasing {
            return self.reply(asker, super::requests::wrong_phase("the container is not running"));
        }
        let serial = self.next_serial();
        // Whatever comes from a client is its end.
        match self.watch(socket.as_fd(), Source::Attached(serial)) {
            Ok(()) => {
                let patience = Patience::new(Instant::now());
                self.attached.push(Client { serial, socket, wants, stdin, owed: None, patience });
                self.reply(asker, Reply::Done);
            }
            Err(error) => self.reply(asker, Reply::Failed(oci::system("attach", &error))),
        }
    }

    /// Copies what has just been read from an output.
    pub(super) fn copy_to_clients(&mut self, output: Output, bytes: &[u8]) {
        let tag = [output as u8 + 1];
        let mut gone = vec![];
        let mut late = vec![];
        for client in self.attached.iter_mut().filter(|client| client.wants[output as usize]) {
            match client.send(&tag, bytes) {
                Sent::Whole => {}
                Sent::Gone => gone.push(client.serial),
                Sent::Later => {
                    client.owed = Some([&tag, bytes].concat());
                    let sets_pace = client.stdin && self.container.stdin_once;
                    client.patience.begin(Instant::now(), sets_pace);
                    late.push(client.serial);
                }
            }
        }
        gone.into_iter().for_each(|serial| self.detach(serial));
        for serial in late {
            if self.watch_client(serial).is_err() {
                self.detach(serial);
            }
        }
    }

    pub(super) fn has_copied_to_all(&self) -> bool {
        self.attached.iter().all(|client| client.owed.is_none())
    }

    /// A client's socket has room, or its other end is closed.
    pub(super) fn client_ready(&mut self, serial: u32) {
        let Some(at) = self.attached.iter().position(|client| client.serial == serial) else {
            return;
        };
        let client = &mut self.attached[at];
        match client.owed.take() {
            Some(packet) => match client.send(&packet, &[]) {
                Sent::Whole => {
                    client.patience.end(Instant::now());
                    if self.watch_client(serial).is_err() {
                        self.detach(serial);
                    }
                    self.go_on_reading();
                }
                Sent::Later => client.owed = Some(packet),
                Sent::Gone => {
                    self.detach(serial);
                    self.go_on_reading();
                }
            },
            // It never says anything.
            None => self.detach(serial),
        }
    }

    pub(super) fn drop_late_clients(&mut self, now: Instant) {
        let late = |client: &&Client| client.deadline().is_some_and(|deadline| now >= deadline);
        let late: Vec<u32> = self.attached.iter().filter(late).map(|it| it.serial).collect();
        late.into_iter().for_each(|serial| self.detach(serial));
    }

    pub(super) fn detach_all(&mut self) {
        while let Some(client) = self.attached.pop() {
            self.unwatch(client.socket.as_fd());
        }
    }

    fn detach(&mut self, serial: u32) {
        let Some(at) = self.attached.iter().position(|client| client.serial == serial) else {
            return;
        };
        let client = self.attached.swap_remove(at);
        self.unwatch(client.socket.as_fd());
        if client.stdin && self.container.stdin_once {
            self.close_stdin();
        }
        if client.owed.is_some() {
            self.go_on_reading();
        }
    }

    pub(super) fn close_stdin(&mut self) {
        if self.streams.stdin.take().is_some() {
            self.tell_all(&Told::StdinClosed);
        }
    }

    /// Told of a client's end, and of room in its socket only while something is owed to it.
    fn watch_client(&self, serial: u32) -> io::Result<()> {
        let client = self.attached.iter().find(|client| client.serial == serial);
        let Some(client) = client else { return Ok(()) };
        let room = if client.owed.is_some() { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        self.rewatch(client.socket.as_fd(), Source::Attached(serial), EpollFlags::EPOLLIN | room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_always_a_little_late_runs_out_of_patience() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        let mut held = Duration::ZERO;
        // Late for half of the time.
        while patience.deadline() > now {
            patience.begin(now, false);
            now += Duration::from_millis(40);
            held += Duration::from_millis(40);
            patience.end(now);
            now += Duration::from_millis(40);
            assert!(held < Duration::from_secs(2), "{patience:?}");
        }
    }

    #[test]
    fn patience_comes_back_and_never_exceeds_a_second() {
        let begun = Instant::now();
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut patience = Patience::new(begun);
        patience.begin(after(100), false);
        assert_eq!(patience.deadline(), after(101));
        patience.end(after(101));
        assert_eq!(patience.left, Duration::ZERO);
        patience.begin(after(106), false);
        assert_eq!(patience.left, Duration::from_millis(500));
        patience.end(after(106));
        patience.begin(after(106), true);
        assert_eq!(patience.deadline(), after(107), "the one that sets the pace");
        patience.end(after(107));
        patience.begin(after(200), false);
        assert_eq!(patience.deadline(), after(201));
    }
}
