//! One layer, from the registry to the disk: download, hash, decompress, hash, unpack, all at once
//! and with little in memory.
//!
//! ```text
//!  connection ──pieces──▶ sha256 ──▶ gunzip ──▶ sha256 ──▶ unpack ──▶ incoming/<n>/fs
//!     (async)  bounded    └──────────── one blocking thread ──────────┘
//! ```
//!
//! A blob that is no archive takes the short way, from sha256 to a file.

mod download;
mod frames;
mod pace;
mod reader;
mod window;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::blob::{Content, Descriptor, LayerBlob};
use crate::digest::Digest;
use crate::error::{Error, is_no_space, is_nodes_own};
use crate::progress::Meter;
use crate::registry::Session;
use crate::unpack::{self, Limits, TooLarge, UnpackError, Unpacked};
use download::{Sink, download};
use reader::{ArchiveReader, BlobReader, Decoder};
pub(crate) use window::{LargeWindow, Windows};
use window::{StreamWindows, WindowTooLarge};

/// Pieces between connection and decompressor. The HTTP client reads at most 400 KiB at a time: with the
/// pieces at either end and the buffers of decompressor and unpacker, a layer holds at most 2.6 MiB, so
/// that six at once (15.6 MiB) and the windows of zstd (16 MiB) stay below 32 MiB. One larger window, in
/// the whole process, may come to that.
const PIECES: usize = 3;

/// What a layer may take, and where it is counted.
pub(crate) struct Bounds {
    pub(crate) limits: Limits,
    pub(crate) windows: Windows,
    pub(crate) meter: Meter,
}

/// Refuses a layer whose blob alone is beyond the limits.
pub(crate) fn check_size(image: &str, layer: &LayerBlob, limits: &Limits) -> Result<(), Error> {
    limits.check_bytes(layer.blob.size).map_err(|error| too_large(image, layer, error))
}

/// Downloads `layer` and unpacks it into `directory`, which exists and is empty. Both digests are
/// verified when this returns well; on failure the directory's content means nothing.
///
/// `done` runs on the same blocking thread as the unpacking, whatever becomes of it.
pub(crate) async fn fetch<T: Send + 'static>(
    session: &Session,
    layer: &LayerBlob,
    directory: Arc<Path>,
    bounds: Bounds,
    done: impl FnOnce(Result<Unpacked, Error>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, pieces) = mpsc::channel(PIECES);
    let sink = Sink { pieces: sender, meter: bounds.meter.clone() };
    let blob = BlobReader::new(pieces, layer.blob.size);
    let image = session.image().to_owned();
    let expected = layer.clone();
    let wanted = Arc::new(());
    let windows = bounds.windows.of_stream(&wanted);
    let limits = bounds.limits;
    let unpacking = tokio::task::spawn_blocking(move || {
        done(unpack_verified(blob, &expected, &directory, windows, limits, &image))
    });
    let downloaded = download(session, &layer.blob, sink, session.has_layers_begun()).await;
    if downloaded.is_err() {
        drop(wanted);
    }
    let unpacked = unpacking.await.map_err(|panic| {
        let source = Arc::new(io::Error::other(panic));
        Error::Io { action: "unpack a layer".to_owned(), source }
    })?;
    // A download that failed is why the unpacking did; never the other way round.
    downloaded.and(unpacked)
}

/// Downloads a small blob into memory. It is as long as its descriptor says and has its digest.
pub(crate) async fn fetch_small(
    session: &Session,
    blob: &Descriptor,
    what: &'static str,
    meter: Meter,
) -> Result<Vec<u8>, Error> {
    let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES);
    let sink = Sink { pieces: sender, meter };
    let collecting = async {
        let mut content = Vec::new();
        while let Some(piece) = pieces.recv().await {
            content.extend_from_slice(&piece);
        }
        content
    };
    let begun = AtomicBool::new(false);
    let downloading = download(session, blob, sink, &begun);
    let (downloaded, content) = futures_util::future::join(downloading, collecting).await;
    downloaded?;
    let image = session.image().to_owned();
    match Digest::of(&content) {
        actual if actual == blob.digest => Ok(content),
        actual => Err(Error::DigestMismatch { image, what, expected: blob.digest, actual }),
    }
}

fn unpack_verified(
    blob: BlobReader,
    layer: &LayerBlob,
    directory: &Path,
    windows: StreamWindows,
    limits: Limits,
    image: &str,
) -> Result<Unpacked, Error> {
    let damaged = |source: io::Error| match TooLarge::within(&source) {
        Some(error) => too_large(image, layer, error.clone()),
        None if WindowTooLarge::within(&source).is_some() => unsupported(image, &source),
        None => Error::Corrupt {
            image: image.to_owned(),
            what: format!("layer {}", layer.diff_id),
            source: Arc::new(source),
        },
    };
    if let Content::File(name) = &layer.content {
        return write_verified(blob, layer, name, directory, limits, image);
    }
    let decoder = Decoder::new(blob, windows).map_err(damaged)?;
    let mut archive = ArchiveReader::new(decoder, limits);
    let unpacked = match unpack::unpack(&mut archive, directory, limits) {
        Ok(unpacked) => unpacked,
        Err(error) => return Err(failed(error, archive, layer, image)),
    };
    let (diff_id, blob) = archive.finish().map_err(damaged)?;
    let digest = blob.finish().map_err(damaged)?;
    verify(image, "a layer's blob", layer.blob.digest, digest)?;
    if layer.content == Content::ListedArchive {
        verify(image, "a layer's archive", layer.diff_id, diff_id)?;
    }
    Ok(unpacked)
}

