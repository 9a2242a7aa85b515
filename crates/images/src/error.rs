//! What can go wrong, named by what the caller can do about it.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::digest::Digest;

/// A cause that several waiters of one download share.
pub(crate) type Cause = Arc<dyn StdError + Send + Sync>;

/// Every failure of this crate. `Display` never repeats the source: print the chain.
///
/// Cloneable, because callers that wait for the same layer get the same failure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The name cannot be any image's.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference { reference: String, reason: &'static str },
    /// A short id that more than one image begins with.
    #[error("image id {prefix:?} is ambiguous")]
    Ambiguous { prefix: String },
    /// The store has no such image.
    #[error("no such image: {image}")]
    NoSuchImage { image: String },
    /// Only a store that is not ours to change has the image.
    #[error("image {image} belongs to a read-only store")]
    ReadOnly { image: String },
    /// The store has lost a layer that somebody mounts.
    #[error("layer {layer} of image {image} is not in the store")]
    NoSuchLayer { layer: Digest, image: String },
    /// The registry says that there is no such image (or hides it from this caller).
    #[error("image {image} not found in its registry")]
    NotFound { image: String, source: Cause },
    /// The registry wants other credentials than this caller's.
    #[error("not allowed to pull {image}")]
    Unauthorized { image: String, source: Cause },
    /// What the caller sent as credentials cannot be used.
    #[error("unusable credentials: {reason}")]
    Credentials { reason: &'static str },
    /// A program that knows the node's credentials did not tell them.
    #[error("credential helper {helper:?} failed")]
    CredentialHelper { helper: String, source: Cause },
    /// The registry cannot be reached, or fails to answer properly. Worth another try later. The
    /// kubelet knows the message by its first word.
    #[error("RegistryUnavailable: {image}")]
    RegistryUnavailable {
        image: String,
        /// When the registry said that it would like to be asked again.
        retry_after: Option<Duration>,
        source: Cause,
    },
    /// The policy does not accept the image, or none of its signatures. The kubelet knows the
    /// message by its first word.
    #[error("SignatureValidationFailed: {image}")]
    SignatureRejected { image: String, source: Cause },
    /// `registries.conf` forbids it.
    #[error("image {image} is blocked by registries.conf (prefix {prefix:?})")]
    Blocked { image: String, prefix: String },
    /// Bytes are not what their digest promised.
    #[error("{what} of image {image} has digest {actual}, expected {expected}")]
    DigestMismatch { image: String, what: &'static str, expected: Digest, actual: Digest },
    /// The image is well-formed but of a kind that is not served.
    #[error("image {image} is not supported: {what}")]
    Unsupported { image: String, what: String },
    /// Manifest, config or layer cannot be understood.
    #[error("image {image} is damaged: {what}")]
    Corrupt { image: String, what: String, source: Cause },
    /// A layer's entry points outside its root.
    #[error("image {image}: layer {layer}: entry {entry:?} points outside the layer")]
    Escapes { image: String, layer: Digest, entry: PathBuf },
    /// A layer that is larger than configured, in bytes or in entries; or deeper.
    #[error("image {image}: layer {layer} is too large")]
    TooLarge { image: String, layer: Digest, source: Cause },
    /// More distinct layers than overlayfs can stack.
    #[error("image {image} has {layers} distinct layers, the kernel can mount {most}")]
    TooManyLayers { image: String, layers: usize, most: usize },
    /// The disk is full, in bytes or in inodes, or a quota is.
    #[error("no space left for image {image}")]
    NoSpace { image: String, source: Cause },
    /// A configuration file holds a wrong value.
    #[error("{}:{line}: {key}: {reason}", file.display())]
    Config { file: PathBuf, line: usize, key: String, reason: String },
    /// Everybody who waited for this download has gone.
    #[error("pull of {image} was given up")]
    Cancelled { image: String },
    /// The node's own trouble.
    #[error("{action}")]
    Io { action: String, source: Cause },
}

impl Error {
    /// A node's IO failure while it did `action`.
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        Self::Io { action: action.into(), source: Arc::new(source) }
    }

    /// An IO failure while `image` was written: a full disk has a name of its own.
    pub(crate) fn writing(image: &str, action: impl Into<String>, source: io::Error) -> Self {
        if is_no_space(&source) {
            Self::NoSpace { image: image.to_owned(), source: Arc::new(source) }
        } else {
            Self::io(action, source)
        }
    }

    /// Whether another endpoint of the same image could do better.
    pub(crate) fn may_differ_elsewhere(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            // Each place has its own.
            | Self::CredentialHelper { .. }
            | Self::RegistryUnavailable { .. }
            | Self::SignatureRejected { .. }
            | Self::DigestMismatch { .. }
            | Self::Unsupported { .. }
            | Self::Corrupt { .. }
            | Self::Escapes { .. }
            | Self::TooLarge { .. }
            | Self::TooManyLayers { .. } => true,
            Self::InvalidReference { .. }
            | Self::Ambiguous { .. }
            | Self::NoSuchImage { .. }
            | Self::NoSuchLayer { .. }
            | Self::ReadOnly { .. }
            | Self::Credentials { .. }
            | Self::Blocked { .. }
            | Self::NoSpace { .. }
            | Self::Config { .. }
            | Self::Cancelled { .. }
            | Self::Io { .. } => false,
        }
    }
}

pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error of the file system speaks of the node and not of what was to be written: it fails
/// likewise for whatever comes next, and from wherever that comes.
pub(crate) fn is_nodes_own(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        number,
        Some(
            Errno::ACCESS
                | Errno::IO
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::PERM
                | Errno::ROFS
                | Errno::STALE
                | Errno::UCLEAN
        )
    )
}

/// The error of reading a configuration file of TOML, with the place in words.
pub(crate) fn config(file: &Path, text: &str, offset: usize, reason: impl Into<String>) -> Error {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let content = text.lines().nth(line - 1).unwrap_or_default();
    let key = content.split('=').next().unwrap_or_default().trim();
    Error::Config { file: file.to_owned(), line, key: key.to_owned(), reason: reason.into() }
}
