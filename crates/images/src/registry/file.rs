//! A small file on a web server that is no registry: a signature in a lookaside store.

use reqwest::header::HeaderMap;
use reqwest::{StatusCode, Url};
use tracing::debug;

use super::answer::failed;
use super::connection::GetError;
use super::{Connections, read_bounded, wait_before_next_try};
use crate::error::Error;

impl Connections {
    /// The file at `url`, of at most `most` bytes; none if the server has none. Asked for again
    /// while the server is merely unavailable.
    pub(crate) async fn file(
        &self,
        url: &Url,
        most: u64,
        image: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut tried = 0;
        loop {
            match self.file_once(url, most, image).await {
                Ok(content) => return Ok(content),
                Err(error) => {
                    tried += 1;
                    let Some(wait) = wait_before_next_try(&error, tried) else {
                        return Err(error);
                    };
                    debug!(image, tried, "signature store unavailable, trying again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn file_once(&self, url: &Url, most: u64, image: &str) -> Result<Option<Vec<u8>>, Error> {
        let host = || url.host_str().unwrap_or_default().to_owned();
        let answer = self.server().get(url, HeaderMap::new()).await;
        let answer = answer
            .map_err(|source| failed(image, StoreError::Unreachable { host: host(), source }))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                Ok(Some(read_bounded(answer, most, "a signature", image).await?.into()))
            }
            status => Err(failed(image, StoreError::Refuses { host: host(), status })),
        }
    }
}

/// It is not the registry that is unavailable.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error("the signature store at {host} cannot be reached")]
    Unreachable { host: String, source: GetError },
    #[error("the signature store at {host} answers {status}")]
    Refuses { host: String, status: StatusCode },
}
