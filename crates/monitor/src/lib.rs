//! What the daemon and the monitor share: the protocol between them and the exit record.

pub mod exit;
pub mod protocol;
pub mod socket;
