//! The daemon's side of a monitor: starts it, connects to it again, asks and listens.
//!
//! One task per connection reads what the monitor says. A reply goes to whoever asked, an event to
//! the container through a bounded channel. The monitor never waits for us: its socket's buffer
//! holds more than it ever says.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cria_monitor::protocol::{
    Event, Failure, FailureKind, FromMonitor, Packet, ProtocolError, Reply, Request, State,
};
use cria_monitor::socket;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socketpair};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::container::spec::SpecError;
use crate::spawner::Spawner;
use crate::{process, sys};

/// How many events may wait for the container's task; a monitor says a handful in its life, and
/// one per exec.
const EVENTS: usize = 64;

/// One that has quit or died is reaped within this, also on a busy node.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// What a killed process gets to end.
const DEATH: Duration = Duration::from_secs(10);

/// What a role gets to end once it is told.
const LAST_WORDS: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    #[error("cannot start the monitor")]
    Start(#[source] io::Error),
    #[error("cannot reach the monitor at {path}")]
    Connect { path: PathBuf, source: io::Error },
    /// The connection ended, mostly because the monitor did.
    #[error("the monitor has gone")]
    Gone,
    #[error("the monitor did not answer `{request}` within {deadline:?}")]
    Silent { request: &'static str, deadline: Duration },
    #[error("the monitor said something that is no message")]
    Protocol(#[from] ProtocolError),
    #[error("the monitor answered `{request}` with something else")]
    Unexpected { request: &'static str },
    #[error("cannot talk to the monitor")]
    Io(#[from] io::Error),
    /// What a monitor would have to be told cannot be.
    #[error(transparent)]
    Order(#[from] SpecError),
    /// The monitor's own refusal.
    #[error("{}", .0.message)]
    Failed(Failure),
}

impl MonitorError {
    /// Nobody holds the socket: there is no monitor, and nothing that could become one again.
    pub(crate) fn nobody_listens(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), ConnectionRefused | NotFound))
    }

    /// The OCI runtime was too slow.
    pub(crate) fn timed_out(&self) -> bool {
        matches!(self, Self::Failed(Failure { kind: FailureKind::TimedOut, .. }))
    }

    /// The OCI runtime ran and said no: its words.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Failed(Failure { kind: FailureKind::Refused, message }) => Some(message),
            _ => None,
        }
    }
}

/// A connection to a monitor. Dropping it leaves the monitor as it is.
pub(crate) struct Monitor {
    socket: Arc<AsyncFd<OwnedFd>>,
    sequence: AtomicU32,
    waiting: Arc<Waiting>,
}

/// Who waits for the reply to which request. `None` once the connection has ended.
struct Waiting(Mutex<Option<HashMap<u32, oneshot::Sender<Reply>>>>);

/// What a connection tells, unasked.
#[derive(Debug)]
pub(crate) enum News {
    Event(Event),
    /// The connection has ended, mostly because the monitor has. Always the last.
    Gone,
}

impl Monitor {
    /// Starts a monitor for container `id`. It is a child of the daemon (and lives on as init's
    /// when the daemon dies); it takes its orders from the first message.
    pub(crate) async fn start(
        spawner: &Spawner,
        id: &str,
    ) -> Result<(Self, mpsc::Receiver<News>), MonitorError> {
        let (ours, theirs) = seqpacket_pair().map_err(MonitorError::Start)?;
        let child = spawner.spawn(&["container", id], theirs).await;
        Self::over(ours, Some(child.map_err(MonitorError::Start)?.pidfd))
    }

    /// Connects to the monitor that listens in `run_dir`.
    pub(crate) fn connect(run_dir: &Path) -> Result<(Self, mpsc::Receiver<News>), MonitorError> {
        let socket = connect_in(run_dir).map_err(|source| MonitorError::Connect {
            path: run_dir.join("monitor.sock"),
            source,
        })?;
        Self::over(socket, None)
    }

