//! A container on the real OCI runtime, and a daemon's end of its monitor's socket. Whatever
//! happens to a test, dropping these leaves nothing behind.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cria_monitor::exit::Exit;
use cria_monitor::protocol::{
    Adopt, ContainerCgroup, Create, Event, Exec, Failure, FromMonitor, OciRuntime, Reply, Request,
    SignalScope, State, Target,
};
use cria_monitor::socket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as open, socketpair,
};
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const APPLETS: [&str; 12] = [
    "cat", "echo", "head", "printf", "seq", "setsid", "sh", "sleep", "stty", "tail", "true", "yes",
];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Waits until `what` is there, looking again and again.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// What a process has had of the processors, all its threads together.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanoseconds = threads.map(|thread| {
        let text = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// What differs between the tests' containers.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) own_pid_namespace: bool,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) runtime: PathBuf,
    pub(crate) deadline: Duration,
    /// The log's directory, where it is not to be the container's own.
    pub(crate) log_dir: Option<PathBuf>,
    pub(crate) args: Option<Vec<String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            terminal: false,
            stdin: false,
            own_pid_namespace: true,
            memory_limit: None,
            // Another one can be named, to see that it behaves alike.
            runtime: std::env::var_os("CRIA_OCI_RUNTIME").unwrap_or("/usr/sbin/runc".into()).into(),
            deadline: Duration::from_secs(15),
            log_dir: None,
            args: None,
        }
    }
}

/// A bundle and a run directory.
pub(crate) struct Container {
    _dir: TempDir,
    pub(crate) create: Create,
}

impl Container {
    /// A container that runs `script`.
    pub(crate) fn new(script: &str, options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("cria-monitor-").tempdir().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("cria-monitor-test-{}-{number}", std::process::id());
        for name in ["bundle/rootfs/bin", "bundle/rootfs/proc", "bundle/rootfs/dev", "run", "log"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let bin = dir.path().join("bundle/rootfs/bin");
        fs::copy("/usr/bin/busybox", bin.join("busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        let args = options
            .args
            .clone()
            .unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), script.into()]);
        let config = config(&id, &args, &options);
        fs::write(dir.path().join("bundle/config.json"), config).unwrap();
        let cgroup = |hierarchy: &str, file: &str| {
            Some(Path::new("/sys/fs/cgroup").join(hierarchy).join(&id).join(file))
        };
        let log_dir = options.log_dir.unwrap_or(dir.path().join("log"));
        let create = Create {
            bundle: dir.path().join("bundle"),
            run_dir: dir.path().join("run"),
            runtime: OciRuntime {
                path: options.runtime,
                arguments: vec!["--root".into(), dir.path().join("oci").display().to_string()],
                deadline: options.deadline,
            },
            log: Some(log_dir.join("0.log")),
            terminal: options.terminal,
            stdin: options.stdin,
            stdin_once: false,
            cgroup: ContainerCgroup {
                oom_counter: cgroup("memory", "memory.oom_control"),
                processes: cgroup("pids", "cgroup.procs"),
                kill: None,
                freezer: cgroup("freezer", "freezer.state"),
            },
            own_pid_namespace: options.own_pid_namespace,
            oom_score_adj: 100,
            join_cgroups: vec![],
            id,
        };
        Self { _dir: dir, create }
    }

    /// Asks for it, with the OCI runtime at its path.
    pub(crate) fn request(&self) -> Request {
        Request::Create { container: Box::new(self.create.clone()), program: None }
    }

    pub(crate) fn log(&self) -> Vec<u8> {
        fs::read(self.create.log.as_ref().unwrap()).unwrap_or_default()
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        records(&self.log())
    }

    /// The text of `stream`, its records put together again.
    pub(crate) fn output(&self, stream: &str) -> Vec<u8> {
        output(&self.records(), stream)
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        Exit::read(&self.create.run_dir).unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let runtime = &self.create.runtime;
        let mut delete = Command::new(&runtime.path);
        delete.args(&runtime.arguments).args(["delete", "--force", &self.create.id]);
        let _ = delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn config(id: &str, args: &[String], options: &Options) -> String {
    let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
    let pid = if options.own_pid_namespace { r#"{"type":"pid"},"# } else { "" };
    let memory = options
        .memory_limit
        .map_or(String::new(), |limit| format!(r#""limit":{limit},"swap":{limit}"#));
    let terminal = options.terminal;
    let args = args.join(",");
    format!(
        r#"{{"ociVersion":"1.0.2",
        "process":{{"terminal":{terminal},"user":{{"uid":0,"gid":0}},"args":[{args}],
            "env":["PATH=/bin"],"cwd":"/","capabilities":{{"bounding":["CAP_KILL"],
            "effective":["CAP_KILL"],"permitted":["CAP_KILL"]}}}},
        "root":{{"path":"rootfs"}},"hostname":"test",
        "mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},
            {{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["mode=755"]}},
            {{"destination":"/dev/pts","type":"devpts","source":"devpts",
              "options":["newinstance","ptmxmode=0666","mode=0620"]}}],
        "linux":{{"cgroupsPath":"/{id}","resources":{{"memory":{{{memory}}}}},
            "namespaces":[{pid}{{"type":"mount"}},{{"type":"uts"}},{{"type":"ipc"}}]}}}}"#
    )
}

/// One line of a CRI log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) time: String,
    pub(crate) stream: String,
    pub(crate) full: bool,
    pub(crate) text: Vec<u8>,
}

/// Every line of a log; panics at one that is torn.
pub(crate) fn records(log: &[u8]) -> Vec<Record> {
    let Some(log) = log.strip_suffix(b"\n") else {
        assert!(log.is_empty(), "the log ends in a torn record");
        return vec![];
    };
    log.split(|byte| *byte == b'\n').map(record).collect()
}

fn record(line: &[u8]) -> Record {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let mut part = || String::from_utf8(parts.next().unwrap_or_default().to_vec()).unwrap();
    let (time, stream, tag) = (part(), part(), part());
    let torn = || String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
    assert!(time.len() == 30 && time.ends_with('Z') && time.starts_with("20"), "{}", torn());
    assert!(["stdout", "stderr"].contains(&&*stream), "{}", torn());
    assert!(["P", "F"].contains(&&*tag), "{}", torn());
    Record { time, stream, full: tag == "F", text: parts.next().unwrap().to_vec() }
}

pub(crate) fn output(records: &[Record], stream: &str) -> Vec<u8> {
    let mut text = vec![];
    for record in records.iter().filter(|record| record.stream == stream) {
        text.extend(&record.text);
        if record.full {
            text.push(b'\n');
        }
    }
    text
}

/// A daemon's connection with a monitor.
pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    sequence: u32,
    events: VecDeque<Event>,
}

