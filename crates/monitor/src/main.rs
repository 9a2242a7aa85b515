//! The monitor's program. The first argument names the role, the second (the container's or pod's
//! id) is there for `ps`.

mod container;
mod log;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next().unwrap_or_default();
    match role.to_str() {
        Some("container") => container::main(),
        Some("probe-mount") => { let d = arguments.next().unwrap_or_default(); match nix::mount::mount(Some("t"), std::path::Path::new(&d), Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>) { Ok(()) => ExitCode::SUCCESS, Err(_) => ExitCode::FAILURE } }
        Some("probe") => ExitCode::SUCCESS,
        Some(_) | None => ExitCode::from(2),
    }
}
