//! Connections into a pod, for PortForward: a socket belongs to the network namespace that it was
//! made in, so it is made there, by a thread that then ends, and connected from here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Sandbox;
use super::namespaces::Kind;
use crate::paths::Paths;

/// Loopback answers at once, or the pod's backlog is full.
const DEADLINE: Duration = Duration::from_secs(30);

/// Connects to `port` on the pod's loopback: IPv4, else IPv6. The error is for people.
pub(crate) async fn connect(
    sandbox: &Sandbox,
    paths: &Paths,
    port: u16,
) -> Result<TcpStream, String> {
    sandbox.check_ready().map_err(|error| error.to_string())?;
    let namespace = (!sandbox.is_on_host_network()).then(|| Kind::Net.pin(paths, &sandbox.id));
    let mut failures = vec![];
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(address, port);
        let connected = timeout(DEADLINE, connect_in(namespace.clone(), address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(format!("connect to {address}: {error}")),
        }
    }
    Err(failures.join(", "))
}

async fn connect_in(namespace: Option<PathBuf>, address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = match namespace {
        None => socket(family)?,
        Some(namespace) => spawn_blocking(move || socket_in(namespace, family)).await??,
    };
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// A thread of its own: no other work may ever run in that namespace. Blocking.
fn socket_in(namespace: PathBuf, family: AddressFamily) -> io::Result<OwnedFd> {
    let made = thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let namespace = fs_err::File::open(namespace)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        socket(family)
    });
    made?.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?)
}
