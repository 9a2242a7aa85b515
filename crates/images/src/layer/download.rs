//! One blob's way over the network: in pieces, from where it was cut, until it is whole.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::pace::Pace;
use crate::blob::Descriptor;
use crate::error::{Cause, Error};
use crate::progress::Meter;
use crate::registry::{Session, wait_before_next_try, wait_within};

/// Where pieces go, and are counted. The reader decides when it has enough: it may go away at any
/// time.
pub(super) struct Sink {
    pub(super) pieces: mpsc::Sender<Bytes>,
    pub(super) meter: Meter,
}

/// Delivers exactly the descriptor's number of bytes, in order. A cut or stalled connection is
/// continued where it ended; tries count anew whenever bytes arrived.
///
/// Once anything has `begun` there is something to lose: then a registry that is down is asked
/// again for as long as the session has patience, also for what has no bytes yet.
///
/// Bytes are not verified here: whoever reads them hashes them anyway.
pub(super) async fn download(
    session: &Session,
    blob: &Descriptor,
    sink: Sink,
    begun: &AtomicBool,
) -> Result<(), Error> {
    let pace = Pace::new(session.patience());
    let mut transfer = Transfer { session, blob, sink, begun, pace, offset: 0 };
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
        let Some(wait) = transfer.wait_before_next_try(&error, tried) else { return Err(error) };
        debug!(image = session.image(), blob = %blob.digest, offset = transfer.offset, tried,
            "download was cut, continuing");
        transfer.sink.meter.resumed();
        tokio::select! {
            () = tokio::time::sleep(wait) => transfer.pace.note(wait, 0, 0),
            // The reader has failed, and says why.
            () = transfer.sink.pieces.closed() => return Ok(()),
        }
    }
}

struct Transfer<'a> {
    session: &'a Session,
    blob: &'a Descriptor,
    sink: Sink,
    begun: &'a AtomicBool,
    pace: Pace,
    /// How many bytes have been delivered.
    offset: u64,
}

impl Transfer<'_> {
    /// One connection's worth.
    async fn run(&mut self) -> Result<(), Error> {
        if self.offset == self.blob.size {
            return Ok(());
        }
        let asked = Instant::now();
        let answer = self.session.blob(self.blob.digest, self.offset).await;
        self.pace.note(asked.elapsed(), 0, 0);
        let mut answer = answer?;
        let mut position = answer.offset;
        while self.offset < self.blob.size {
            let asked = Instant::now();
            let piece = answer.stream.next().await;
            let waited = asked.elapsed();
            let piece = match piece {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Err(self.cut(waited, Arc::new(error.without_url()))),
                None => {
                    let early = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(self.cut(waited, Arc::new(early)));
                }
            };
            let wanted = piece_from(piece, position, self.offset);
            let length = wanted.piece.len() as u64;
            position += wanted.skipped + length;
            if self.offset + length > self.blob.size {
                return Err(self.too_long());
            }
            self.pace.note(waited, wanted.skipped, length);
            if self.pace.left().is_zero() {
                return Err(self.cut(Duration::ZERO, Arc::new(TooSlow)));
            }
            if wanted.piece.is_empty() {
                continue;
            }
            self.offset += length;
            self.begun.store(true, Ordering::Relaxed);
            self.sink.meter.received(length);
            if self.sink.pieces.send(wanted.piece).await.is_err() {
                // The reader has failed, and says why.
                return Ok(());
            }
        }
        Ok(())
    }

    fn wait_before_next_try(&self, error: &Error, tried: u32) -> Option<Duration> {
        match self.begun.load(Ordering::Relaxed) && self.session.is_last_resort() {
            true => wait_within(self.pace.left(), error, tried),
            false => wait_before_next_try(error, tried),
        }
    }

    fn cut(&mut self, waited: Duration, source: Cause) -> Error {
        self.pace.note(waited, 0, 0);
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

#[derive(Debug, thiserror::Error)]
#[error("its bytes come too slowly")]
struct TooSlow;

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
