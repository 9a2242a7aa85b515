//! The node as the package made it: cria's service, its pods, and what systemd and the kernel have
//! of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cria_proto::{
    ContainerConfig, ContainerState, ContainerStatusRequest, ListContainersRequest,
    PodSandboxConfig, VersionRequest,
};
use harness::Cri;
use harness::cri::{Container, container_config, on_host_network, pod_config};
use harness::wait::within;
use serde::{Deserialize, Serialize};

use crate::STATE;

pub(crate) const SOCKET: &str = "/run/cria/cria.sock";
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// How long a node may take for what it does in a second or ten. Only waited out when it fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// The image of the pods, by the name under which the host's registry is known here.
pub(crate) const BUSYBOX: &str = "registry.test/busybox:1";

/// Writes its count twice a second, and answers SIGTERM.
pub(crate) const COUNTER: &str = "trap 'echo bye; exit 0' TERM; n=0; \
    while :; do n=$((n + 1)); echo $n; sleep 0.5; done";

/// Runs a command to its end; its output if it succeeds.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = output(program, arguments)?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program} {arguments:?}: {}: {out}{err}", output.status);
    Ok(out.into_owned())
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<Output> {
    Command::new(program).args(arguments).output().with_context(|| program.to_owned())
}

pub(crate) fn systemctl(arguments: &[&str]) -> Result<String> {
    run("systemctl", arguments)
}

/// A property of cria's unit.
pub(crate) fn property(name: &str) -> Result<String> {
    let value = systemctl(&["show", "--value", "--property", name, "cria.service"])?;
    Ok(value.trim().to_owned())
}

pub(crate) fn main_pid() -> Result<u32> {
    Ok(property("MainPID")?.parse()?)
}

/// Waits until `state` is there.
pub(crate) fn eventually<T>(what: &str, state: impl FnMut() -> Option<T>) -> Result<T> {
    within(LIMIT, state).with_context(|| format!("never within {LIMIT:?}: {what}"))
}

pub(crate) fn cri() -> Cri {
    Cri::connect(Path::new(SOCKET))
}

/// Waits until cria answers.
pub(crate) fn await_cria() -> Result<Cri> {
    let cri = cri();
    eventually("cria answers", || cri.version(VersionRequest::default()).ok())?;
    Ok(cri)
}

/// A pod as the kubelet asks for it with the systemd driver: in a slice of its own.
pub(crate) fn pod(name: &str) -> PodSandboxConfig {
    let mut config = pod_config(name);
    let uid = config.metadata.clone().unwrap_or_default().uid;
    config.log_directory = format!("/var/log/pods/tests_{name}_{uid}");
    fs_err::create_dir_all(&config.log_directory).expect("tests run as root");
    let linux = config.linux.get_or_insert_default();
    linux.cgroup_parent = format!("tests-pod{}.slice", uid.replace('-', "_"));
    config
}

pub(crate) fn host_pod(name: &str) -> PodSandboxConfig {
    on_host_network(pod(name))
}

pub(crate) fn script(name: &str, script: &str) -> ContainerConfig {
    container_config(name, BUSYBOX, &["sh", "-c", script])
}

/// The process that a container is, told from another of the same number by its time of birth.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Init {
    pub(crate) pid: u32,
    born: u64,
}

impl Init {
    /// The first process in the container's cgroup.
    pub(crate) fn of(id: &str) -> Result<Self> {
        let group = cgroup_of(id)?.with_context(|| format!("{id} has no cgroup"))?;
        let pids = fs_err::read_to_string(group.join("cgroup.procs"))?;
        let inits = pids.lines().filter_map(|pid| Self::at(pid.parse().ok()?).ok());
        inits
            .min_by_key(|init| (init.born, init.pid))
            .with_context(|| format!("{id} has no process"))
    }

    fn at(pid: u32) -> Result<Self> {
        let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(") ").context("a name ends with a bracket")?.1;
        let born = fields.split(' ').nth(19).context("the time of birth is the 22nd field")?;
        Ok(Self { pid, born: born.parse()? })
    }
}

