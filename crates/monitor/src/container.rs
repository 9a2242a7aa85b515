//! The `container` role: stands beside one container from its creation until the daemon has taken
//! note of its end. It is the parent of the container's processes, writes their log, and records
//! their exit; it waits neither for the daemon nor for a disk.

mod attach;
mod cgroup;
mod child;
mod connection;
mod exec;
mod init;
mod oci;
mod oom;
mod output;
mod requests;
mod run;
mod state;
mod stdio;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use cria_monitor::protocol::{Failure, FailureKind, FromMonitor, Reply, Request};
use cria_monitor::socket;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};

use self::run::Monitor;
use self::state::Phase;
use crate::sys;

pub(crate) fn main() -> ExitCode {
    let daemon = match detach() {
        Ok(daemon) => daemon,
        Err(_) => return ExitCode::FAILURE,
    };
    // A daemon that died before it said anything wants no container.
    let Ok(Some(packet)) = socket::receive(daemon.as_fd()) else { return ExitCode::SUCCESS };
    let (sequence, request) = match Request::decode(packet) {
        Ok(message) => message,
        Err(error) => {
            return refuse(&daemon, error.sequence().unwrap_or(0), requests::unsupported(&error));
        }
    };
    let container = match &request {
        Request::Create { container, .. } => container.as_ref().clone(),
        Request::Adopt(adopt) => adopt.container.clone(),
        _ => {
            let message = "the first request must create or adopt a container".to_owned();
            return refuse(&daemon, sequence, Failure { kind: FailureKind::WrongPhase, message });
        }
    };
    let monitor = match Monitor::new(container, Phase::Creating) {
        Ok(monitor) => monitor,
        Err(error) => return refuse(&daemon, sequence, oci::system("start the monitor", &error)),
    };
    let result = match request {
        Request::Adopt(adopt) => run::adopt(monitor, *adopt, daemon, sequence),
        Request::Create { program, .. } => run::create(monitor, program, daemon, sequence),
        _ => Ok(()),
    };
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Cuts every tie to the process that started us but its socket.
fn detach() -> io::Result<OwnedFd> {
    let daemon = sys::take_socket()?;
    // Not possible for, and not needed by, one that leads its process group already.
    let _ = nix::unistd::setsid();
    // Blocked, nothing but SIGKILL ends a monitor; SIGCHLD and SIGTERM are read from a descriptor.
    SigSet::all().thread_set_mask()?;
    umask(Mode::from_bits_truncate(0o027));
    nix::sys::prctl::set_child_subreaper(true)?;
    for lowest in ["-1000", "-999"] {
        let file = OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
        if file.and_then(|mut file| file.write_all(lowest.as_bytes())).is_ok() {
            break;
        }
    }
    Ok(daemon)
}

fn refuse(daemon: &OwnedFd, sequence: u32, failure: Failure) -> ExitCode {
    let reply = FromMonitor::Reply(sequence, Reply::Failed(failure));
    // A daemon that is gone needs no answer.
    let _ = socket::send(daemon.as_fd(), &reply.encode());
    ExitCode::FAILURE
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
