//! One layer, from the registry to the disk: download, hash, decompress, hash, unpack, all at once
//! and with little in memory.
//!
//! ```text
//!  connection ──pieces──▶ sha256 ──▶ gunzip ──▶ sha256 ──▶ unpack ──▶ incoming/<n>/fs
//!     (async)  bounded    └──────────── one blocking thread ──────────┘
//! ```

mod download;
mod reader;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::error::{Error, is_no_space};
use crate::manifest::{Descriptor, LayerBlob};
use crate::registry::Session;
use crate::unpack::{self, UnpackError, Unpacked};
use download::download;
use reader::{ArchiveReader, BlobReader, Decoder};

/// Pieces between connection and decompressor. The HTTP client reads at most 400 KiB at a time,
/// so that this bounds what a layer holds in memory to 2 MiB.
const PIECES: usize = 4;

/// Downloads `layer` and unpacks it into `directory`, which exists and is empty. Both digests are
/// verified when this returns well; on failure the directory's content means nothing.
///
/// `done` runs on the same blocking thread as the unpacking.
pub(crate) async fn fetch<T: Send + 'static>(
    session: &Session,
    layer: &LayerBlob,
    directory: Arc<Path>,
    done: impl FnOnce(Result<Unpacked, Error>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, pieces) = mpsc::channel(PIECES);
    let blob = BlobReader::new(pieces, layer.blob.size);
    let image = session.image().to_owned();
    let expected = layer.clone();
    let unpacking = tokio::task::spawn_blocking(move || {
        done(unpack_verified(blob, &expected, &directory, &image))
    });
    let downloaded = download(session, &layer.blob, sender).await;
    let unpacked = unpacking.await.map_err(|panic| {
        let source = Arc::new(io::Error::other(panic));
        Error::Io { action: "unpack a layer".to_owned(), source }
    })?;
    // A download that failed is why the unpacking did; never the other way round.
    downloaded.and(unpacked)
}

/// Downloads a small blob into memory. It is as long as its descriptor says and has its digest.
pub(crate) async fn fetch_small(session: &Session, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES);
    let collecting = async {
        let mut content = Vec::new();
        while let Some(piece) = pieces.recv().await {
            content.extend_from_slice(&piece);
        }
        content
    };
    let (downloaded, content) =
        futures_util::future::join(download(session, blob, sender), collecting).await;
    downloaded?;
    let image = session.image().to_owned();
    match Digest::of(&content) {
        actual if actual == blob.digest => Ok(content),
        actual => {
            Err(Error::DigestMismatch { image, what: "the config", expected: blob.digest, actual })
        }
    }
}

fn unpack_verified(
    blob: BlobReader,
    layer: &LayerBlob,
    directory: &Path,
    image: &str,
) -> Result<Unpacked, Error> {
    let damaged = |source: io::Error| Error::Corrupt {
        image: image.to_owned(),
        what: format!("layer {}", layer.diff_id),
        source: Arc::new(source),
    };
    let mut archive = ArchiveReader::new(Decoder::new(blob).map_err(damaged)?);
    let unpacked = match unpack::unpack(&mut archive, directory) {
        Ok(unpacked) => unpacked,
        Err(error) => return Err(failed(error, archive, layer, image)),
    };
    let (diff_id, blob) = archive.finish().map_err(damaged)?;
    let digest = blob.finish().map_err(damaged)?;
    verify(image, "a layer's blob", layer.blob.digest, digest)?;
    verify(image, "a layer's archive", layer.diff_id, diff_id)?;
    Ok(unpacked)
}

/// Why the unpacking failed. Bytes that are not what was promised explain most of it: that is
/// found out first, unless the failure is the node's own or the stream is over.
fn failed(error: UnpackError, archive: ArchiveReader, layer: &LayerBlob, image: &str) -> Error {
    let (UnpackError::Entry { source, .. }
    | UnpackError::Archive(source)
    | UnpackError::Root(source)) = &error
    else {
        return refusal(error, layer, image);
    };
    if is_no_space(source) {
        return Error::NoSpace { image: image.to_owned(), source: Arc::new(error) };
    }
    match archive.into_blob().finish() {
        Ok(digest) if digest != layer.blob.digest => Error::DigestMismatch {
            image: image.to_owned(),
            what: "a layer's blob",
            expected: layer.blob.digest,
            actual: digest,
        },
        Ok(_) | Err(_) => refusal(error, layer, image),
    }
}

fn refusal(error: UnpackError, layer: &LayerBlob, image: &str) -> Error {
    let (image, layer) = (image.to_owned(), layer.diff_id);
    match error {
        UnpackError::Escapes(entry) => Error::Escapes { image, layer, entry },
        UnpackError::Entry { .. } | UnpackError::Archive(_) | UnpackError::Root(_) => {
            Error::Corrupt { image, what: format!("layer {layer}"), source: Arc::new(error) }
        }
    }
}

fn verify(image: &str, what: &'static str, expected: Digest, actual: Digest) -> Result<(), Error> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::DigestMismatch { image: image.to_owned(), what, expected, actual })
}
