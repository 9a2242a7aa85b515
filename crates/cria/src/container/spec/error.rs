//! Why there is no spec, by what the caller can do about it.

use std::io;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// The request contradicts itself, or asks for what no node could do.
    #[error("invalid {field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// A node set up in another way could do it.
    #[error("{what} is not possible on this node: {reason}")]
    NotOnThisNode { what: &'static str, reason: String },
    /// The image lacks or spoils what the request relies on.
    #[error("unusable image: {reason}")]
    Image { reason: String },
    #[error("{action}")]
    Io { action: &'static str, source: io::Error },
}

impl SpecError {
    pub(super) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    pub(super) fn not_here(what: &'static str, reason: impl Into<String>) -> Self {
        Self::NotOnThisNode { what, reason: reason.into() }
    }

    pub(crate) fn image(reason: impl Into<String>) -> Self {
        Self::Image { reason: reason.into() }
    }

    /// For `map_err`. The source names the path (`fs_err`).
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
