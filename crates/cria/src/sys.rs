//! Kernel calls that no safe wrapper covers. The crate's only `unsafe` lives here.

#![expect(unsafe_code, reason = "pre_exec, close_range and tokio's registration of descriptors")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

/// Makes `command`'s process die with the daemon and inherit no descriptor but the standard ones.
///
/// The kernel sends the signal when the *thread* that forked ends: spawn from a task (tokio's
/// workers live as long as the daemon), never from a blocking thread, which ends when idle.
pub(crate) fn dies_with_daemon(command: &mut Command) -> &mut Command {
    let daemon = rustix::process::getpid();
    // SAFETY: after fork, only async-signal-safe code may run. The closure makes three system
    // calls; it takes no lock, allocates nothing, and owns nothing but a pid.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The daemon may have died between fork and the line above.
            if getppid() != Some(daemon) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            close_on_exec_from(3)
        })
    }
}

/// The same for a process that is to finish whatever becomes of the daemon.
pub(crate) fn outlives_daemon(command: &mut Command) -> &mut Command {
    // SAFETY: after fork, only async-signal-safe code may run. The closure makes one system call;
    // it takes no lock, allocates nothing, and owns nothing.
    unsafe { command.pre_exec(|| close_on_exec_from(3)) }
}

/// A descriptor whose readiness tasks can wait for.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `register` demands that the descriptor stays open and the same for as long as it is
    // registered. An `OwnedFd` is open until it is dropped, always names the same descriptor, and
    // is owned by the `AsyncFd`, which deregisters it before dropping it.
    unsafe { Ok(AsyncFd::register(descriptor)?) }
}

/// Marks every descriptor from `first` on as close-on-exec, also those that the daemon itself
/// inherited without the mark.
fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range takes three integers and no pointer. With CLOSE_RANGE_CLOEXEC it closes
    // nothing, so that no owner of a descriptor loses it.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
