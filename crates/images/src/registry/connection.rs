//! Connections to registries: one client per host that has certificates of its own, and one for all
//! others.
//!
//! Clients outlive pulls, so that the next one need not shake hands again. Proxies are the
//! environment's (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), certificates the system's and those of
//! `certs.d` (see [`Certificates`]). HTTP/1.1: a connection per layer has a window of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tracing::debug;

use super::answer::{failed, unreachable};
use crate::certificates::{Certificates, HostCertificates};
use crate::error::Error;
use crate::registries::Endpoint;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Registries close idle connections after about as long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
const MOST_REDIRECTS: usize = 5;
/// For so long a host that kept somebody waiting in vain is asked after those that may be asked instead.
const AVOIDANCE: Duration = Duration::from_secs(60);
/// Docker Hub as images name it.
const DOCKER_IO: &str = "docker.io";
/// Where its images really are.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// All connections. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    certificates: Certificates,
    stall: Duration,
    clients: Mutex<HashMap<Key, Client>>,
    /// What insecure hosts were found to speak.
    schemes: Mutex<HashMap<String, &'static str>>,
    /// Hosts that kept somebody waiting in vain, and when.
    avoided: Mutex<HashMap<String, Instant>>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    /// The folder in `certs.d` that says how; none has the system's trust alone.
    folder: Option<String>,
    insecure: bool,
}

/// One registry's host.
pub(super) struct Host {
    pub(super) scheme: &'static str,
    pub(super) name: String,
    pub(super) reach: Reach,
}

/// How to speak to a server, and to those that it leads to. What `certs.d` says of one host is never
/// used for another.
#[derive(Clone)]
pub(super) struct Reach {
    connections: Connections,
    /// What an insecure server leads to is no better than the server.
    insecure: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum GetError {
    /// Without its URL: one that a registry redirects to may carry a signature.
    #[error(transparent)]
    Http(reqwest::Error),
    #[error("too many redirects")]
    TooManyRedirects,
    #[error("redirect from TLS to plain HTTP")]
    Unprotected,
}

impl From<reqwest::Error> for GetError {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error.without_url())
    }
}

impl Connections {
    /// A connection on which nothing arrives for as long as `stall` is given up.
    pub(crate) fn new(certificates: Certificates, stall: Duration) -> Self {
        install_crypto();
        let (clients, schemes, avoided) = Default::default();
        Self { shared: Arc::new(Shared { certificates, stall, clients, schemes, avoided }) }
    }

    /// An insecure host is tried by TLS, without verification, and if that fails is spoken to
    /// without. One that answers neither in time is not asked for anything else.
    pub(super) async fn host(&self, endpoint: &Endpoint) -> Result<Host, reqwest::Error> {
        let name = host_name(endpoint);
        let insecure = endpoint.insecure;
        let scheme = if insecure { self.scheme(name).await? } else { "https" };
        let reach = Reach { connections: self.clone(), insecure };
        Ok(Host { scheme, name: name.to_owned(), reach })
    }

    /// How to speak to a server that is no registry.
    pub(super) fn server(&self) -> Reach {
        Reach { connections: self.clone(), insecure: false }
    }

