//! Connections with daemons: the one that started the monitor, and those that found its socket.
//! A daemon that does not read is dropped: it will see that, connect again, and ask for the state.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use cria_monitor::protocol::{Event, FromMonitor, Reply};
use cria_monitor::socket;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket as open,
};

use super::run::{Monitor, Source};

pub(super) const SOCKET: &str = "monitor.sock";

/// Who asked, so that the answer finds its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) connection: u32,
    pub(super) sequence: u32,
}

pub(super) struct Connection {
    pub(super) serial: u32,
    pub(super) socket: OwnedFd,
}

/// Listens in the working directory: the whole path may be longer than the 108 bytes of an
/// address.
pub(super) fn listen_here() -> io::Result<UnixListener> {
    // That of a monitor that died and that this one replaces.
    let _ = std::fs::remove_file(SOCKET);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = open(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(SOCKET)?)?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener.into())
}

impl Monitor {
    pub(super) fn accept(&mut self) {
        // Whoever was there has gone again, or descriptors are short: he will try again.
        let Ok((connection, _)) = self.listener.accept() else { return };
        // Where it cannot be watched it is closed, which the daemon sees.
        let _ = self.connect(connection.into());
    }

    pub(super) fn connect(&mut self, socket: OwnedFd) -> io::Result<u32> {
        super::set_nonblocking(&socket)?;
        let serial = self.next_serial();
        self.watch(socket.as_fd(), Source::Connection(serial))?;
        self.connections.push(Connection { serial, socket });
        Ok(serial)
    }

    pub(super) fn disconnect(&mut self, serial: u32) {
        let Some(at) = self.connections.iter().position(|found| found.serial == serial) else {
            return;
        };
        let connection = self.connections.swap_remove(at);
        self.unwatch(connection.socket.as_fd());
        self.end_execs_of(serial);
    }

    /// Answers, if whoever asked is still there.
    pub(super) fn reply(&mut self, asker: Asker, reply: Reply) {
        self.send(asker.connection, FromMonitor::Reply(asker.sequence, reply));
    }

    pub(super) fn tell(&mut self, connection: u32, event: Event) {
        self.send(connection, FromMonitor::Event(event));
    }

    pub(super) fn tell_all(&mut self, event: &Event) {
        self.tell_others(None, event);
    }

    /// Tells every connection but the one of whoever has an answer already.
    pub(super) fn tell_others(&mut self, answered: Option<Asker>, event: &Event) {
        let serials: Vec<u32> = self.connections.iter().map(|found| found.serial).collect();
        let answered = answered.map(|asker| asker.connection);
        for serial in serials.into_iter().filter(|serial| Some(*serial) != answered) {
            self.tell(serial, event.clone());
        }
    }

    fn send(&mut self, serial: u32, message: FromMonitor) {
        let Some(found) = self.connections.iter().find(|found| found.serial == serial) else {
            return;
        };
        if socket::send(found.socket.as_fd(), &message.encode()).is_err() {
            self.disconnect(serial);
        }
    }
}
