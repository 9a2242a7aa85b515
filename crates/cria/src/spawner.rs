//! Starts processes of the monitor's program, all of them from one thread.
//!
//! A process is born in the cgroups of the thread that forks it. On cgroup v1 a thread can be in a
//! cgroup of its own: this one is in the monitors', so that no monitor has to move there by itself,
//! which waits for all processors (some 10 ms per hierarchy, on the path of CreateContainer). What
//! the thread itself allocates is the daemon's all the same: memory belongs to a process. On v2 a
//! process's threads stay together, and its monitors move.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::{mpsc, oneshot};

/// How many starts may wait for their turn before their callers do: each takes about 1 ms.
const WAITING: usize = 64;

/// The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Spawner {
    orders: mpsc::Sender<Order>,
}

/// A process of ours.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

struct Order {
    arguments: Vec<String>,
    socket: OwnedFd,
    done: oneshot::Sender<io::Result<Child>>,
}

impl Spawner {
    /// `tasks`: the files by which a thread joins the monitors' cgroups.
    pub(crate) fn start(program: PathBuf, tasks: Vec<PathBuf>) -> io::Result<Self> {
        let (orders, received) = mpsc::channel(WAITING);
        let (ready, joined) = sync_channel(1);
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let entered = tasks.iter().try_for_each(|file| fs_err::write(file, "0"));
            let serves = entered.is_ok();
            if ready.send(entered).is_ok() && serves {
                serve(&program, received);
            }
        })?;
        joined.recv().map_err(io::Error::other)??;
        Ok(Self { orders })
    }

    /// Starts the program with `socket` as its standard input, and waits until it is started.
    pub(crate) async fn spawn(&self, arguments: &[&str], socket: OwnedFd) -> io::Result<Child> {
        let (order, child) = order(arguments, socket);
        self.orders.send(order).await.map_err(|_| ended())?;
        child.await.map_err(|_| ended())?
    }

    /// The same for a thread that may block.
    pub(crate) fn blocking_spawn(&self, arguments: &[&str], socket: OwnedFd) -> io::Result<Child> {
        let (order, child) = order(arguments, socket);
        self.orders.blocking_send(order).map_err(|_| ended())?;
        child.blocking_recv().map_err(|_| ended())?
    }
}

fn order(arguments: &[&str], socket: OwnedFd) -> (Order, oneshot::Receiver<io::Result<Child>>) {
    let arguments = arguments.iter().map(ToString::to_string).collect();
    let (done, child) = oneshot::channel();
    (Order { arguments, socket, done }, child)
}

fn ended() -> io::Error {
    io::Error::other("the thread that starts processes has ended")
}

fn serve(program: &Path, mut orders: mpsc::Receiver<Order>) {
    while let Some(Order { arguments, socket, done }) = orders.blocking_recv() {
        // Whoever asked waits for it.
        drop(done.send(spawn(program, &arguments, socket)));
    }
}

fn spawn(program: &Path, arguments: &[String], socket: OwnedFd) -> io::Result<Child> {
    // Nothing here needs a hook between fork and exec, so that std can use posix_spawn, which does
    // not copy the daemon's page tables.
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()?;
    let pid = i32::try_from(child.id()).expect("the kernel's pids are positive");
    let named = Pid::from_raw(pid).expect("a child's pid is not zero");
    Ok(Child { pid, pidfd: pidfd_open(named, PidfdFlags::empty())? })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;
    use crate::cgroup::tests::OwnCgroup;
    use crate::cgroup::{Hierarchy, Version};

    fn run(spawner: &Spawner, script: &str) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let child = spawner.blocking_spawn(&["-c", script], theirs.into()).unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        text
    }

    #[test]
    fn processes_are_born_in_the_threads_cgroup_and_the_daemon_stays_where_it_is() {
        let hierarchy = Hierarchy::detect().unwrap();
        if hierarchy.version() != Version::V1 {
            return;
        }
        let cgroup = OwnCgroup::new(&hierarchy);
        let own = fs_err::read_to_string("/proc/self/cgroup").unwrap();
        let of_memory = hierarchy.for_monitor(&cgroup.path).oom_counter.unwrap();
        let tasks = of_memory.with_file_name("tasks");
        let spawner = Spawner::start("/bin/sh".into(), vec![tasks]).unwrap();

        let born = run(&spawner, "cat /proc/self/cgroup >&0");

        assert!(born.contains(&cgroup.path.to_string()), "{born}");
        assert_eq!(fs_err::read_to_string("/proc/self/cgroup").unwrap(), own);
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_told_at_the_start() {
        let missing = PathBuf::from("/proc/self/nowhere/tasks");
        assert!(Spawner::start("/bin/sh".into(), vec![missing]).is_err());
    }

    /// On a runtime of one thread, which a wait that blocks would stop for good.
    #[tokio::test]
    async fn other_tasks_go_on_while_one_waits_for_a_start() {
        let (orders, mut received) = mpsc::channel(WAITING);
        let spawner = Spawner { orders };
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let serve = async {
            let order = received.recv().await.unwrap();
            order.done.send(Err(io::ErrorKind::OutOfMemory.into())).unwrap();
        };
        let (started, ()) = tokio::join!(spawner.spawn(&["probe"], theirs.into()), serve);
        assert_eq!(started.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_to_whoever_asks() {
        let spawner = Spawner::start("/nowhere".into(), vec![]).unwrap();
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let error = spawner.blocking_spawn(&[], theirs.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
