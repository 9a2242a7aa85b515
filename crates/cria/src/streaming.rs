//! The streaming server as the configuration has it: where it listens, and who it is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use cria_streaming::{Identity, IdentityError, Server, Timeouts};
use tokio::net::TcpListener;

use crate::config::StreamingConfig;

/// Why the server's certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error(
        "streaming.tls-key-file is the key of no certificate: streaming.tls-cert-file is not set"
    )]
    KeyAlone,
    #[error(transparent)]
    Unreadable(#[from] std::io::Error),
    #[error("cannot serve streams with the certificate in {}", .certificate.display())]
    Unusable { certificate: PathBuf, source: IdentityError },
}

/// The server, and what it will listen on. The port is part of the URLs it gives.
pub(crate) async fn listen(config: &StreamingConfig) -> anyhow::Result<(Arc<Server>, TcpListener)> {
    let address = SocketAddr::from((config.address, config.port));
    let failed = || format!("cannot listen on {address} for streaming");
    let identity = identity(config)?;
    let listener = TcpListener::bind(address).await.with_context(failed)?;
    let timeouts =
        Timeouts { idle: config.idle_timeout.get(), creation: config.creation_timeout.get() };
    let server = Server::new(listener.local_addr().with_context(failed)?, timeouts, identity);
    Ok((Arc::new(server), listener))
}

/// What the server shows its clients, as the files have it now. None: it speaks plain HTTP.
pub(crate) fn identity(config: &StreamingConfig) -> Result<Option<Identity>, CertificateError> {
    let Some(certificate) = &config.tls_cert_file else {
        return if config.tls_key_file.is_some() {
            Err(CertificateError::KeyAlone)
        } else {
            Ok(None)
        };
    };
    let key = fs_err::read(config.tls_key_file.as_ref().unwrap_or(certificate))?;
    let identity = Identity::from_pem(&fs_err::read(certificate)?, &key);
    let failed =
        |source| CertificateError::Unusable { certificate: certificate.to_path_buf(), source };
    identity.map(Some).map_err(failed)
}
