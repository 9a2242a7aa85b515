//! What the daemon and the monitor share: the protocol between them, the exit record, and which
//! sysctls a pod can have.

pub mod exit;
pub mod protocol;
pub mod socket;
pub mod sysctl;