/// A container's cgroup, wherever its driver and parent put it.
pub(crate) fn cgroup_of(id: &str) -> Result<Option<PathBuf>> {
    Ok(cgroups()?.into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name == format!("cria-{id}.scope") || name == id
    }))
}

/// All cgroups of the machine.
pub(crate) fn cgroups() -> Result<Vec<PathBuf>> {
    // One that goes away meanwhile makes find complain.
    let found = output("find", &[CGROUPS, "-mindepth", "1", "-type", "d"])?;
    Ok(String::from_utf8_lossy(&found.stdout).lines().map(PathBuf::from).collect())
}

/// The value of a file in a container's cgroup.
pub(crate) fn limit(id: &str, file: &str) -> Result<String> {
    let group = cgroup_of(id)?.with_context(|| format!("{id} has no cgroup"))?;
    Ok(fs_err::read_to_string(group.join(file))?.trim().to_owned())
}

/// The ids of the containers that run.
pub(crate) fn running(cri: &Cri) -> Result<Vec<String>> {
    let containers = cri.list_containers(ListContainersRequest::default())?.containers;
    let runs = |state: i32| state == i32::from(ContainerState::ContainerRunning);
    Ok(containers.into_iter().filter(|c| runs(c.state)).map(|c| c.id).collect())
}

/// The containers that are to outlive what is done to cria, as they were at the beginning.
#[derive(Deserialize, Serialize)]
pub(crate) struct Standing(BTreeMap<String, Init>);

impl Standing {
    /// Remembers all containers that run now.
    pub(crate) fn remember(cri: &Cri) -> Result<()> {
        let inits = running(cri)?.into_iter().map(|id| Ok((id.clone(), Init::of(&id)?)));
        let standing = Self(inits.collect::<Result<_>>()?);
        fs_err::write(Self::file(), serde_json::to_vec(&standing)?)?;
        Ok(())
    }

    fn file() -> PathBuf {
        Path::new(STATE).join("standing.json")
    }

    pub(crate) fn ids() -> Result<Vec<String>> {
        let standing: Self = serde_json::from_slice(&fs_err::read(Self::file())?)?;
        Ok(standing.0.into_keys().collect())
    }

    /// Whether each is the very process it was, known as running, still logging, and can be
    /// entered.
    pub(crate) fn assert_undisturbed() -> Result<()> {
        let standing: Self = serde_json::from_slice(&fs_err::read(Self::file())?)?;
        ensure!(!standing.0.is_empty(), "no container is remembered");
        let cri = await_cria()?;
        for (id, init) in &standing.0 {
            ensure!(Init::of(id)? == *init, "{id} is another process: {:?}", Init::of(id)?);
            let request = ContainerStatusRequest { container_id: id.clone(), ..Default::default() };
            let status = cri.container_status(request)?.status.context("a status")?;
            ensure!(status.state() == ContainerState::ContainerRunning, "{status:?}");
            let container = Container { cri: cri.clone(), id: id.clone() };
            let before = container.log().len();
            eventually("its log goes on", || (container.log().len() > before).then_some(()))?;
            assert_whole(&container.written("stdout"))?;
            let output = container.exec(&["echo", "in"])?;
            ensure!(output.stdout == "in\n", "exec: {output}");
        }
        Ok(())
    }
}

/// Whether the counter's lines are all there, each once.
fn assert_whole(log: &str) -> Result<()> {
    for (index, line) in log.lines().enumerate() {
        ensure!(line == (index + 1).to_string(), "line {} of the log is {line:?}", index + 1);
    }
    Ok(())
}

/// No unit of this machine has failed.
pub(crate) fn assert_no_failed_unit() -> Result<()> {
    let failed = systemctl(&["list-units", "--state=failed", "--plain", "--no-legend"])?;
    ensure!(failed.trim().is_empty(), "failed units:\n{failed}");
    Ok(())
}