fn write_verified(
    mut blob: BlobReader,
    layer: &LayerBlob,
    name: &Path,
    directory: &Path,
    limits: Limits,
    image: &str,
) -> Result<Unpacked, Error> {
    let failed = |source| match TooLarge::within(&source) {
        Some(error) => too_large(image, layer, error.clone()),
        None => Error::writing(image, format!("write the file {name:?} of image {image}"), source),
    };
    let written = unpack::write_file(&mut blob, name, directory, limits).map_err(failed)?;
    verify(image, "a file's blob", layer.blob.digest, blob.finish().map_err(failed)?)?;
    Ok(written)
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
    if let Some(error) = TooLarge::within(source) {
        return too_large(image, layer, error.clone());
    }
    if let Some(error) = WindowTooLarge::within(source) {
        return unsupported(image, error);
    }
    if is_no_space(source) {
        return Error::NoSpace { image: image.to_owned(), source: Arc::new(error) };
    }
    if is_nodes_own(source) {
        let action = format!("unpack layer {} of image {image}", layer.diff_id);
        return Error::Io { action, source: Arc::new(error) };
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
        UnpackError::TooLarge { .. } => Error::TooLarge { image, layer, source: Arc::new(error) },
        UnpackError::Entry { .. } | UnpackError::Archive(_) | UnpackError::Root(_) => {
            Error::Corrupt { image, what: format!("layer {layer}"), source: Arc::new(error) }
        }
    }
}

fn unsupported(image: &str, what: impl ToString) -> Error {
    Error::Unsupported { image: image.to_owned(), what: what.to_string() }
}

fn too_large(image: &str, layer: &LayerBlob, error: TooLarge) -> Error {
    let source = Arc::new(error);
    Error::TooLarge { image: image.to_owned(), layer: layer.diff_id, source }
}

fn verify(image: &str, what: &'static str, expected: Digest, actual: Digest) -> Result<(), Error> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::DigestMismatch { image: image.to_owned(), what, expected, actual })
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use serde_json::json;

    use super::*;

    fn layer(blob: &[u8]) -> LayerBlob {
        let (digest, size) = (Digest::of(blob), blob.len());
        let blob = json!({"mediaType": "", "digest": digest, "size": size});
        let blob = serde_json::from_value(blob).unwrap();
        LayerBlob { diff_id: digest, blob, content: Content::ListedArchive }
    }

    /// Of the first two kinds nobody asks for the rest of the blob: here it would never come.
    #[test]
    fn a_failure_of_the_nodes_own_is_told_as_such_and_at_once() {
        type Case<'a> = (&'a [Errno], u64, fn(&Error) -> bool);
        let nodes_own = [
            Errno::ACCESS,
            Errno::IO,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::PERM,
            Errno::ROFS,
            Errno::STALE,
            Errno::UCLEAN,
        ];
        let archives = [
            Errno::TOOBIG,
            Errno::FBIG,
            Errno::INVAL,
            Errno::ISDIR,
            Errno::LOOP,
            Errno::MLINK,
            Errno::NAMETOOLONG,
            Errno::NOTDIR,
            Errno::OPNOTSUPP,
            Errno::RANGE,
        ];
        let cases: [Case<'_>; 3] = [
            (&nodes_own, 1, |error| matches!(error, Error::Io { .. })),
            (&[Errno::NOSPC, Errno::DQUOT], 1, |error| matches!(error, Error::NoSpace { .. })),
            (&archives, 0, |error| matches!(error, Error::Corrupt { .. })),
        ];
        for (errnos, missing, is_right) in cases {
            for errno in errnos {
                let source = || io::Error::from(*errno);
                let entry = UnpackError::Entry { entry: "file".into(), source: source() };
                for error in [entry, UnpackError::Archive(source()), UnpackError::Root(source())] {
                    let (_sender, pieces) = mpsc::channel(1);
                    let blob = Decoder::Plain(BlobReader::new(pieces, missing));
                    let archive = ArchiveReader::new(blob, Limits::default());
                    let error = failed(error, archive, &layer(b""), "image");
                    assert!(is_right(&error), "{errno:?}: {error:?}");
                    let chain = format!("{:?}", std::error::Error::source(&error));
                    assert!(chain.contains(&format!("{}", errno.raw_os_error())), "{chain}");
                }
            }
        }
    }
}
