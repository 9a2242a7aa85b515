//! The monitor binary's other roles.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use nix::mount::umount;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cria-monitor");

/// A role's process, killed when dropped.
struct Role(Child);

impl Role {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(arguments: &[&str]) -> (Role, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(OwnedFd::from(there));
    (Role(command.spawn().unwrap()), here)
}

fn answer(socket: &mut UnixStream) -> String {
    let mut bytes = [0; 1000];
    let length = socket.read(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

fn namespace(pid: u32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

#[test]
fn namespaces_are_made_furnished_and_held() {
    let (mut role, mut socket) = run(&[
        "namespaces",
        "pod",
        "--new",
        "net,ipc,uts",
        "--hostname",
        "a-pod",
        "--sysctl",
        "net.ipv4.ip_unprivileged_port_start=77",
        "--sysctl",
        "kernel/shm_rmid_forced=1",
    ]);
    assert_eq!(answer(&mut socket), "+");
    let own = std::process::id();
    for kind in ["net", "ipc", "uts"] {
        assert_ne!(namespace(role.pid(), kind), namespace(own, kind), "{kind}");
    }
    assert_eq!(namespace(role.pid(), "mnt"), namespace(own, "mnt"));
    // A thread of its own looks inside, and takes the namespaces with it when it ends.
    let pid = role.pid();
    let inside = std::thread::spawn(move || {
        for kind in ["net", "ipc", "uts"] {
            let file = File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
            setns(file, CloneFlags::empty()).unwrap();
        }
        let read = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        [
            read("/proc/sys/kernel/hostname"),
            read("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
            read("/proc/sys/kernel/shm_rmid_forced"),
        ]
    });
    let [hostname, port, shm] = inside.join().unwrap();
    assert_eq!([hostname.as_str(), &port, &shm], ["a-pod", "77", "1"]);
    drop(socket);
    assert!(role.0.wait().unwrap().success());
}

#[test]
fn a_sysctl_of_the_node_is_refused() {
    for (new, sysctl) in [
        ("net,ipc,uts", "kernel.panic=1"),
        ("ipc,uts", "net.ipv4.ip_forward=1"),
        ("net", "kernel.shm_rmid_forced=1"),
        ("net", "net/../kernel/panic=1"),
        ("net", "net.no.such.thing=1"),
    ] {
        let (_role, mut socket) = run(&["namespaces", "pod", "--new", new, "--sysctl", sysctl]);
        let text = answer(&mut socket);
        assert!(text.starts_with("-sysctl "), "{sysctl}: {text}");
    }
}

#[test]
fn a_pod_s_init_is_confined_and_reaps() {
    set_child_subreaper(true).unwrap();
    let (holder, mut held) = run(&["namespaces", "pod", "--new", "net,ipc,uts"]);
    assert_eq!(answer(&mut held), "+");
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", holder.pid());
    let (net, ipc, uts) = (path("net"), path("ipc"), path("uts"));
    let (mut role, mut socket) =
        run(&["pod-init", "pod", "--net", &net, "--ipc", &ipc, "--uts", &uts]);
    let text = answer(&mut socket);
    let pid: u32 = text.strip_prefix('+').expect(&text).parse().unwrap();
    assert!(role.0.wait().unwrap().success());

    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pid, kind), namespace(holder.pid(), kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(namespace(pid, kind), namespace(holder.pid(), kind), "{kind}");
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    assert_eq!(field("NSpid").split_whitespace().nth(1), Some("1"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("Groups"), "");
    assert_eq!(field("NoNewPrivs"), "1");
    // Closed just after the answer.
    crate::node::wait_for("no descriptors", || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        (open == 0).then_some(())
    });
    let root = fs::read_dir(format!("/proc/{pid}/root/")).unwrap();
    assert_eq!(root.count(), 0);
    assert!(fs::write(format!("/proc/{pid}/root/file"), "").is_err());
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(exe.to_str(), Some("/memfd:pod-init (deleted)"));
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, b"pod-init\0pod-init-confined\0");

    // A process of its namespace that loses its parent.
    let mut shell = Command::new("nsenter");
    let inner = "(sleep 0.05; exit 3) & kill -TERM 1; kill -KILL 1; exit 0";
    shell.args(["--target", &pid.to_string(), "--pid", "sh", "-c", inner]);
    assert!(shell.status().unwrap().success());
    let children = format!("/proc/{pid}/task/{pid}/children");
    crate::node::wait_for("reaped orphan", || {
        fs::read_to_string(&children).unwrap().is_empty().then_some(())
    });

    // As long as the pod has another process, SIGTERM does not end it.
    let mut other = Command::new("nsenter");
    other.args(["--target", &pid.to_string(), "--pid", "cat"]).stdin(Stdio::piped());
    let mut other = other.spawn().unwrap();
    crate::node::wait_for("a process of the pod", || {
        let nsenter = other.id();
        let children = fs::read_to_string(format!("/proc/{nsenter}/task/{nsenter}/children"));
        (!children.unwrap().is_empty()).then_some(())
    });
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let heard = format!("/proc/{pid}/status");
    crate::node::wait_for("the signal taken", || {
        let status = fs::read_to_string(&heard).unwrap();
        status.contains("ShdPnd:\t0000000000000000\n").then_some(())
    });
    assert_eq!(waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::StillAlive);
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
}

#[test]
fn a_pod_s_init_stays_only_if_its_caller_confirms_it_and_the_role_lives_to_hear() {
    set_child_subreaper(true).unwrap();
    let start = || {
        let (role, mut socket) = run(&["pod-init", "pod", "--confirm", "yes"]);
        let pid = answer(&mut socket).strip_prefix('+').unwrap().parse().unwrap();
        (role, socket, Pid::from_raw(pid))
    };

    let (mut role, socket, init) = start();
    drop(socket);
    assert!(!role.0.wait().unwrap().success());
    assert_eq!(waitpid(init, None).unwrap(), WaitStatus::Exited(init, 1));

    let (role, _socket, init) = start();
    drop(role);
    assert_eq!(waitpid(init, None).unwrap(), WaitStatus::Exited(init, 1));

    let (mut role, mut socket, init) = start();
    socket.write_all(b"+").unwrap();
    assert!(role.0.wait().unwrap().success());
    // Out of its caller's sight, and there to stay.
    crate::node::wait_for("no descriptors", || {
        let open = fs::read_dir(format!("/proc/{init}/fd")).unwrap().count();
        (open == 0).then_some(())
    });
    assert_eq!(waitpid(init, Some(WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::StillAlive);
    kill(init, Signal::SIGKILL).unwrap();
    assert_eq!(waitpid(init, None).unwrap(), WaitStatus::Signaled(init, Signal::SIGKILL, false));
}

#[test]
fn a_pod_s_init_that_cannot_be_made_says_why() {
    let (mut role, mut socket) = run(&["pod-init", "pod", "--net", "/no/such/namespace"]);
    let text = answer(&mut socket);
    assert!(text.starts_with("-/no/such/namespace: "), "{text}");
    assert!(!role.0.wait().unwrap().success());
}

#[test]
fn the_probe_answers_by_its_exit_code() {
    let code = |arguments: &[&str]| {
        Command::new(PROGRAM).args(arguments).status().unwrap().code().unwrap()
    };
    assert_eq!(code(&["probe-mount", "/no/such/directory", "/"]), 1);
    assert_eq!(code(&["probe-mount", "/tmp"]), 2);
    assert_eq!(code(&["no-such-role"]), 2);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for (second, expected) in [("/proc/1", 0), (dir, 3)] {
        assert_eq!(code(&["probe-mount", dir, second]), expected, "{second}");
        umount(dir).unwrap();
    }
}
