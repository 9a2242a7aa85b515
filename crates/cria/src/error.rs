//! What can go wrong in an RPC, and the one table from there to gRPC codes.

use std::error::Error as StdError;
use std::io;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};

use crate::container::spec::SpecError;

/// Named by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no such {kind}: {id}")]
    NotFound { kind: &'static str, id: String },
    #[error("invalid {field}: {reason}")]
    Invalid { field: String, reason: String },
    #[error("{kind} {id} is {state}")]
    WrongState { kind: &'static str, id: String, state: &'static str },
    #[error("{kind} {id} was made under this name before and has ended")]
    AlreadyExists { kind: &'static str, id: String },
    #[error("command did not finish within {0:?}")]
    ExecTimeout(Duration),
    #[error("{what} is not served by this release of cria")]
    Unimplemented { what: &'static str },
    #[error("no space left: cannot {action}")]
    NoSpace { action: String, source: io::Error },
    /// The OCI runtime ran and refused; the text is its own.
    #[error("{action} container {container}: {message}")]
    Refused { action: &'static str, container: String, message: String },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Image(#[from] cria_images::Error),
    #[error("cannot {action}")]
    Internal { action: String, source: Box<dyn StdError + Send + Sync> },
    /// The outcome of an operation that several callers wait for.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// `action` completes the sentence "cannot ...", and names the object.
    pub(crate) fn internal(
        action: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Internal { action: action.into(), source: source.into() }
    }

    /// An I/O error, which is the operator's business when it says that the disk is full.
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { action: action.into(), source }
            }
            _ => Self::internal(action, source),
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// The only place that chooses gRPC codes. No `_` arm: a new error must choose its own.
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::WrongState { .. } => Code::FailedPrecondition,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            // The kubelet reads this code as "the probe timed out".
            Self::ExecTimeout(_) => Code::DeadlineExceeded,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::Refused { .. } | Self::Internal { .. } => Code::Internal,
            Self::Spec(error) => spec_code(error),
            Self::Image(error) => image_code(error),
            Self::Shared(error) => error.code(),
        }
    }
}

fn spec_code(error: &SpecError) -> Code {
    match error {
        SpecError::Invalid { .. } => Code::InvalidArgument,
        SpecError::NotOnThisNode { .. } | SpecError::Image { .. } => Code::FailedPrecondition,
        SpecError::Io { .. } => Code::Internal,
    }
}

fn image_code(error: &cria_images::Error) -> Code {
    use cria_images::Error as Image;
    match error {
        Image::InvalidReference { .. } | Image::Ambiguous { .. } | Image::Credentials { .. } => {
            Code::InvalidArgument
        }
        Image::NoSuchImage { .. } | Image::NoSuchLayer { .. } | Image::NotFound { .. } => {
            Code::NotFound
        }
        Image::Unauthorized { .. } => Code::PermissionDenied,
        // The kubelet matches the message's first word, and only under `Unknown`.
        Image::RegistryUnavailable { .. } => Code::Unknown,
        Image::Blocked { .. } | Image::Unsupported { .. } | Image::TooManyLayers { .. } => {
            Code::FailedPrecondition
        }
        Image::NoSpace { .. } => Code::ResourceExhausted,
        Image::Cancelled { .. } => Code::Cancelled,
        Image::DigestMismatch { .. }
        | Image::Corrupt { .. }
        | Image::Escapes { .. }
        | Image::Config { .. }
        | Image::Io { .. } => Code::Internal,
    }
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        Self::new(error.code(), chain(error))
    }
}

/// `error` and its sources on one line, outermost first.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let causes = iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
