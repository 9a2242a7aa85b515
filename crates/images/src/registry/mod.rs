//! One caller's conversation with one registry: authorization, manifests, blobs.
//!
//! Connections are shared by all who speak to a host (see [`connection`]). A session is not: what
//! one caller's credentials bought must never serve another caller.

mod answer;
mod authorization;
mod challenge;
mod connection;
mod file;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE,
};
use reqwest::{Response, StatusCode, Url};
use tracing::debug;

use crate::auth::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::ACCEPTED;
use crate::registries::Endpoint;
use answer::{failed, refused, unreachable};
use authorization::Authorization;
pub(crate) use connection::Connections;
use connection::Reach;

/// How often a request is made before its failure counts.
pub(crate) const TRIES: u32 = 4;
/// The wait before the second try; each further one waits three times as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// A registry that asks for more patience than this is left to the caller's own next try.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest wait between two tries in mid-pull that a registry does not ask for.
const LONGEST_OWN_WAIT: Duration = Duration::from_secs(10);
/// What part of a stall somebody waits for an answer in vain before another place is asked that may have
/// the image, too: 5 seconds by default. A busy registry says so sooner.
const SHARE_OF_STALL: u32 = 6;
/// How long a download may go on in vain, in stalls of a connection: 5 minutes by default. Registries
/// restart, networks are mended, and what a pull has of unfinished layers is lost with it.
const PATIENCE: u32 = 10;

/// What the distribution specification lets registries refuse to take.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// A blob's bytes from some offset on.
pub(crate) struct BlobStream {
    pub(crate) stream: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    /// Where the stream begins: registries that know no ranges start over.
    pub(crate) offset: u64,
}

pub(crate) struct Session {
    reach: Reach,
    /// `scheme://host/v2/repository/`.
    base: Url,
    authorization: Authorization,
    host: String,
    /// What errors call the image.
    image: String,
    is_last_resort: bool,
    has_layers_begun: AtomicBool,
}

impl Session {
    /// Speaks for `credentials` at `endpoint`. Nothing is asked for yet, but for an insecure host
    /// whether it knows TLS at all.
    pub(crate) async fn open(
        connections: &Connections,
        endpoint: &Endpoint,
        credentials: Credentials,
        image: &str,
    ) -> Result<Self, Error> {
        let host = connections.host(endpoint).await.map_err(|error| unreachable(image, error))?;
        let base = format!("{}://{}/v2/{}/", host.scheme, host.name, endpoint.repository);
        let base = base.parse().map_err(|error| failed(image, error))?;
        let reach = host.reach;
        let authorization = Authorization::new(credentials, &endpoint.repository, reach.clone());
        Ok(Self {
            reach,
            base,
            authorization,
            host: host.name,
            image: image.to_owned(),
            is_last_resort: false,
            has_layers_begun: AtomicBool::new(false),
        })
    }

    /// Says that there is no other place to ask if this one fails.
    #[must_use]
    pub(crate) fn into_last_resort(self) -> Self {
        Self { is_last_resort: true, ..self }
    }

    /// The manifest by digest if given, else by tag; with its verified digest.
    pub(crate) async fn manifest(
        &self,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<(Bytes, Digest), Error> {
        let name = match digest {
            Some(digest) => digest.to_string(),
            None => tag.unwrap_or("latest").to_owned(),
        };
        let bytes = self.manifest_bytes(&format!("manifests/{name}")).await?;
        let actual = Digest::of(&bytes);
        match digest {
            Some(expected) if expected != actual => {
                let image = self.image.clone();
                Err(Error::DigestMismatch { image, what: "the manifest", expected, actual })
            }
            Some(_) | None => Ok((bytes, actual)),
        }
    }

    /// A blob from `offset` on, or from before it. One try: the caller knows how far it has got. Not
    /// verified.
    pub(crate) async fn blob(&self, digest: Digest, offset: u64) -> Result<BlobStream, Error> {
        let mut answer = self.blob_from(digest, offset).await?;
        let mut start = start_of(&answer).filter(|start| *start <= offset);
        if start.is_none() {
            debug!(image = self.image, %digest, offset, "another range than asked for, starting over");
            answer = self.blob_from(digest, 0).await?;
            start = start_of(&answer).filter(|start| *start == 0);
        }
        let offset = start.ok_or_else(|| failed(&self.image, WrongRange))?;
        Ok(BlobStream { stream: answer.bytes_stream().boxed(), offset })
    }

    async fn blob_from(&self, digest: Digest, offset: u64) -> Result<Response, Error> {
        let mut headers = HeaderMap::new();
        // What is hashed is what is stored: no encoding on the way.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if offset > 0 {
            let range = format!("bytes={offset}-");
            headers.insert(RANGE, range.try_into().expect("digits are a header's value"));
        }
        self.get(&format!("blobs/{digest}"), &headers).await
    }

