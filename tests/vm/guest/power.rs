//! The node goes down with pods on it, in good order and by a power cut, and comes up again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cria_proto::{ContainerState, ContainerStatusRequest, ListContainersRequest};
use harness::Cri;
use harness::cri::Container;
use harness::wait::within;
use serde::{Deserialize, Serialize};

use crate::STATE;
use crate::kubelet::{self, STANDING, await_end, await_standing, forever, newest, once, take_away};
use crate::node::{
    LIMIT, assert_no_failed_unit, await_cria, cgroups, eventually, pod, run, running, script,
};

/// What there was before the machine went down.
#[derive(Deserialize, Serialize)]
struct Before {
    running: Vec<String>,
    /// A container that had ended with 3.
    ended: Option<String>,
    /// One of cria's own that ends with 7 when it is asked to.
    asked: Option<String>,
}

impl Before {
    fn file() -> PathBuf {
        Path::new(STATE).join("before.json")
    }

    fn keep(&self) -> Result<()> {
        fs_err::write(Self::file(), serde_json::to_vec(self)?)?;
        Ok(())
    }

    fn read() -> Result<Self> {
        Ok(serde_json::from_slice(&fs_err::read(Self::file())?)?)
    }
}

pub(crate) fn before_reboot() -> Result<()> {
    let cri = await_cria()?;
    once("asked", "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done")?;
    let asked = eventually("asked runs", || newest(&cri, "asked").ok().filter(kubelet::runs))?;
    let asked = Container { cri: cri.clone(), id: asked.id };
    asked.await_log("up", LIMIT);
    let ended = await_end(&cri, "fails")?;
    ensure!(ended.exit_code == 3, "{ended:?}");
    Before { running: running(&cri)?, ended: Some(ended.id), asked: Some(asked.id) }.keep()
}

pub(crate) fn after_reboot() -> Result<()> {
    let before = Before::read()?;
    let cri = await_cria()?;
    for (id, code) in [(&before.ended, 3), (&before.asked, 7)] {
        let id = id.as_ref().context("it was kept")?;
        let request = ContainerStatusRequest { container_id: id.clone(), ..Default::default() };
        let status = cri.container_status(request)?.status.context("it has a status")?;
        ensure!(status.exit_code == code, "not {code}: {status:?}");
    }
    all_is_new(&cri, &before)
}

/// The kubelet has started every pod again, and of the old boot there are only records of ends.
fn all_is_new(cri: &Cri, before: &Before) -> Result<()> {
    await_standing(cri)?;
    let now = running(cri)?;
    let old: Vec<_> = now.iter().filter(|id| before.running.contains(id)).collect();
    ensure!(old.is_empty(), "of the old boot, and running: {old:?}");
    let unknown = cri
        .list_containers(ListContainersRequest::default())?
        .containers
        .into_iter()
        .filter(|c| c.state == i32::from(ContainerState::ContainerUnknown));
    ensure!(unknown.count() == 0, "containers are in an unknown state");
    for path in cgroups()? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(
            !before.running.iter().any(|id| name.contains(id.as_str())),
            "{name} of the old boot"
        );
    }
    let mounts = fs_err::read_to_string("/proc/self/mountinfo")?;
    let of_old =
        mounts.lines().find(|line| before.running.iter().any(|id| line.contains(id.as_str())));
    ensure!(of_old.is_none(), "{of_old:?}");
    addresses_are_in_use(cri)?;
    eventually("no unit has failed", || assert_no_failed_unit().ok())
}

/// Every address that the network's plugin has given away is that of a pod that is there. (One whose
/// file is empty was being given away when the power went: the plugin does not sync its files, and
/// nobody can say whose it was.)
fn addresses_are_in_use(cri: &Cri) -> Result<()> {
    let leases = || -> Result<Vec<String>> {
        let found =
            run("find", &["/var/lib/cni", "-name", "10.*", "-type", "f"]).unwrap_or_default();
        let pods = cri.list_pod_sandbox(Default::default())?.items;
        let mut stray = vec![];
        for file in found.lines() {
            let owner = fs_err::read_to_string(file).unwrap_or_default();
            if !owner.is_empty() && !pods.iter().any(|pod| owner.starts_with(&pod.id)) {
                stray.push(format!("{file}: {owner}"));
            }
        }
        Ok(stray)
    };
    within(LIMIT, || leases().ok()?.is_empty().then_some(()));
    ensure!(leases()?.is_empty(), "addresses of no pod: {:?}", leases()?);
    Ok(())
}

/// Leaves the machine in the middle of starting, ending and pulling.
pub(crate) fn before_power_cut() -> Result<()> {
    let cri = await_cria()?;
    let ended = await_end(&cri, "fails").map(|status| status.id).ok();
    for n in 1..=3 {
        once(&format!("ends-{n}"), "sleep 1; exit 5")?;
        forever(&format!("comes-{n}"))?;
    }
    take_away("plain-2")?;
    within(Duration::from_secs(4), || newest(&cri, "comes-1").ok());
    Before { running: running(&cri)?, ended, asked: None }.keep()?;
    // The tests' own notes are to be there afterwards; cria's own files may be lost.
    run("sync", &["--file-system", STATE])?;
    // It goes on when this test has ended, up to the cut.
    Command::new(std::env::current_exe()?).arg("--work").stdin(Stdio::null()).spawn()?;
    within(Duration::from_secs(5), || None::<()>);
    Ok(())
}

/// Makes and removes pods until something stops it. The kubelet may be quicker to end them.
pub(crate) fn work() -> Result<()> {
    let cri = await_cria()?;
    loop {
        let pod = cri.run_pod(pod("in-work"));
        if let Ok(container) = pod.create(script("in-work", "exit 0")) {
            let _ = container.start();
        }
        let _ = pod.stop();
        let _ = pod.remove();
    }
}

pub(crate) fn after_power_cut() -> Result<()> {
    forever("plain-2")?;
    let cri = await_cria()?;
    all_is_new(&cri, &Before::read()?)?;
    for n in 1..=3 {
        eventually("what came runs", || {
            newest(&cri, &format!("comes-{n}")).ok().filter(kubelet::runs)
        })?;
    }
    for name in STANDING {
        println!("{name}: {:?}", newest(&cri, name).map(|status| status.state()));
    }
    kubelet::bridge_serves(&cri)
}
