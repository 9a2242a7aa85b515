//! The project's other tests, run here on the cria that the package installed.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::node::{await_cria, systemctl};

/// Rows of `make kubelet` that tell cgroup v2 and systemd from what the development machine has; no
/// more than there is time for.
const ROWS: &str = "resource limits,out of memory: OOMKilled,/stats/summary,graceful deletion,\
    all pods go,nothing of the pods";

/// Specs of critest, by parts of their names.
const SPECS: &str = "Privileged is,HostPID,PodPID,ContainerPID,HostIpc is,capability,ALL capabilities,\
    SeccompProfilePath,NoNewPrivs,OOMKilled,safe sysctls,'rshared',listing container stats,\
    listing stats for started containers [Conformance],execSync with timeout";

fn run(program: &str, variables: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(["--nocapture", "--test-threads=1"]).envs(variables.iter().copied());
    let status = command.status()?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

pub(crate) fn kubelet_rows() -> Result<()> {
    // It would take the pods of another kubelet for its own to remove.
    systemctl(&["disable", "--now", "kubelet"])?;
    let failures = await_cria()?.remove_all_pods()?;
    ensure!(failures.is_empty(), "{failures:?}");
    run("/opt/cria/kubelet", &[("CRIA_KUBELET_PEER", "installed"), ("CRIA_KUBELET_ONLY", ROWS)])
}

pub(crate) fn conformance_some() -> Result<()> {
    conformance(&[("CRIA_CONFORMANCE_ONLY", SPECS)])
}

pub(crate) fn conformance_all() -> Result<()> {
    conformance(&[])
}

fn conformance(more: &[(&str, &str)]) -> Result<()> {
    let mut variables = vec![("CRIA_CONFORMANCE_PEER", "installed")];
    variables.extend(more);
    run("/opt/cria/conformance", &variables)
}
