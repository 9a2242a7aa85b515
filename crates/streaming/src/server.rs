//! The HTTP/1.1 server: routes, tokens, and the sessions that requests turn into.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming as Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;
use tracing::{debug, warn};

use crate::Timeouts;
use crate::activity::Activity;
use crate::client::{ClientError, Receiver, Sender};
use crate::command::Session;
use crate::hangup::{FAREWELL, HangUp};
use crate::socket::{Sink, Socket, Source, halves};
use crate::spdy;
use crate::spdy::forward::Forwarding;
use crate::status::Purpose;
use crate::tls::{Identity, Tls};
use crate::tokens::{Command, Connect, Pending, PortForward, Tokens, TooMany, Wanted};
use crate::upgrade::{self, Answer, Carrier, Spoken};
use crate::websocket::tunnel::tunnel;
use crate::websocket::{self, WebSocketError};

/// For a request's head. Clients on the same node need no time at all.
const REQUEST: Duration = Duration::from_secs(30);
/// Connections that have not shown a token yet. When there are more, the oldest makes way: clients
/// that mean it send their request at once.
const STRANGERS: usize = 128;
/// After a failed accept (no descriptors left, most likely) the next one is not tried at once.
const PAUSE: Duration = Duration::from_millis(100);

/// A client whose machine is gone is noticed after some of these.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The sessions that wait for their clients, and those under way.
pub struct Server {
    tokens: Mutex<Tokens<Pending>>,
    address: SocketAddr,
    timeouts: Timeouts,
    /// None: plain HTTP.
    tls: Option<Tls>,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// A server whose clients reach it at `address`, over TLS if it has an identity.
    pub fn new(address: SocketAddr, timeouts: Timeouts, identity: Option<Identity>) -> Self {
        let tls = identity.map(Tls::new);
        Self { tokens: Mutex::new(Tokens::new()), address, timeouts, tls }
    }

    /// Takes a renewed identity. A server that speaks plain HTTP goes on with that.
    pub fn use_identity(&self, identity: Identity) {
        if let Some(tls) = &self.tls {
            tls.use_identity(identity);
        }
    }

