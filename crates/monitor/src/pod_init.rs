//! The `pod-init` role: pid 1 of a pod whose containers share one PID namespace. It reaps whatever
//! comes to it and does nothing else.
//!
//! ```text
//! cria-monitor pod-init ID [--user PATH] [--net PATH] [--ipc PATH] [--uts PATH] [--cgroup PROCS]...
//!     [--confirm yes]
//! ```
//!
//! Descriptor 0 is a unix socket (stream or seqpacket). One answer comes: `+` and the pid of the
//! pod's init as the caller sees it, or `-` and the reason. Then the called process ends, and the
//! pod's init goes to the caller, if that is a subreaper. With `--confirm` it first hears a byte
//! from the caller, who will then find the init again; if the caller or the called process dies
//! before that, so does the init, of which nobody would know. SIGTERM from outside the pod (the
//! node is shut down, or somebody signals all of the daemon's unit) ends it once it has been alone for a while; from
//! inside the pod nothing does.
//!
//! Containers of the pod can look at `/proc/1`, which must never show the host: the init is a
//! second program start, without arguments or environment, from a sealed memfd; its root is an
//! empty read-only tmpfs; it has no descriptors, capabilities or supplementary groups, and is not
//! dumpable.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::namespaces::{answer, reason};
use crate::sys::{self, Wait};

/// The second start's role; never called by others.
pub(crate) const CONFINED: &str = "pod-init-confined";

/// Longer than systemd waits at a shutdown between SIGTERM and SIGKILL for all that is left.
const LEAVE_WITHIN: Duration = Duration::from_secs(100);
/// A pod that goes on is empty for a moment at most.
const ALONE_FOR: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let Ok(socket) = sys::take_socket() else { return ExitCode::FAILURE };
    let mut socket = File::from(socket);
    let result = join(arguments)
        .and_then(|()| start().map_err(|error| reason("start the pod's init", error)))
        .and_then(|(pid, report)| wait_until_confined(report).map(|report| (pid, report)));
    answer(&mut socket, &result.as_ref().map(|(pid, _)| pid.to_string()).map_err(Clone::clone));
    let Ok((_, mut report)) = result else { return ExitCode::FAILURE };
    if asks_back(arguments) && !hears_a_byte(&mut socket) {
        return ExitCode::FAILURE;
    }
    if report.write_all(&[0]).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn asks_back(arguments: &[String]) -> bool {
    arguments.chunks(2).any(|pair| pair[0] == "--confirm")
}

/// False: the other side is gone.
fn hears_a_byte(socket: &mut impl Read) -> bool {
    socket.read_exact(&mut [0]).is_ok()
}

fn join(arguments: &[String]) -> Result<(), String> {
    // A user namespace is joined first: the right to join the others comes from it.
    for (flag, kind) in [
        ("--cgroup", CloneFlags::empty()),
        ("--user", CloneFlags::CLONE_NEWUSER),
        ("--net", CloneFlags::CLONE_NEWNET),
        ("--ipc", CloneFlags::CLONE_NEWIPC),
        ("--uts", CloneFlags::CLONE_NEWUTS),
    ] {
        for pair in arguments.chunks(2).filter(|pair| pair[0] == flag) {
            let path = pair.get(1).ok_or_else(|| format!("{flag} without a path"))?;
            enter(Path::new(path), kind).map_err(|error| reason(path, error))?;
        }
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| reason("make a PID namespace", error))
}

fn enter(path: &Path, kind: CloneFlags) -> io::Result<()> {
    if kind.is_empty() {
        return OpenOptions::new().write(true).open(path)?.write_all(b"0");
    }
    setns(File::open(path)?, kind)?;
    Ok(())
}

/// The next child is pid 1 of the new namespace.
fn start() -> io::Result<(u32, UnixStream)> {
    let program = copy_of_self()?;
    let (report, theirs) = UnixStream::pair()?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0("pod-init").arg(CONFINED).env_clear().current_dir("/");
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((command.spawn()?.id(), report))
}

