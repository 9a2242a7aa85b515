//! The monitor's program. The first argument names the role; the second, where the role is to be
//! found in `ps`, is the container's or pod's id.

mod container;
mod log;
mod namespaces;
mod pod_init;
mod probe;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |count: usize| arguments.get(count..).unwrap_or_default();
    match arguments.get(1).map(String::as_str) {
        Some("container") => container::main(),
        Some("namespaces") => namespaces::main(after(3)),
        Some("pod-init") => pod_init::main(after(3)),
        Some(pod_init::CONFINED) => pod_init::confined(),
        Some("probe-mount") => probe::mount_at(after(2)),
        Some(_) | None => ExitCode::from(2),
    }
}
