//! The byte streams of a layer: compressed as it arrives, decompressed as it is unpacked, each
//! hashed on its way. All blocking.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::frames::Frames;
use super::window::StreamWindows;
use crate::digest::Digest;
use crate::unpack::Limits;

/// What the decompressor fills at a time.
const PIECE: usize = 128 << 10;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A zstd stream may begin with a frame to be skipped: 0x184D2A50 to 5F, little endian.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// A blob as the download delivers it.
pub(crate) struct BlobReader {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    hasher: Sha256,
    /// How many bytes are still to come, by the manifest.
    missing: u64,
}

impl BlobReader {
    pub(crate) fn new(pieces: mpsc::Receiver<Bytes>, size: u64) -> Self {
        Self { pieces, piece: Bytes::new(), hasher: Sha256::new(), missing: size }
    }

    /// Waits for the next bytes and shows them: `most`, or all that are left.
    pub(super) fn peek(&mut self, most: usize) -> io::Result<&[u8]> {
        self.fill_buf()?;
        while self.piece.len() < most && self.missing > 0 {
            let more = self.next_piece()?;
            self.piece = [&self.piece[..], &more].concat().into();
        }
        Ok(&self.piece[..self.piece.len().min(most)])
    }

    fn next_piece(&mut self) -> io::Result<Bytes> {
        // The sender goes away early when the download fails or is given up.
        let piece = self.pieces.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.hasher.update(&piece);
        self.missing = self.missing.saturating_sub(piece.len() as u64);
        Ok(piece)
    }

    /// Reads what is left, and tells the digest of the whole blob.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(Digest::finish(self.hasher));
            }
            self.consume(length);
        }
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() && self.missing > 0 {
            self.piece = self.next_piece()?;
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, length: usize) {
        self.piece.advance(length);
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// A blob, decompressed. Its own first bytes tell how.
pub(crate) enum Decoder {
    Plain(BlobReader),
    Gzip(Box<MultiGzDecoder<BlobReader>>),
    Zstd(Box<Frames>),
}

impl Decoder {
    /// A stream with a window waits until `windows` has room for it.
    pub(super) fn new(mut blob: BlobReader, windows: StreamWindows) -> io::Result<Self> {
        let first = blob.peek(ZSTD.len())?;
        Ok(if first.starts_with(GZIP) {
            Self::Gzip(Box::new(MultiGzDecoder::new(blob)))
        } else if first == ZSTD || is_skippable(first) {
            Self::Zstd(Box::new(Frames::new(blob, windows)?))
        } else {
            Self::Plain(blob)
        })
    }

    pub(crate) fn into_blob(self) -> BlobReader {
        match self {
            Self::Plain(blob) => blob,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(frames) => frames.into_blob(),
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(frames) => frames.read(buffer),
        }
    }
}

fn is_skippable(first: &[u8]) -> bool {
    matches!(first, [kind, magic @ ..] if kind & 0xf0 == 0x50 && magic == ZSTD_SKIPPABLE)
}

/// The archive: decompressed in large pieces, each hashed once.
pub(crate) struct ArchiveReader {
    decoder: Decoder,
    buffer: Vec<u8>,
    position: usize,
    filled: usize,
    hasher: Sha256,
    limits: Limits,
    read: u64,
}

impl ArchiveReader {
    pub(crate) fn new(decoder: Decoder, limits: Limits) -> Self {
        let (buffer, hasher) = (vec![0; PIECE], Sha256::new());
        Self { decoder, buffer, position: 0, filled: 0, hasher, limits, read: 0 }
    }

    fn refill(&mut self) -> io::Result<()> {
        self.position = 0;
        self.filled = 0;
        while self.filled < self.buffer.len() {
            match self.decoder.read(&mut self.buffer[self.filled..]) {
                Ok(0) => break,
                Ok(length) => self.filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.hasher.update(&self.buffer[..self.filled]);
        self.read += self.filled as u64;
        Ok(self.limits.check_bytes(self.read)?)
    }

    /// Reads what follows the archive's end mark, and tells the digest of it all.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, BlobReader)> {
        loop {
            self.refill()?;
            if self.filled == 0 {
                break;
            }
        }
        Ok((Digest::finish(self.hasher), self.decoder.into_blob()))
    }

    /// Gives up on the archive; the blob may still be read.
    pub(crate) fn into_blob(self) -> BlobReader {
        self.decoder.into_blob()
    }
}

impl Read for ArchiveReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.filled {
            self.refill()?;
        }
        let available = &self.buffer[self.position..self.filled];
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.position += length;
        Ok(length)
    }
}