    fn over(
        socket: OwnedFd,
        child: Option<OwnedFd>,
    ) -> Result<(Self, mpsc::Receiver<News>), MonitorError> {
        let socket = Arc::new(sys::watch(socket)?);
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let (events, news) = mpsc::channel(EVENTS);
        tokio::spawn(listen(Arc::clone(&socket), Arc::clone(&waiting), events, child));
        Ok((Self { socket, sequence: AtomicU32::new(1), waiting }, news))
    }

    /// Asks, and waits for the answer. A refusal is an error.
    pub(crate) async fn ask(
        &self,
        request: Request,
        deadline: Duration,
    ) -> Result<Reply, MonitorError> {
        let name = name(&request);
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let (reply_to, reply) = oneshot::channel();
        self.waiting.add(sequence, reply_to)?;
        let answer = async {
            self.send(&request.encode(sequence)).await?;
            reply.await.map_err(|_| MonitorError::Gone)
        };
        let answer = timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(MonitorError::Silent { request: name, deadline }));
        self.waiting.forget(sequence);
        match answer? {
            Reply::Failed(failure) => Err(MonitorError::Failed(failure)),
            reply => Ok(reply),
        }
    }

    /// Asks something whose answer is no more than "done".
    pub(crate) async fn tell(
        &self,
        request: Request,
        deadline: Duration,
    ) -> Result<(), MonitorError> {
        let name = name(&request);
        match self.ask(request, deadline).await? {
            Reply::Done => Ok(()),
            _ => Err(MonitorError::Unexpected { request: name }),
        }
    }

    /// Asks something that is answered with the container's state.
    pub(crate) async fn ask_state(
        &self,
        request: Request,
        deadline: Duration,
    ) -> Result<State, MonitorError> {
        let name = name(&request);
        match self.ask(request, deadline).await? {
            Reply::State(state) => Ok(*state),
            _ => Err(MonitorError::Unexpected { request: name }),
        }
    }

    /// The monitor may quit before [`listen`] has seen it.
    async fn send(&self, packet: &Packet) -> Result<(), MonitorError> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| socket::send(socket.as_fd(), packet)) {
                Ok(Err(error)) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                    return Err(MonitorError::Gone);
                }
                Ok(sent) => return Ok(sent?),
                Err(_would_block) => {}
            }
        }
    }
}

/// What a request is called in errors.
fn name(request: &Request) -> &'static str {
    match request {
        Request::Create { .. } => "create",
        Request::Adopt(_) => "adopt",
        Request::State => "state",
        Request::Start => "start",
        Request::Exec(_) => "exec",
        Request::Signal { .. } => "signal",
        Request::Attach { .. } => "attach",
        Request::ReopenLog => "reopen-log",
        Request::CloseStdin => "close-stdin",
        Request::InitEnded { .. } => "init-ended",
        Request::Release => "release",
    }
}

impl Waiting {
    fn add(&self, sequence: u32, reply_to: oneshot::Sender<Reply>) -> Result<(), MonitorError> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut().ok_or(MonitorError::Gone)?.insert(sequence, reply_to);
        Ok(())
    }

    fn forget(&self, sequence: u32) -> Option<oneshot::Sender<Reply>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut().and_then(|waiting| waiting.remove(&sequence))
    }

    /// Whoever still waits learns that the connection has ended.
    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Reads until the connection ends. That need not be the monitor's end: a child of ours that lives
