//! The roles by which the daemon probes what works on its node, inside a container if need be.

use std::process::ExitCode;

use nix::mount::{MsFlags, mount};

/// `probe-mount DIR`: mounts a tmpfs there, for the host to see (or not).
pub(crate) fn mount_at(arguments: &[String]) -> ExitCode {
    let [dir] = arguments else { return ExitCode::from(2) };
    match mount(Some("tmpfs"), dir.as_str(), Some("tmpfs"), MsFlags::empty(), Some("size=4k")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
