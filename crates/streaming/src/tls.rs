//! Who the server is to its clients, and what it then speaks to them: TLS 1.2 or 1.3.
//!
//! Certificates are renewed under a running server, so an identity is a value that is replaced
//! whole; sessions under way keep the one they began with.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A chain of certificates and the key of the first.
#[derive(Clone)]
pub struct Identity(Arc<ServerConfig>);

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificates cannot be read")]
    Certificates(#[source] pem::Error),
    #[error("there is no certificate")]
    NoCertificate,
    #[error("there is no private key that can be read")]
    Key(#[source] pem::Error),
    #[error("the certificate and the key cannot be used")]
    Unusable(#[from] rustls::Error),
}

impl Identity {
    /// From files in PEM; both may be one.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(IdentityError::Certificates)?;
        if chain.is_empty() {
            return Err(IdentityError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(IdentityError::Key)?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            // Also sees whether the key is the certificate's.
            .with_single_cert(chain, key)?;
        Ok(Self(Arc::new(config)))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identity")
    }
}

/// The identity that the next client is shown.
#[derive(Debug)]
pub(crate) struct Tls(RwLock<Identity>);

impl Tls {
    pub(crate) fn new(identity: Identity) -> Self {
        Self(RwLock::new(identity))
    }

    pub(crate) fn use_identity(&self, identity: Identity) {
        // One assignment: a panic leaves nothing half-done.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let Identity(config) = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(config).accept(stream).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn what_is_no_identity_is_told_apart() {
        let error = |certificates, key| Identity::from_pem(certificates, key).unwrap_err();
        let torn = &CERTIFICATE[..40];
        assert!(matches!(error(torn, KEY), IdentityError::Certificates(_)));
        assert!(matches!(error(b"", KEY), IdentityError::NoCertificate));
        assert!(matches!(error(KEY, KEY), IdentityError::NoCertificate));
        assert!(matches!(error(CERTIFICATE, CERTIFICATE), IdentityError::Key(_)));
        assert!(matches!(error(CERTIFICATE, KEY), IdentityError::Unusable(_)));
    }
}
