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
    #[error("image {image} is in use by container {container}")]
    ImageInUse { image: String, container: String },
    #[error("{kind} {id} was made under this name before and has ended")]
    AlreadyExists { kind: &'static str, id: String },
    #[error("command did not finish within {0:?}")]
    ExecTimeout(Duration),
    #[error("{what} is not served by this release of cria")]
    Unimplemented { what: &'static str },
    #[error("no space left: cannot {action}")]
    NoSpace { action: String, source: io::Error },
    #[error("too many open files: cannot {action}")]
    NoDescriptors { action: String, source: io::Error },
    /// The OCI runtime ran and refused; the text is its own.
    #[error("{action} container {container}: {message}")]
    Refused { action: &'static str, container: String, message: String },
    #[error(transparent)]
    TooManySessions(#[from] cria_streaming::TooMany),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Image(#[from] cria_images::Error),
    /// The kubelet's users know the message by its first word (cri-api `pkg/errors`).
    #[error("ImageVolumeMountFailed: {image}")]
    ImageVolume { image: String, source: Box<dyn StdError + Send + Sync> },
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

    /// An I/O error, which is the operator's business when it says that something has run out.
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            _ if lacks_descriptors(&source) => {
                Self::NoDescriptors { action: action.into(), source }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { action: action.into(), source }
            }
            _ => Self::internal(action, source),
        }
    }

    /// `image` as it was asked for.
    pub(crate) fn image_volume(
        image: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::ImageVolume { image: image.into(), source: source.into() }
    }

    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// The only place that chooses gRPC codes. No `_` arm: a new error must choose its own.
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::WrongState { .. } | Self::ImageInUse { .. } => Code::FailedPrecondition,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            // The kubelet reads this code as "the probe timed out".
            Self::ExecTimeout(_) => Code::DeadlineExceeded,
            Self::Unimplemented { .. } => Code::Unimplemented,
            // The kubelet answers 429 to this code.
            Self::NoSpace { .. } | Self::NoDescriptors { .. } | Self::TooManySessions(_) => {
                Code::ResourceExhausted
            }
            Self::Refused { .. } | Self::Internal { .. } => Code::Internal,
            Self::Spec(error) => spec_code(error),
            Self::Image(error) => image_code(error),
            // As for every failure that is told by its first word.
            Self::ImageVolume { .. } => Code::Unknown,
            Self::Shared(error) => error.code(),
        }
    }
}

fn spec_code(error: &SpecError) -> Code {
    match error {
        SpecError::Invalid { .. } => Code::InvalidArgument,
        SpecError::NotOnThisNode { .. } | SpecError::Image { .. } => Code::FailedPrecondition,
        SpecError::Io { source, .. } => io_code(source),
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
        Image::RegistryUnavailable { .. } | Image::SignatureRejected { .. } => Code::Unknown,
        Image::Blocked { .. }
        | Image::ReadOnly { .. }
        | Image::Unsupported { .. }
        | Image::TooManyLayers { .. }
        | Image::TooLarge { .. } => Code::FailedPrecondition,
        Image::NoSpace { .. } => Code::ResourceExhausted,
        Image::Cancelled { .. } => Code::Cancelled,
        Image::DigestMismatch { .. }
        | Image::Corrupt { .. }
        | Image::Escapes { .. }
        | Image::CredentialHelper { .. }
        | Image::Config { .. } => Code::Internal,
        Image::Io { source, .. } => io_code(&**source),
    }
}

fn io_code(error: &(dyn StdError + 'static)) -> Code {
    if lacks_descriptors(error) { Code::ResourceExhausted } else { Code::Internal }
}

/// The process's limit of open files, or the node's. No `ErrorKind` says so, and of the number
/// `fs_err` keeps the text alone, which the innermost error ends with.
fn lacks_descriptors(error: &(dyn StdError + 'static)) -> bool {
    let said = chain(error);
    [libc::EMFILE, libc::ENFILE]
        .iter()
        .any(|number| said.ends_with(&format!("(os error {number})")))
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

#[cfg(test)]
mod tests {
    use cria_images::Error as Image;

    use super::*;

    fn os(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn every_error_has_the_code_that_its_reader_knows() {
        let (kind, id, action) = ("container", "c".to_owned(), "do it".to_owned());
        let spec = |error: SpecError| Error::from(error);
        let image = |error: Image| Error::from(error);
        let full = || Arc::new(os(libc::EMFILE));
        let missing = || Error::NotFound { kind, id: id.clone() };
        for (error, code) in [
            (missing(), Code::NotFound),
            (Error::Shared(Arc::new(missing())), Code::NotFound),
            (Error::invalid("field", "reason"), Code::InvalidArgument),
            (
                Error::WrongState { kind, id: id.clone(), state: "running" },
                Code::FailedPrecondition,
            ),
            (Error::AlreadyExists { kind, id: id.clone() }, Code::AlreadyExists),
            (Error::ExecTimeout(Duration::from_secs(1)), Code::DeadlineExceeded),
            (Error::Unimplemented { what: "this" }, Code::Unimplemented),
            (Error::io(&*action, os(libc::ENOSPC)), Code::ResourceExhausted),
            (Error::io(&*action, os(libc::EDQUOT)), Code::ResourceExhausted),
            (Error::io(&*action, os(libc::EMFILE)), Code::ResourceExhausted),
            (Error::io(&*action, os(libc::ENFILE)), Code::ResourceExhausted),
            (Error::io(&*action, os(libc::EACCES)), Code::Internal),
            (Error::internal(&*action, "reason"), Code::Internal),
            (
                Error::Refused { action: "start", container: id.clone(), message: String::new() },
                Code::Internal,
            ),
            (Error::image_volume("image", "reason"), Code::Unknown),
            (Error::from(cria_streaming::TooMany), Code::ResourceExhausted),
            (spec(SpecError::Invalid { field: "f", reason: id.clone() }), Code::InvalidArgument),
            (spec(SpecError::image("no user")), Code::FailedPrecondition),
            (spec(SpecError::Io { action: "r", source: os(libc::EACCES) }), Code::Internal),
            (
                spec(SpecError::Io { action: "r", source: os(libc::EMFILE) }),
                Code::ResourceExhausted,
            ),
            (image(Image::NoSuchImage { image: id.clone() }), Code::NotFound),
            (image(Image::Io { action: id.clone(), source: full() }), Code::ResourceExhausted),
            (image(Image::NoSpace { image: id.clone(), source: full() }), Code::ResourceExhausted),
        ] {
            let status = Status::from(&error);
            assert_eq!(status.code(), code, "{error:?}");
            assert_eq!(status.message(), chain(&error));
        }
    }

    #[test]
    fn too_many_open_files_are_known_whatever_says_them() {
        let named = fs_err::read("/no/such/file").unwrap_err();
        assert!(named.to_string().ends_with(&format!("(os error {})", libc::ENOENT)), "{named}");
        assert!(!lacks_descriptors(&named));
        for number in [libc::EMFILE, libc::ENFILE] {
            assert!(lacks_descriptors(&os(number)));
            let named = format!("failed to open file `/f`: {}", os(number));
            assert!(lacks_descriptors(&io::Error::other(named)));
        }
    }
}
