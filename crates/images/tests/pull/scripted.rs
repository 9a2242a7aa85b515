//! A registry that misbehaves as told, and remembers what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::support::{Blob, TestImage};

/// What happens instead of a proper answer.
#[derive(Clone)]
pub(crate) enum Fault {
    Status(u16),
    /// So many bytes of the body, then the connection breaks.
    Cut(usize),
    /// So many bytes of the body, then nothing more ever.
    Stall(usize),
    /// A byte now and then, never silent for long.
    Trickle,
    /// Other bytes than were asked for.
    Body(Vec<u8>),
    /// The whole blob, whatever range was asked for.
    NoRange(Box<Fault>),
    /// The range that begins here, whatever range was asked for; none does not say so.
    Range(Option<usize>),
    /// Go elsewhere.
    Redirect(String),
    /// Too busy, ask again after so many seconds.
    Busy(u64),
    /// The answer waits for a permit.
    Hold(Arc<Semaphore>),
    /// So many bytes, and the rest after a permit.
    Pause(usize, Arc<Semaphore>),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// Where the range begins.
    pub(crate) offset: Option<usize>,
    pub(crate) authorization: Option<String>,
    /// The client has shown a certificate.
    pub(crate) is_certified: bool,
}

#[derive(Default)]
struct Script {
    content: HashMap<String, Blob>,
    /// By part of the path, how often, and what.
    faults: Vec<(String, usize, Fault)>,
    requests: Vec<Request>,
    /// User and password that buy a token; none if anybody may read.
    guard: Option<(&'static str, &'static str)>,
    tokens: usize,
}

pub(crate) struct Scripted {
    pub(crate) host: String,
    script: Arc<Mutex<Script>>,
    server: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Scripted {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub(crate) async fn start_at(address: &str) -> Self {
        Self::run(address, None).await
    }

    pub(crate) async fn start_tls(tls: TlsAcceptor) -> Self {
        Self::start_tls_at("127.0.0.1:0", tls).await
    }

    pub(crate) async fn start_tls_at(address: &str, tls: TlsAcceptor) -> Self {
        Self::run(address, Some(tls)).await
    }

    async fn run(address: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let script = Arc::new(Mutex::new(Script::default()));
        let (served, own_host) = (Arc::clone(&script), host.clone());
        let server = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (script, host) = (Arc::clone(&served), own_host.clone());
                let tls = tls.clone();
                // A connection that breaks is the point.
                tokio::spawn(async move {
                    let Some(tls) = tls else {
                        return drop(serve(connection, script, host, false).await);
                    };
                    let Ok(connection) = tls.accept(connection).await else { return };
                    let is_certified = connection.get_ref().1.peer_certificates().is_some();
                    drop(serve(connection, script, host, is_certified).await);
                });
            }
        });
        Self { host, script, server }
    }

    pub(crate) fn put(&self, name: &str, image: &TestImage) {
        let (repository, tag) = name.split_once(':').unwrap();
        for blob in image.blobs() {
            self.put_at(format!("/v2/{repository}/blobs/{}", blob.digest()), blob);
        }
        for reference in [tag, &image.manifest.digest().to_string()] {
            self.put_at(format!("/v2/{repository}/manifests/{reference}"), &image.manifest);
        }
    }

    pub(crate) fn put_at(&self, path: String, blob: &Blob) {
        self.script.lock().unwrap().content.insert(path, blob.clone());
    }

    /// The next `times` requests whose path contains `path` meet with `fault`.
    pub(crate) fn fail(&self, path: impl ToString, times: usize, fault: Fault) {
        self.script.lock().unwrap().faults.push((path.to_string(), times, fault));
    }

    /// No more faults.
    pub(crate) fn heal(&self) {
        self.script.lock().unwrap().faults.clear();
    }

    /// From now on a token is needed, and only this user gets one.
    pub(crate) fn guard(&self, user: &'static str, password: &'static str) {
        self.script.lock().unwrap().guard = Some((user, password));
    }

    /// The tokens given out so far are worth nothing any more.
    pub(crate) fn revoke_tokens(&self) {
        self.script.lock().unwrap().tokens += 1;
    }

    pub(crate) fn requests(&self, path: impl ToString) -> Vec<Request> {
        let script = self.script.lock().unwrap();
        let path = path.to_string();
        script.requests.iter().filter(|request| request.path.contains(&path)).cloned().collect()
    }
}