    async fn scheme(&self, host: &str) -> Result<&'static str, reqwest::Error> {
        let schemes = || self.shared.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = schemes().get(host) {
            return Ok(known);
        }
        let (tls, plain) = (format!("https://{host}/v2/"), format!("http://{host}/v2/"));
        // What is no host's name is refused later.
        let Ok(url) = Url::parse(&tls) else { return Ok("https") };
        let http = self.client(&url, true)?;
        let spoken = match http.get(tls).send().await {
            Ok(_) => Spoken { scheme: "https", is_certain: true },
            Err(no_tls) => {
                debug!(host, error = %no_tls.without_url(), "no TLS, trying without");
                let answer = match http.get(plain).send().await {
                    Err(silence) if silence.is_timeout() => {
                        self.avoid(host);
                        return Err(silence);
                    }
                    answer => answer.ok(),
                };
                let sends_to_tls = answer.as_ref().and_then(location);
                let sends_to_tls = sends_to_tls.is_some_and(|place| place.scheme() == "https");
                Spoken::by_plain_answer(answer.map(|answer| answer.status()), sends_to_tls)
            }
        };
        if spoken.is_certain {
            schemes().insert(host.to_owned(), spoken.scheme);
        }
        Ok(spoken.scheme)
    }

    /// Notes that a host keeps waiting who asks it.
    fn avoid(&self, host: &str) {
        let mut avoided = self.shared.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        avoided.retain(|_, noted| noted.elapsed() < AVOIDANCE);
        avoided.insert(host.to_owned(), Instant::now());
    }

    /// Whether others had better be asked first.
    pub(crate) fn is_avoided(&self, endpoint: &Endpoint) -> bool {
        let avoided = self.shared.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        avoided.get(host_name(endpoint)).is_some_and(|noted| noted.elapsed() < AVOIDANCE)
    }

    /// Finds out anew what an insecure host speaks: it may have changed, or never been heard well.
    pub(crate) fn forget_scheme(&self, endpoint: &Endpoint) {
        let name = host_name(endpoint);
        self.shared.schemes.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// For the host of `url`.
    fn client(&self, url: &Url, insecure: bool) -> Result<Client, reqwest::Error> {
        let own = self.shared.certificates.of_host(&names_of(url));
        let key = Key { folder: own.map(|(folder, _)| folder.to_owned()), insecure };
        let clients = || self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients().get(&key) {
            return Ok(known.clone());
        }
        let client = self.build(own.map(|(_, certificates)| certificates), insecure)?;
        Ok(clients().entry(key).or_insert(client).clone())
    }

    fn build(
        &self,
        own: Option<&HostCertificates>,
        insecure: bool,
    ) -> Result<Client, reqwest::Error> {
        let mut builder = Client::builder()
            .user_agent(concat!("cria/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(self.shared.stall)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .referer(false)
            // By hand: another host is another client's.
            .redirect(Policy::none())
            .tls_danger_accept_invalid_certs(insecure);
        if let Some(HostCertificates { authorities, identity }) = own.cloned() {
            if !authorities.is_empty() {
                builder = builder.tls_certs_merge(authorities);
            }
            if let Some(identity) = identity {
                builder = builder.identity(identity);
            }
        }
        builder.build()
    }
}

impl Reach {
    /// Asks for `url`, and follows to where it really is. Authorization is left behind on the way to
    /// another origin; from TLS nothing leads to where there is none.
    pub(super) async fn get(
        &self,
        url: &Url,
        mut headers: HeaderMap,
    ) -> Result<Response, GetError> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let http = self.connections.client(&url, self.insecure)?;
            let answer = http.get(url.clone()).headers(headers.clone()).send().await?;
            let Some(next) = location(&answer) else { return Ok(answer) };
            if url.scheme() == "https" && next.scheme() != "https" && !self.insecure {
                return Err(GetError::Unprotected);
            }
            if next.origin() != url.origin() {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        Err(GetError::TooManyRedirects)
    }

    /// Has others asked before this host for a while.
    pub(super) fn avoid(&self, host: &str) {
        self.connections.avoid(host);
    }

    /// How long a connection may be silent.
    pub(super) fn stall(&self) -> Duration {
        self.connections.shared.stall
    }

    /// A token is asked for where the registry says, but nobody's password travels in the clear
    /// for a registry that is trusted only with TLS. Redirects are not followed: the body of a
    /// request may be a secret.
    pub(super) fn token_client(&self, realm: &Url, image: &str) -> Result<Client, Error> {
        let refuse = |why: &str| failed(image, std::io::Error::other(why.to_owned()));
        match realm.scheme() {
            "https" => {}
            "http" if self.insecure => {}
            "http" => return Err(refuse("its token server does not use TLS")),
            _ => return Err(refuse("its token server is not reached by HTTP")),
        }
        self.connections.client(realm, self.insecure).map_err(|error| unreachable(image, error))
    }
}

/// Where an endpoint really is.
fn host_name(endpoint: &Endpoint) -> &str {
    match endpoint.host.as_str() {
        DOCKER_IO => DOCKER_HUB,
        name => name,
    }
}

/// What an insecure host seems to speak.
#[derive(Debug, PartialEq)]
struct Spoken {
    scheme: &'static str,
    /// Otherwise it is asked again the next time.
    is_certain: bool,
}

impl Spoken {
    /// After TLS has failed: by what `/v2/` answers to plain HTTP, if it does.
    fn by_plain_answer(status: Option<StatusCode>, sends_to_tls: bool) -> Self {
        let (scheme, is_certain) = match status {
            // A registry's own answers.
            Some(StatusCode::OK | StatusCode::UNAUTHORIZED) => ("http", true),
            // What servers of TLS say to those who have none: it fails only for now.
            Some(StatusCode::BAD_REQUEST | StatusCode::UPGRADE_REQUIRED) => ("https", false),
            Some(_) if sends_to_tls => ("https", false),
            // It does speak HTTP, and may be a registry that is out of order.
            Some(_) => ("http", false),
            // Nobody is there, or not yet. Most insecure registries have no TLS.
            None => ("http", false),
        };
        Self { scheme, is_certain }
    }
}

/// What the folder of a URL's host may be called in `certs.d`: like the host, with its port unless it
/// is the scheme's, or with that, too. Administrators know Docker Hub by the name that images have.
fn names_of(url: &Url) -> Vec<String> {
    let Some(host) = url.host_str() else { return Vec::new() };
    let plain = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let whole = url.port_or_known_default().map(|port| format!("{host}:{port}"));
    let hub = (plain == DOCKER_HUB).then(|| DOCKER_IO.to_owned());
    hub.into_iter().chain([plain]).chain(whole).collect()
}

/// Where else an answer says that what was asked for is.
fn location(answer: &Response) -> Option<Url> {
    let location = answer.status().is_redirection().then(|| answer.headers().get(LOCATION))??;
    answer.url().join(location.to_str().ok()?).ok()
}

/// rustls wants one provider per process; whoever comes first installs it.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            debug!("a TLS provider is already installed");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_what_answers_as_a_registry() {
        for (status, sends_to_tls, scheme, is_certain) in [
            (Some(200), false, "http", true),
            (Some(401), false, "http", true),
            (Some(204), false, "http", false),
            (Some(403), false, "http", false),
            (Some(404), false, "http", false),
            (Some(429), false, "http", false),
            (Some(502), false, "http", false),
            (Some(400), false, "https", false),
            (Some(301), false, "http", false),
            (Some(301), true, "https", false),
            (Some(426), false, "https", false),
            (None, false, "http", false),
        ] {
            let code = status.map(|status| StatusCode::from_u16(status).unwrap());
            let spoken = Spoken::by_plain_answer(code, sends_to_tls);
            assert_eq!(spoken, Spoken { scheme, is_certain }, "{status:?} {sends_to_tls}");
        }
    }

    #[test]
    fn certificates_are_looked_for_by_every_name_of_a_host() {
        for (url, names) in [
            ("https://r.example/v2/", &["r.example", "r.example:443"][..]),
            ("https://r.example:443/", &["r.example", "r.example:443"]),
            ("http://r.example/", &["r.example", "r.example:80"]),
            ("https://[::1]:5000/", &["[::1]:5000", "[::1]:5000"]),
            (
                "https://registry-1.docker.io/v2/",
                &["docker.io", "registry-1.docker.io", "registry-1.docker.io:443"],
            ),
            ("data:,x", &[]),
        ] {
            assert_eq!(names_of(&Url::parse(url).unwrap()), names, "{url}");
        }
    }
}
