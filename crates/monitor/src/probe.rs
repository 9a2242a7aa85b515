//! The roles by which the daemon probes what works on its node, inside a container if need be.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};

/// The second directory of `probe-mount` can be written to. (The daemon knows this code.)
const WRITABLE: u8 = 3;

/// `probe-mount DIR READ_ONLY`: mounts a tmpfs at DIR, for the host to see (or not), then tells by
/// its exit code whether READ_ONLY is.
pub(crate) fn mount_at(arguments: &[String]) -> ExitCode {
    let [dir, read_only] = arguments else { return ExitCode::from(2) };
    match mount(Some("tmpfs"), dir.as_str(), Some("tmpfs"), MsFlags::empty(), Some("size=4k")) {
        Ok(()) if File::create(Path::new(read_only).join("probe")).is_ok() => {
            ExitCode::from(WRITABLE)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