async fn serve(
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
    script: Arc<Mutex<Script>>,
    host: String,
    is_certified: bool,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await?);
        // The beginning of TLS, which is not spoken here.
        if head == [0x16] {
            return Ok(());
        }
    }
    let head = String::from_utf8(head).unwrap();
    let request = Request { is_certified, ..parse(&head) };
    let (answer, fault) = {
        let mut script = script.lock().unwrap();
        script.requests.push(request.clone());
        let fault = script
            .faults
            .iter_mut()
            .find(|(path, times, _)| *times > 0 && request.path.contains(path.as_str()));
        let fault = fault.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        });
        (answer(&script, &request, &host), fault)
    };
    perform(&mut connection, answer, fault, request.offset).await
}

fn parse(head: &str) -> Request {
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let range = header("range");
    // Proxies are told the whole URL.
    let path = head.split(' ').nth(1).unwrap();
    let path = match path.strip_prefix("http://") {
        Some(rest) => &rest[rest.find('/').unwrap()..],
        None => path,
    };
    Request {
        path: path.to_owned(),
        offset: range.map(|range| {
            range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
        }),
        authorization: header("authorization"),
        is_certified: false,
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn answer(script: &Script, request: &Request, host: &str) -> Answer {
    let plain = |status| Answer { status, headers: String::new(), body: vec![] };
    if let Some((user, password)) = script.guard {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let authorization = request.authorization.as_deref().unwrap_or_default();
        let token = format!("token-{}", script.tokens);
        if request.path.starts_with("/token") {
            return match authorization == format!("Basic {basic}") {
                true => Answer { body: format!("{{\"token\":\"{token}\"}}").into(), ..plain(200) },
                false => plain(401),
            };
        }
        if authorization != format!("Bearer {token}") {
            let headers = format!(
                "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"test\"\r\n"
            );
            return Answer { headers, ..plain(401) };
        }
    }
    if request.path == "/v2/" {
        return plain(200);
    }
    let path = request.path.split('?').next().unwrap();
    match script.content.get(path) {
        Some(blob) => Answer {
            headers: format!("Content-Type: {}\r\n", blob.media_type),
            body: blob.bytes.clone(),
            ..plain(200)
        },
        None => plain(404),
    }
}

async fn perform(
    connection: &mut (impl AsyncWrite + Unpin),
    mut answer: Answer,
    fault: Option<Fault>,
    mut offset: Option<usize>,
) -> std::io::Result<()> {
    let fault = match fault {
        Some(Fault::NoRange(fault)) => {
            offset = None;
            Some(*fault)
        }
        Some(Fault::Range(start)) => {
            offset = start.or(offset);
            Some(Fault::Range(start))
        }
        fault => fault,
    };
    match &fault {
        Some(Fault::Status(status)) => {
            answer = Answer { status: *status, headers: String::new(), body: vec![] };
        }
        Some(Fault::Redirect(location)) => {
            let headers = format!("Location: {location}\r\n");
            answer = Answer { status: 307, headers, body: vec![] };
        }
        Some(Fault::Busy(seconds)) => {
            let headers = format!("Retry-After: {seconds}\r\n");
            answer = Answer { status: 429, headers, body: vec![] };
        }
        Some(Fault::Body(body)) => answer.body = body.clone(),
        Some(Fault::Hold(gate)) => drop(gate.acquire().await),
        Some(
            Fault::Cut(_)
            | Fault::Stall(_)
            | Fault::Trickle
            | Fault::Pause(..)
            | Fault::NoRange(_)
            | Fault::Range(_),
        )
        | None => {}
    }
    if let (200, Some(offset)) = (answer.status, offset) {
        let whole = answer.body.len();
        answer.body.drain(..offset);
        answer.status = 206;
        if !matches!(fault, Some(Fault::Range(None))) {
            let last = whole.saturating_sub(1);
            answer.headers += &format!("Content-Range: bytes {offset}-{last}/{whole}\r\n");
        }
    }
    let head = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n",
        answer.status,
        answer.body.len(),
        answer.headers
    );
    connection.write_all(head.as_bytes()).await?;
    match fault {
        Some(Fault::Cut(length)) => connection.write_all(&answer.body[..length]).await?,
        Some(Fault::Stall(length)) => {
            connection.write_all(&answer.body[..length]).await?;
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Some(Fault::Trickle) => {
            for byte in answer.body {
                connection.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Some(Fault::Pause(length, gate)) => {
            connection.write_all(&answer.body[..length]).await?;
            drop(gate.acquire().await);
            connection.write_all(&answer.body[length..]).await?;
        }
        _ => connection.write_all(&answer.body).await?,
    }
    connection.shutdown().await
}