/// on is reaped whenever it ends, and nobody waits for that.
async fn listen(
    socket: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Waiting>,
    events: mpsc::Sender<News>,
    child: Option<OwnedFd>,
) {
    loop {
        match receive(&socket).await {
            Ok(Some(FromMonitor::Reply(sequence, reply))) => {
                if let Some(reply_to) = waiting.forget(sequence) {
                    // Whoever asked may have given up.
                    drop(reply_to.send(reply));
                }
            }
            Ok(Some(FromMonitor::Event(event))) => {
                if events.send(News::Event(event)).await.is_err() {
                    tracing::debug!("nobody listens to this monitor any more");
                }
            }
            Ok(None) => break,
            Err(MonitorError::Protocol(ProtocolError::UnknownKind { kind, sequence: 0 })) => {
                tracing::debug!(kind, "a newer monitor's event");
            }
            Err(error) => {
                tracing::warn!(error = crate::error::chain(&error), "lost touch with a monitor");
                break;
            }
        }
    }
    waiting.close();
    drop(socket);
    let reaped = child.map(|child| tokio::spawn(reap(child)));
    if let Some(reaped) = reaped {
        // Who hears that it has gone is not to find its zombie.
        drop(timeout(LAST_MOMENT, reaped).await);
    }
    drop(events.send(News::Gone).await);
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> Result<Option<FromMonitor>, MonitorError> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| socket::receive(socket.as_fd())) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(packet) => return Ok(packet?.map(FromMonitor::decode).transpose()?),
            Err(_would_block) => {}
        }
    }
}