impl Client {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0, events: VecDeque::new() }
    }

    /// As a daemon that was restarted does it.
    pub(crate) fn connect(container: &Container) -> io::Result<Self> {
        let socket = open(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let path = container.create.run_dir.join("monitor.sock");
        connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
        Ok(Self::new(socket))
    }

    /// Sends without waiting for the answer.
    pub(crate) fn send(&mut self, request: Request) -> u32 {
        self.sequence += 1;
        socket::send(self.socket.as_fd(), &request.encode(self.sequence)).unwrap();
        self.sequence
    }

    pub(crate) fn ask(&mut self, request: Request) -> Reply {
        let sequence = self.send(request);
        self.reply(sequence)
    }

    pub(crate) fn reply(&mut self, sequence: u32) -> Reply {
        loop {
            match self.receive().expect("a reply") {
                FromMonitor::Reply(found, reply) => {
                    assert_eq!(found, sequence);
                    return reply;
                }
                FromMonitor::Event(event) => self.events.push_back(event),
            }
        }
    }

    pub(crate) fn event(&mut self) -> Event {
        if let Some(event) = self.events.pop_front() {
            return event;
        }
        match self.receive().expect("an event") {
            FromMonitor::Event(event) => event,
            FromMonitor::Reply(sequence, reply) => panic!("reply {sequence} to nothing: {reply:?}"),
        }
    }

    /// `None` at the end of the connection.
    pub(crate) fn receive(&mut self) -> Option<FromMonitor> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, patience).unwrap(), 1, "the monitor says nothing");
        let packet = socket::receive(self.socket.as_fd()).unwrap()?;
        Some(FromMonitor::decode(packet).unwrap())
    }

    pub(crate) fn state(&mut self) -> State {
        match self.ask(Request::State) {
            Reply::State(state) => *state,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&mut self) -> i64 {
        match self.ask(Request::Start) {
            Reply::Started { at_ns } => at_ns,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn done(&mut self, request: Request) {
        match self.ask(request) {
            Reply::Done => {}
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn failed(&mut self, request: Request) -> Failure {
        match self.ask(request) {
            Reply::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// The exit, which must be the next event but for lost log bytes.
    pub(crate) fn exited(&mut self) -> Exit {
        loop {
            match self.event() {
                Event::Exited(exit) => return exit,
                Event::LogLost { .. } | Event::StdinClosed | Event::Settled => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn signal(&mut self, signal: i32) {
        let (target, scope) = (Target::Init, SignalScope::Process);
        self.done(Request::Signal { target, signal, scope });
    }

    pub(crate) fn exec(&mut self, number: u64, script: &str) -> Exec {
        let process = format!(
            r#"{{"user":{{"uid":0,"gid":0}},"args":["/bin/sh","-c",{script:?}],"env":["PATH=/bin"],"cwd":"/"}}"#
        );
        Exec {
            exec: number,
            process: socket::sealed(c"process", process.as_bytes()).unwrap(),
            terminal: false,
            stdin: None,
            stdout: None,
            stderr: None,
            timeout: None,
            dies_with_connection: false,
            program: None,
        }
    }

    pub(crate) fn exec_started(&mut self, exec: Exec) -> (i32, Option<OwnedFd>) {
        match self.ask(Request::Exec(exec)) {
            Reply::ExecStarted { pid, terminal, .. } => (pid, terminal),
            other => panic!("{other:?}"),
        }
    }
}

/// A monitor's process, and the daemon's connection with it.
pub(crate) struct Monitor {
    pub(crate) process: Child,
    pub(crate) client: Client,
}

impl Monitor {
    pub(crate) fn spawn() -> Self {
        let (here, there) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let built = env!("CARGO_BIN_EXE_cria-monitor");
        // The packaged build, for measuring.
        let program = std::env::var_os("CRIA_MONITOR").unwrap_or(built.into());
        let mut command = Command::new(program);
        command.args(["container", "test"]).stdin(there);
        Self { process: command.spawn().unwrap(), client: Client::new(here) }
    }

    /// A monitor whose container is created.
    pub(crate) fn create(container: &Container) -> Self {
        let mut monitor = Self::spawn();
        match monitor.client.ask(container.request()) {
            Reply::State(_) => monitor,
            other => panic!("{other:?}"),
        }
    }

    /// A monitor whose container is started.
    pub(crate) fn start(container: &Container) -> Self {
        let mut monitor = Self::create(container);
        monitor.client.start();
        monitor
    }

    pub(crate) fn adopt(adopt: Adopt) -> Self {
        let mut monitor = Self::spawn();
        match monitor.client.ask(Request::Adopt(Box::new(adopt))) {
            Reply::State(_) => monitor,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn release(mut self) {
        self.client.done(Request::Release);
        assert!(self.process.wait().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
