//! One blob's way over the network: in pieces, from where it was cut, until it is whole.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tracing::debug;

use crate::blob::Descriptor;
use crate::error::{Cause, Error};
use crate::progress::Meter;
use crate::registry::{Session, wait_before_next_try};

/// Where pieces go, and are counted. The reader decides when it has enough: it may go away at any
/// time.
pub(super) struct Sink {
    pub(super) pieces: mpsc::Sender<Bytes>,
    pub(super) meter: Meter,
}

/// Delivers exactly the descriptor's number of bytes, in order. A cut or stalled connection is
/// continued where it ended; tries count anew whenever bytes arrived.
///
/// Bytes are not verified here: whoever reads them hashes them anyway.
pub(super) async fn download(
    session: &Session,
    blob: &Descriptor,
    sink: Sink,
) -> Result<(), Error> {
    let mut transfer = Transfer { session, blob, sink, offset: 0 };
    let mut tried = 0;
    loop {
        let before = transfer.offset;
        let error = match transfer.run().await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if transfer.offset > before {
            tried = 0;
        }
        tried += 1;
        let Some(wait) = wait_before_next_try(&error, tried) else { return Err(error) };
        debug!(image = session.image(), blob = %blob.digest, offset = transfer.offset, tried,
            "download was cut, continuing");
        transfer.sink.meter.resumed();
        tokio::time::sleep(wait).await;
    }
}

struct Transfer<'a> {
    session: &'a Session,
    blob: &'a Descriptor,
    sink: Sink,
    /// How many bytes have been delivered.
    offset: u64,
}

impl Transfer<'_> {
    /// One connection's worth.
    async fn run(&mut self) -> Result<(), Error> {
        if self.offset == self.blob.size {
            return Ok(());
        }
        let mut answer = self.session.blob(self.blob.digest, self.offset).await?;
        let mut position = answer.offset;
        while self.offset < self.blob.size {
            let piece = match answer.stream.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Err(self.cut(Arc::new(error.without_url()))),
                None => {
                    let early = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(self.cut(Arc::new(early)));
                }
            };
            let wanted = piece_from(piece, position, self.offset);
            position += wanted.skipped + wanted.piece.len() as u64;
            if self.offset + wanted.piece.len() as u64 > self.blob.size {
                return Err(self.too_long());
            }
            if wanted.piece.is_empty() {
                continue;
            }
            self.offset += wanted.piece.len() as u64;
            self.sink.meter.received(wanted.piece.len() as u64);
            if self.sink.pieces.send(wanted.piece).await.is_err() {
                // The reader has failed, and says why.
                return Ok(());
            }
        }
        Ok(())
    }

    fn cut(&self, source: Cause) -> Error {
        let image = self.session.image().to_owned();
        Error::RegistryUnavailable { image, retry_after: None, source }
    }

    fn too_long(&self) -> Error {
        let size = self.blob.size;
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("more than {size} bytes"));
        Error::Corrupt {
            image: self.session.image().to_owned(),
            what: format!("blob {}", self.blob.digest),
            source: Arc::new(source),
        }
    }
}

struct Wanted {
    piece: Bytes,
    skipped: u64,
}

/// What of a piece that lies at `position` is not yet delivered, if `offset` bytes are.
fn piece_from(mut piece: Bytes, position: u64, offset: u64) -> Wanted {
    let known = offset.saturating_sub(position);
    let skipped = usize::try_from(known).map_or(piece.len(), |known| known.min(piece.len()));
    piece.advance(skipped);
    Wanted { piece, skipped: skipped as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_starts_over_is_skipped_to_where_we_were() {
        let piece = Bytes::from_static(b"0123456789");
        for (position, offset, rest) in [
            (0, 0, "0123456789"),
            (0, 4, "456789"),
            (0, 10, ""),
            (0, 99, ""),
            (20, 24, "456789"),
            (20, 20, "0123456789"),
        ] {
            let wanted = piece_from(piece.clone(), position, offset);
            assert_eq!(wanted.piece, rest.as_bytes(), "{position} {offset}");
            assert_eq!(wanted.skipped + rest.len() as u64, 10);
        }
    }
}