/// Kills the monitor that listens in `run_dir`, and waits for its end.
pub(crate) async fn kill(run_dir: &Path) -> io::Result<()> {
    let socket = connect_in(run_dir)?;
    let process = pidfd_open(socket_peercred(&socket)?.pid, PidfdFlags::empty())?;
    // Looked at after the pidfd was had: while its socket is open the pid is nobody else's.
    if process::await_readable(&socket, Instant::now())? {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    pidfd_send_signal(&process, Signal::KILL)?;
    let process = sys::watch(process)?;
    timeout(DEATH, process.readable()).await?.map(drop)
}

/// A short-lived role of the monitor's program that has said what it did.
pub(crate) struct Role {
    pub(crate) pid: i32,
    /// What it said beyond that it succeeded.
    pub(crate) answer: String,
    /// The process ends when this is closed; who drops it reaps the process.
    pub(crate) socket: OwnedFd,
    process: OwnedFd,
}

impl Role {
    /// Tells one that asked to be told so (`--confirm`) that what it made will be found again.
    pub(crate) fn confirm(&self) -> io::Result<()> {
        rustix::io::write(&self.socket, b"+")?;
        Ok(())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // It ends by itself within no time once it is told; a stuck one must not keep us.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = process::await_readable(&self.process, Instant::now() + LAST_WORDS);
        let _ = waitid(
            WaitId::PidFd(self.process.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
}

/// Runs a role of the monitor's program, and waits for what it says. Blocking.
pub(crate) fn run_role(
    spawner: &Spawner,
    arguments: &[&str],
    deadline: Duration,
) -> io::Result<Role> {
    let (ours, theirs) = seqpacket_pair()?;
    let child = spawner.blocking_spawn(arguments, theirs)?;
    let mut role =
        Role { pid: child.pid, answer: String::new(), socket: ours, process: child.pidfd };
    if !process::await_readable(&role.socket, Instant::now() + deadline)? {
        let _ = pidfd_send_signal(&role.process, Signal::KILL);
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut text = [0_u8; 4096];
    let length = rustix::io::read(&role.socket, &mut text)?;
    let text = String::from_utf8_lossy(&text[..length]);
    match text.split_at_checked(1) {
        Some(("+", answer)) => {
            role.answer = answer.to_owned();
            Ok(role)
        }
        Some(("-", reason)) => Err(io::Error::other(reason.to_owned())),
        Some(_) | None => Err(io::Error::other("it ended without an answer")),
    }
}

/// Waits for a child of ours to end, and takes its status so that no zombie stays.
pub(crate) async fn reap(child: OwnedFd) {
    if let Ok(child) = sys::watch(child)
        && child.readable().await.is_ok()
    {
        let _ = waitid(WaitId::PidFd(child.get_ref().as_fd()), WaitIdOptions::EXITED);
    }
}

/// Our end, which never blocks, and the other process's, which may.
fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// A path in `run_dir` may be longer than a socket address holds; one through our own descriptor
/// never is.
fn connect_in(run_dir: &Path) -> io::Result<OwnedFd> {
    let directory = fs_err::File::open(run_dir)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let path = format!("/proc/self/fd/{}/monitor.sock", directory.as_raw_fd());
    connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::process::{Child, Command, Stdio};

    use rustix::process::Pid;

    use super::*;

    /// Far beyond all that is waited for here.
    const SOON: Duration = Duration::from_secs(30);

    /// An event without fields: version, flags, kind, no sequence number.
    fn event(kind: u16) -> Packet {
        let [low, high] = kind.to_le_bytes();
        Packet { bytes: vec![1, 0, low, high, 0, 0, 0, 0], fds: vec![] }
    }

    fn say(monitor: BorrowedFd<'_>, packet: &Packet) {
        socket::send(monitor, packet).unwrap();
    }

    async fn hear(news: &mut mpsc::Receiver<News>) -> News {
        timeout(SOON, news.recv()).await.unwrap().unwrap()
    }

    fn running() -> (Child, OwnedFd) {
        // Should the test fail, nobody is to wait for it.
        let mut command = Command::new("sleep");
        command.arg("60").stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        (child, pidfd)
    }

    #[tokio::test]
    async fn a_newer_monitors_event_is_ignored_and_what_follows_is_heard() {
        let (ours, theirs) = seqpacket_pair().unwrap();
        let (_monitor, mut news) = Monitor::over(ours, None).unwrap();
        say(theirs.as_fd(), &event(0x2ff));
        say(theirs.as_fd(), &FromMonitor::Event(Event::StdinClosed).encode());
        assert!(matches!(hear(&mut news).await, News::Event(Event::StdinClosed)));
    }

    #[tokio::test]
    async fn a_connection_ends_with_what_is_no_message_though_the_monitor_lives() {
        let (ours, theirs) = seqpacket_pair().unwrap();
        let (mut child, pidfd) = running();
        let (monitor, mut news) = Monitor::over(ours, Some(pidfd)).unwrap();
        say(theirs.as_fd(), &Packet { bytes: vec![1], fds: vec![] });
        assert!(matches!(hear(&mut news).await, News::Gone));
        let asked = monitor.ask(Request::State, SOON).await;
        assert!(matches!(asked, Err(MonitorError::Gone)), "{asked:?}");
        // It is reaped all the same when it ends.
        child.kill().unwrap();
        let gone = async {
            while rustix::process::test_kill_process(Pid::from_child(&child)).is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_monitor_that_quits_has_gone_for_whoever_asks_before_that_is_noticed() {
        // Who is first, the one that asks or the one that listens, is not ours to say.
        for _ in 0..100 {
            let (ours, theirs) = seqpacket_pair().unwrap();
            let (monitor, _news) = Monitor::over(ours, None).unwrap();
            drop(theirs);
            let told = monitor.tell(Request::Release, SOON).await;
            assert!(matches!(told, Err(MonitorError::Gone)), "{told:?}");
        }
    }

    #[test]
    fn nobody_listens_where_the_socket_is_missing_or_nobodys_but_a_full_one_is_somebodys() {
        let directory = tempfile::tempdir().unwrap();
        let connected = || connect_in(directory.path());
        let error = |source| MonitorError::Connect { path: "/none".into(), source };
        assert!(error(connected().unwrap_err()).nobody_listens());

        let flags = SockFlag::SOCK_CLOEXEC;
        let listener =
            nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
        let listener = listener.unwrap();
        let address = UnixAddr::new(&directory.path().join("monitor.sock")).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &address).unwrap();
        let backlog = nix::sys::socket::Backlog::new(1).unwrap();
        nix::sys::socket::listen(&listener, backlog).unwrap();
        let mut waiting = vec![];
        let full = loop {
            match connected() {
                Ok(socket) => waiting.push(socket),
                Err(full) => break full,
            }
        };
        assert!(!error(full).nobody_listens());

        drop(listener);
        assert!(error(connected().unwrap_err()).nobody_listens());
    }
}