    /// Where a client finds what waits for it, once and for a minute.
    pub fn url(&self, pending: Pending) -> Result<String, TooMany> {
        let verb = match &pending {
            Pending::Exec(_) => "exec",
            Pending::Attach(_) => "attach",
            Pending::PortForward(_) => "portforward",
        };
        let token = self.tokens().insert(pending, Instant::now())?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}/{verb}/{token}", self.address))
    }

    /// Serves until the future is dropped; every session ends with it.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let (mut connections, mut strangers) = (JoinSet::new(), Strangers::default());
        loop {
            let accepted = loop {
                tokio::select! {
                    accepted = listener.accept() => break accepted,
                    Some(ended) = connections.join_next() => report(ended),
                }
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(Arc::clone(&self).connection(stream, strangers.admit()));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a streaming connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens<Pending>> {
        // Insertions and removals; a panic between them leaves nothing half-done.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request, and the session that it may turn into.
    async fn connection(self: Arc<Self>, stream: TcpStream, make_way: oneshot::Receiver<()>) {
        let hang_up = match prepare(&stream) {
            Ok(hang_up) => hang_up,
            Err(error) => return debug!(%error, "a streaming connection ended at once"),
        };
        // The head has a deadline of its own; this is for a client that does not shake hands, or
        // does not take its answer.
        let asked = timeout(2 * REQUEST, Box::pin(self.request(stream)));
        let asked = tokio::select! {
            asked = asked => asked,
            _ = make_way => return debug!("a streaming client that says nothing makes way"),
        };
        let asked = match asked {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => return debug!(%error, "a streaming request was none"),
            Err(_) => return debug!("a streaming client does not read its answer"),
        };
        match asked.accepted {
            Some(accepted) => {
                self.session(accepted, asked.socket, &asked.early, hang_up).await;
            }
            None => farewell(asked.socket).await,
        }
    }

    /// Answers the one request of a connection.
    async fn request(&self, stream: TcpStream) -> Result<Asked, RequestError> {
        let socket: Socket = match &self.tls {
            Some(tls) => {
                Either::Right(Box::new(tls.accept(stream).await.map_err(RequestError::Tls)?))
            }
            None => Either::Left(stream),
        };
        let accepted = Mutex::new(None);
        let service = service_fn(|request: Request<Body>| {
            let (answer, next) = self.answer(&request);
            *accepted.lock().unwrap_or_else(PoisonError::into_inner) = next;
            async { Ok::<_, Infallible>(answer) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(REQUEST);
        // No request here has a long head.
        http.max_buf_size(16 << 10);
        let served = http.serve_connection(TokioIo::new(socket), service).without_shutdown();
        let http1::Parts { io, read_buf, .. } = served.await?;
        let accepted = accepted.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Asked { socket: io.into_inner(), early: read_buf, accepted })
    }
}

/// Tells connections without a request to make way; those that have one do not listen any more.
#[derive(Default)]
struct Strangers(VecDeque<oneshot::Sender<()>>);

impl Strangers {
    fn admit(&mut self) -> oneshot::Receiver<()> {
        self.0.retain(|stranger| !stranger.is_closed());
        if self.0.len() >= STRANGERS {
            self.0.pop_front();
        }
        let (tell, make_way) = oneshot::channel();
        self.0.push_back(tell);
        make_way
    }
}

/// A connection after its request.
struct Asked {
    socket: Socket,
    /// What came with the request and belongs to the session.
    early: Bytes,
    accepted: Option<Accepted>,
}

/// Why a connection brought no request.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// What an upgraded connection is for.
enum Accepted {
    Command { command: Command, purpose: Purpose, spoken: Spoken },
    PortForward { connect: Connect, carrier: Carrier },
}

impl Server {
    /// The answer to a request, and what comes after it.
    fn answer(&self, request: &Request<Body>) -> (Answer, Option<Accepted>) {
        let Some((verb, token)) = route(request.uri().path()) else {
            return (upgrade::not_found(), None);
        };
        if !matches!(*request.method(), Method::GET | Method::POST) {
            let why = "405: Method Not Allowed";
            return (upgrade::text(StatusCode::METHOD_NOT_ALLOWED, why), None);
        }
        let pending = self.tokens().take(token, Instant::now());
        let (command, purpose) = match (verb, pending) {
            ("exec", Some(Pending::Exec(command))) => (command, Purpose::Exec),
            ("attach", Some(Pending::Attach(command))) => (command, Purpose::Attach),
            ("portforward", Some(Pending::PortForward(PortForward { ports, connect }))) => {
                let query = request.uri().query();
                return match upgrade::port_forward(request.headers(), &ports, query) {
                    Ok((answer, carrier)) => {
                        (answer, Some(Accepted::PortForward { connect, carrier }))
                    }
                    Err(answer) => (*answer, None),
                };
            }
            _ => return (upgrade::not_found(), None),
        };
        match upgrade::command(request.headers()) {
            Ok((answer, spoken)) => (answer, Some(Accepted::Command { command, purpose, spoken })),
            Err(answer) => (*answer, None),
        }
    }

    async fn session(&self, accepted: Accepted, socket: Socket, early: &[u8], hang_up: HangUp) {
        let (source, sink) = halves(socket, early);
        match accepted {
            Accepted::Command { command, purpose, spoken } => {
                let opened = open(source, sink, spoken, command.wanted);
                let (receiver, sender) = match timeout(self.timeouts.creation, opened).await {
                    Ok(Ok(Some(streams))) => streams,
                    Ok(Ok(None)) => return debug!("the client went before it began"),
                    Ok(Err(error)) => return debug!(%error, "the client's streams are refused"),
                    Err(_) => return debug!("the client did not open its streams in time"),
                };
                let (version, idle) = (spoken.version(), self.timeouts.idle);
                let session = Session { receiver, sender, hang_up, version, purpose, idle };
                // Away from this task's own state, which holds the handshake's.
                Box::pin(session.run(command.start)).await;
            }
            Accepted::PortForward { connect, carrier: Carrier::Spdy } => {
                let forwarding = Forwarding::new(source, sink, hang_up, connect, self.timeouts);
                Box::pin(forwarding.run()).await;
            }
            Accepted::PortForward { connect, carrier: Carrier::Channels { ports, coding } } => {
                let activity = Activity::new(self.timeouts.idle);
                let forwarding = websocket::forward::Forwarding {
                    source,
                    sink,
                    coding,
                    hang_up,
                    connect,
                    ports,
                    activity,
                };
                Box::pin(forwarding.run()).await;
            }
            Accepted::PortForward { connect, carrier: Carrier::Tunnel } => {
                let (spdy, carried) = tunnel(source, sink);
                let (source, sink) = halves(spdy, &[]);
                let forwarding = Forwarding::new(source, sink, hang_up, connect, self.timeouts);
                Box::pin(async {
                    let (mut forwarded, mut carried) = (pin!(forwarding.run()), pin!(carried));
                    // Each ends when the other has, or when the client does not read.
                    tokio::select! {
                        () = &mut forwarded => drop(timeout(FAREWELL, carried).await),
                        () = &mut carried => forwarded.await,
                    }
                })
                .await;
            }
        }
    }
}

/// The client's streams. `None`: it has gone instead.
async fn open(
    source: Source,
    sink: Sink,
    spoken: Spoken,
    wanted: Wanted,
) -> Result<Option<(Receiver, Sender)>, ClientError> {
    Ok(match spoken {
        Spoken::Spdy(version) => spdy::command::accept(source, sink, version, wanted)
            .await?
            .map(|(receiver, sender)| (Receiver::Spdy(receiver), Sender::Spdy(sender))),
        Spoken::WebSocket(version, coding) => {
            let spoken = (version, coding);
            let opened = websocket::command::accept(source, sink, spoken, wanted).await;
            let (receiver, sender) = opened.map_err(WebSocketError::Io)?;
            Some((Receiver::WebSocket(receiver), Sender::WebSocket(sender)))
        }
    })
}

/// `/VERB/TOKEN`.
fn route(path: &str) -> Option<(&str, &str)> {
    let (verb, token) = path.strip_prefix('/')?.split_once('/')?;
    (!token.is_empty() && !token.contains('/')).then_some((verb, token))
}

/// Small packets go at once, and a client whose machine has gone is not waited for until the idle
/// timeout.
fn prepare(stream: &TcpStream) -> io::Result<HangUp> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    HangUp::of(stream)
}

/// Lets the client read its answer before the connection ends.
async fn farewell(mut socket: Socket) {
    let goodbye = async {
        socket.shutdown().await?;
        let mut rest = [0; 256];
        while socket.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(FAREWELL, goodbye).await;
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "a streaming session ended badly");
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    #[test]
    fn the_oldest_stranger_makes_way_for_one_too_many() {
        let mut strangers = Strangers::default();
        let mut all: Vec<_> = (0..STRANGERS).map(|_| strangers.admit()).collect();
        all.remove(1).close();
        let _room = strangers.admit();
        assert!(all.iter_mut().all(|one| one.try_recv() == Err(TryRecvError::Empty)));
        let _more = strangers.admit();
        assert_eq!(all[0].try_recv(), Err(TryRecvError::Closed));
        assert_eq!(all[1].try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn only_a_verb_and_a_token_are_a_route() {
        assert_eq!(route("/exec/abcdefgh"), Some(("exec", "abcdefgh")));
        for path in ["", "/", "/exec", "/exec/", "exec/a", "/exec/a/b", "//a/"] {
            assert_eq!(route(path), None, "{path}");
        }
    }
}
