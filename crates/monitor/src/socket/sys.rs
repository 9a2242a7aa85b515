//! The one thing about received descriptors that no safe wrapper covers.

#![expect(unsafe_code, reason = "SCM_RIGHTS delivers descriptors as bare numbers")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of the descriptors that one `recvmsg` delivered.
pub(super) fn own_received(raw: &[RawFd], owned: &mut Vec<OwnedFd>) {
    for &fd in raw {
        // SAFETY: from_raw_fd demands an open descriptor that nobody else owns. The kernel opened
        // `fd` for this very recvmsg, and the caller passes each control message once, right after.
        owned.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}
