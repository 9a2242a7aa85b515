//! The streams of an exec or attach, whichever protocol carries them.

/// Numbered as the WebSocket protocols number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// Where the outcome is told.
    Error = 3,
    /// The size of the client's terminal, as JSON objects one after the other.
    Resize = 4,
}

impl Channel {
    /// By the name that SPDY's header `streamType` has for it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "stdin" => Some(Self::Stdin),
            "stdout" => Some(Self::Stdout),
            "stderr" => Some(Self::Stderr),
            "error" => Some(Self::Error),
            "resize" => Some(Self::Resize),
            _ => None,
        }
    }
}

/// What a client has sent on a channel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Incoming<'a> {
    pub(crate) channel: Channel,
    pub(crate) bytes: &'a [u8],
    /// Nothing follows.
    pub(crate) last: bool,
}
