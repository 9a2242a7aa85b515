//! One caller's conversation with one registry: authorization, manifests, blobs.
//!
//! A session has a client, and so a token cache, of its own: a token that one caller's credentials
//! bought must never serve another caller. The HTTP client neither retries nor reports a refused
//! token request by itself; both are done here.

use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use tracing::debug;

use crate::auth::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::ACCEPTED;
use crate::registries::Endpoint;

/// How often a request is made before its failure counts.
pub(crate) const TRIES: u32 = 4;
/// The wait before the second try; each further one waits three times as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A blob's bytes from some offset on.
pub(crate) struct BlobStream {
    pub(crate) stream: BoxStream<'static, std::io::Result<Bytes>>,
    /// Where the stream begins: registries that know no ranges start over.
    pub(crate) offset: u64,
}

pub(crate) struct Session {
    client: Client,
    auth: RegistryAuth,
    /// For authorization, and the base of every other name.
    repository: oci_client::Reference,
    /// What errors call the image.
    image: String,
}

impl Session {
    /// Connects to `endpoint` and gets what authorization it asks for. An insecure one is tried
    /// by HTTPS without verification first, then by plain HTTP.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        credentials: &Credentials,
        stall: Duration,
        image: &str,
    ) -> Result<Self, Error> {
        install_crypto();
        let https = Self::connect(endpoint, credentials, stall, image, ClientProtocol::Https);
        match https.await {
            Err(Error::RegistryUnavailable { .. }) if endpoint.insecure => {
                let http = ClientProtocol::Http;
                Self::connect(endpoint, credentials, stall, image, http).await
            }
            answer => answer,
        }
    }

    async fn connect(
        endpoint: &Endpoint,
        credentials: &Credentials,
        stall: Duration,
        image: &str,
        protocol: ClientProtocol,
    ) -> Result<Self, Error> {
        let config = ClientConfig {
            protocol,
            accept_invalid_certificates: endpoint.insecure,
            read_timeout: Some(stall),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: concat!("cria/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        // Never `Client::new`: on an error that falls back to other settings than these.
        let client = Client::try_from(config).map_err(|error| refused(image, error))?;
        let session = Self {
            client,
            auth: match credentials {
                Credentials::Anonymous => RegistryAuth::Anonymous,
                Credentials::Basic { username, password } => {
                    RegistryAuth::Basic(username.clone(), password.clone())
                }
                Credentials::Bearer { token } => RegistryAuth::Bearer(token.clone()),
            },
            repository: oci_client::Reference::with_tag(
                endpoint.host.clone(),
                endpoint.repository.clone(),
                String::new(),
            ),
            image: image.to_owned(),
        };
        session.authorize().await?;
        Ok(session)
    }

    /// Asks for a token, if the registry wants one. Called before any other request, which would
    /// ask by itself but go out without a token if that failed.
    pub(crate) async fn authorize(&self) -> Result<(), Error> {
        let authorized = self.client.auth(&self.repository, &self.auth, RegistryOperation::Pull);
        authorized.await.map(drop).map_err(|error| refused(&self.image, error))
    }

    /// The manifest by digest if given, else by tag; with its verified digest.
    pub(crate) async fn manifest(
        &self,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<(Bytes, Digest), Error> {
        let (registry, repository) =
            (self.repository.registry().to_owned(), self.repository.repository().to_owned());
        let name = match (digest, tag) {
            (Some(digest), _) => {
                oci_client::Reference::with_digest(registry, repository, digest.to_string())
            }
            (None, tag) => oci_client::Reference::with_tag(
                registry,
                repository,
                tag.unwrap_or("latest").to_owned(),
            ),
        };
        let bytes = self.manifest_bytes(&name).await?;
        let actual = Digest::of(&bytes);
        match digest {
            Some(expected) if expected != actual => {
                let image = self.image.clone();
                Err(Error::DigestMismatch { image, what: "the manifest", expected, actual })
            }
            Some(_) | None => Ok((bytes, actual)),
        }
    }

    /// A blob from `offset` on. One try: the caller knows how far it has got. Not verified.
    pub(crate) async fn blob(&self, digest: Digest, offset: u64) -> Result<BlobStream, Error> {
        let digest = digest.to_string();
        // A range from the first byte on too: it spares the client's own hashing of the blob.
        let answer =
            self.client.pull_blob_stream_partial(&self.repository, digest.as_str(), offset, None);
        match answer.await.map_err(|error| refused(&self.image, error))? {
            BlobResponse::Full(blob) => Ok(BlobStream { stream: blob.stream, offset: 0 }),
            BlobResponse::Partial(blob) => Ok(BlobStream { stream: blob.stream, offset }),
        }
    }

    /// Asks for a manifest, again while the registry is merely unavailable.
    async fn manifest_bytes(&self, name: &oci_client::Reference) -> Result<Bytes, Error> {
        let mut tried = 0;
        loop {
            let answer = self.client.pull_manifest_raw(name, &self.auth, ACCEPTED).await;
            match answer.map_err(|error| refused(&self.image, error)) {
                Ok((bytes, _)) => return Ok(bytes),
                Err(Error::RegistryUnavailable { .. }) if tried + 1 < TRIES => {
                    tried += 1;
                    debug!(image = self.image, tried, "registry unavailable, trying again");
                    tokio::time::sleep(wait_before(tried)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn image(&self) -> &str {
        &self.image
    }
}

/// How long to wait after `tried` failures in a row.
pub(crate) fn wait_before(tried: u32) -> Duration {
    FIRST_WAIT * 3_u32.saturating_pow(tried.saturating_sub(1))
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

/// What a failed request means to whoever pulls `image`.
fn refused(image: &str, error: OciDistributionError) -> Error {
    enum Meaning {
        Unauthorized,
        NotFound,
        Unavailable,
        Damaged,
    }
    let meaning = match &error {
        OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::ServerError { code: 401 | 403, .. } => Meaning::Unauthorized,
        OciDistributionError::ServerError { code: 404, .. } => Meaning::NotFound,
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|error| &error.code) {
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Meaning::Unauthorized,
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NameInvalid
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown
                    | OciErrorCode::NotFound,
                ) => Meaning::NotFound,
                _ => Meaning::Unavailable,
            }
        }
        OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
            if let (Ok(expected), Ok(actual)) = (expected.parse(), actual.parse()) {
                let image = image.to_owned();
                return Error::DigestMismatch { image, what: "the manifest", expected, actual };
            }
            Meaning::Damaged
        }
        OciDistributionError::DigestError(_)
        | OciDistributionError::ManifestEncodingError(_)
        | OciDistributionError::ManifestParsingError(_) => Meaning::Damaged,
        _ => Meaning::Unavailable,
    };
    let image = image.to_owned();
    let source = Arc::new(error);
    match meaning {
        Meaning::Unauthorized => Error::Unauthorized { image, source },
        Meaning::NotFound => Error::NotFound { image, source },
        Meaning::Unavailable => Error::RegistryUnavailable { image, source },
        Meaning::Damaged => Error::Corrupt { image, what: "manifest".to_owned(), source },
    }
}