    /// Asks for a manifest, again while the registry is merely unavailable; of a place that is not the
    /// last resort no more than once if it takes long to say so.
    async fn manifest_bytes(&self, path: &str) -> Result<Bytes, Error> {
        let mut headers = HeaderMap::new();
        let accepted = ACCEPTED.join(", ").try_into().expect("media types are a header's value");
        headers.insert(ACCEPT, accepted);
        let mut tried = 0;
        loop {
            let asked = Instant::now();
            let answer = async {
                let answer = self.get(path, &headers).await?;
                read_bounded(answer, LARGEST_MANIFEST, "a manifest", &self.image).await
            };
            match answer.await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => {
                    tried += 1;
                    let wait = wait_before_next_try(&error, tried);
                    let was_long = asked.elapsed() >= self.reach.stall() / SHARE_OF_STALL;
                    if was_long && matches!(error, Error::RegistryUnavailable { .. }) {
                        self.reach.avoid(&self.host);
                    }
                    let Some(wait) = wait.filter(|_| self.is_last_resort || !was_long) else {
                        return Err(error);
                    };
                    debug!(image = self.image, tried, "registry unavailable, trying again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Asks once; when the registry wants to know who asks, or does not take a token any more,
    /// once again with what it wants.
    async fn get(&self, path: &str, headers: &HeaderMap) -> Result<Response, Error> {
        let url = self.base.join(path).map_err(|error| failed(&self.image, error))?;
        let ask = async |authorization: Option<HeaderValue>| {
            let mut headers = headers.clone();
            headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
            self.reach.get(&url, headers).await.map_err(|error| failed(&self.image, error))
        };
        let shown = self.authorization.current(&self.image).await?;
        let mut answer = ask(shown.clone()).await?;
        // Whoever a redirect led to is nobody to tell who asks: its challenge names its own realm.
        let is_registrys = answer.url().origin() == url.origin();
        if answer.status() == StatusCode::UNAUTHORIZED && is_registrys {
            let challenges = challenge::parse(answer.headers());
            match self.authorization.renewed(&challenges, shown.as_ref(), &self.image).await? {
                Some(value) => answer = ask(Some(value)).await?,
                // There is nothing else to show: the refusal stands.
                None => return Err(refused(&self.image, answer).await),
            }
        }
        if !answer.status().is_success() {
            return Err(refused(&self.image, answer).await);
        }
        Ok(answer)
    }

    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    pub(crate) fn is_last_resort(&self) -> bool {
        self.is_last_resort
    }

    /// Set once a layer's first bytes are here.
    pub(crate) fn has_layers_begun(&self) -> &AtomicBool {
        &self.has_layers_begun
    }

    /// How long a download may go on in vain.
    pub(crate) fn patience(&self) -> Duration {
        self.reach.stall() * PATIENCE
    }

    /// The registry and its repository, as nothing else is called.
    pub(crate) fn repository(&self) -> String {
        self.base.to_string()
    }

    /// The registry, as no other is called.
    pub(crate) fn registry(&self) -> String {
        self.base.origin().ascii_serialization()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a part of the blob, where all of it was asked for")]
struct WrongRange;

/// Where in the blob an answer begins; none if it is a part and does not say which.
fn start_of(answer: &Response) -> Option<u64> {
    match answer.status() {
        // `bytes 5-9/10`
        StatusCode::PARTIAL_CONTENT => {
            let range = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
            range.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
        }
        _ => Some(0),
    }
}

/// How long to wait before a request that has failed `tried` times in a row is made again; none if
/// another try is pointless, or somebody else's to make.
pub(crate) fn wait_before_next_try(error: &Error, tried: u32) -> Option<Duration> {
    let wait = wait(error, tried, Duration::MAX)?;
    (tried < TRIES && wait <= LONGEST_WAIT).then_some(wait)
}

/// As [`wait_before_next_try`], for as often as `patience` has room for it.
pub(crate) fn wait_within(patience: Duration, error: &Error, tried: u32) -> Option<Duration> {
    wait(error, tried, LONGEST_OWN_WAIT).filter(|wait| *wait < patience)
}

fn wait(error: &Error, tried: u32, longest: Duration) -> Option<Duration> {
    let Error::RegistryUnavailable { retry_after, .. } = error else { return None };
    let own = FIRST_WAIT * 3_u32.saturating_pow(tried.saturating_sub(1));
    let own = own.min(longest);
    Some(retry_after.map_or(own, |asked| asked.max(own)))
}

/// Reads an answer of at most `most` bytes.
async fn read_bounded(
    mut answer: Response,
    most: u64,
    what: &str,
    image: &str,
) -> Result<Bytes, Error> {
    let too_long = || Error::Unsupported {
        image: image.to_owned(),
        what: format!("{what} of more than {most} bytes"),
    };
    if answer.content_length().is_some_and(|length| length > most) {
        return Err(too_long());
    }
    let mut content = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| unreachable(image, error))? {
        if (content.len() + piece.len()) as u64 > most {
            return Err(too_long());
        }
        content.extend_from_slice(&piece);
    }
    Ok(content.freeze())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_failed_request_is_tried_again_later_and_later_and_when_the_registry_says() {
        let unavailable = |seconds: Option<u64>| Error::RegistryUnavailable {
            image: String::new(),
            retry_after: seconds.map(Duration::from_secs),
            source: Arc::new(std::io::Error::other("busy")),
        };
        for (asked, tried, expected) in [
            (None, 1, Some(200)),
            (None, 2, Some(600)),
            (None, 3, Some(1800)),
            (None, 4, None),
            (Some(2), 1, Some(2000)),
            (Some(0), 1, Some(200)),
            (Some(30), 3, Some(30_000)),
            (Some(31), 1, None),
        ] {
            let wait = wait_before_next_try(&unavailable(asked), tried);
            assert_eq!(wait, expected.map(Duration::from_millis), "{asked:?} {tried}");
        }
        let gone = Error::NoSuchImage { image: String::new() };
        assert_eq!(wait_before_next_try(&gone, 1), None);

        // In mid-pull.
        for (patience, asked, tried, expected) in [
            (300, None, 1, Some(200)),
            (300, None, 4, Some(5400)),
            (300, None, 5, Some(10_000)),
            (300, None, 500, Some(10_000)),
            (10, None, 500, None),
            (300, Some(90), 1, Some(90_000)),
            (60, Some(90), 1, None),
            (0, None, 1, None),
        ] {
            let wait = wait_within(Duration::from_secs(patience), &unavailable(asked), tried);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(wait, expected, "{patience} {asked:?} {tried}");
        }
        assert_eq!(wait_within(Duration::MAX, &gone, 1), None);
    }
}