/// This very program, where no path and nobody's write can reach it.
fn copy_of_self() -> io::Result<OwnedFd> {
    let mut program = vec![];
    File::open("/proc/self/exe")?.read_to_end(&mut program)?;
    cria_monitor::socket::sealed(c"pod-init", &program)
}

/// The init now waits for a byte.
fn wait_until_confined(mut report: UnixStream) -> Result<UnixStream, String> {
    let failed = |error| reason("hear of the pod's init", error);
    let mut first = [0];
    match report.read(&mut first).map_err(failed)? {
        0 => return Err("the pod's init died at its start".to_owned()),
        _ if first == *b"+" => return Ok(report),
        _ => {}
    }
    let mut text = String::new();
    report.read_to_string(&mut text).map_err(failed)?;
    Err(text)
}

/// The second start: pid 1 of the pod.
pub(crate) fn confined() -> ExitCode {
    let Ok(report) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let mut report = UnixStream::from(report);
    let mut heard = SigSet::empty();
    heard.add(Signal::SIGCHLD);
    heard.add(Signal::SIGTERM);
    let result = confine(&heard);
    answer(&mut report, &result.as_ref().map(|()| String::new()).map_err(Clone::clone));
    if result.is_err() || !hears_a_byte(&mut report) {
        return ExitCode::FAILURE;
    }
    if sys::close_everything(report.into()).is_err() {
        return ExitCode::FAILURE;
    }
    let mut leaving: Option<Instant> = None;
    let mut last_in_company = Instant::now();
    loop {
        // Processes of the pod have a pid here; those outside of it have none.
        if let Some((libc::SIGTERM, 0)) = sys::next_signal(&heard, leaving.map(|_| LOOK_EVERY)) {
            last_in_company = Instant::now();
            leaving = Some(last_in_company + LEAVE_WITHIN);
        }
        while let Ok(Some(_)) = sys::wait(None, Wait::Reap) {}
        let now = Instant::now();
        if !is_alone() {
            last_in_company = now;
        } else if leaving.is_some() && now.duration_since(last_in_company) > ALONE_FOR {
            return ExitCode::SUCCESS;
        }
        // The node is still there: the signal was not its end.
        leaving = leaving.filter(|end| now < *end);
    }
}

/// For the first process of a namespace: whether it is the only one.
fn is_alone() -> bool {
    kill(Pid::from_raw(-1), None) == Err(Errno::ESRCH)
}

fn confine(heard: &SigSet) -> Result<(), String> {
    heard.thread_set_mask().map_err(|error| reason("block signals", error))?;
    // Fails for one that leads its group already, as well it may.
    let _ = nix::unistd::setsid();
    enter_empty_root().map_err(|error| reason("enter an empty root", error))?;
    nix::sys::prctl::set_name(c"pod-init").map_err(|error| reason("set the name", error))?;
    drop_groups().map_err(|error| reason("drop groups", error))?;
    sys::drop_capabilities().map_err(|error| reason("drop capabilities", error))?;
    nix::sys::prctl::set_no_new_privs().map_err(|error| reason("forgo privileges", error))?;
    nix::sys::prctl::set_dumpable(false).map_err(|error| reason("become undumpable", error))
}

/// In a user namespace that may not change groups there are none to drop.
fn drop_groups() -> nix::Result<()> {
    match nix::unistd::setgroups(&[]) {
        Err(Errno::EPERM) if nix::unistd::getgroups()?.is_empty() => Ok(()),
        result => result,
    }
}

fn enter_empty_root() -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any directory of the old root will do: nobody else is in this mount namespace.
    mount(Some("tmpfs"), "/proc", Some("tmpfs"), flags, Some("mode=0555,size=4k,nr_inodes=1"))?;
    nix::unistd::chdir("/proc")?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    mount(none, "/", none, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)
}
