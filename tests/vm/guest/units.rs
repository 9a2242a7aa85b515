//! Containers as systemd and the kernel see them: scopes, limits, and what becomes of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cria_proto::{ContainerConfig, LinuxContainerResources, RuntimeConfigRequest};
use harness::wait::within;

use crate::node::{
    Init, LIMIT, Standing, assert_no_failed_unit, await_cria, cgroup_of, cgroups, eventually,
    host_pod, limit, output, run, running, script, systemctl,
};

const DROP_IN: &str = "/etc/cria/cria.toml.d/90-driver.toml";
const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// Whether systemd knows the scope of container `id`.
fn has_scope(id: &str) -> Result<bool> {
    let name = format!("cria-{id}.scope");
    let listed = systemctl(&["list-units", "--all", "--plain", "--no-legend", &name])?;
    Ok(!listed.trim().is_empty())
}

/// Puts `resources` on a container.
fn limited(config: ContainerConfig, resources: LinuxContainerResources) -> ContainerConfig {
    let mut config = config;
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

pub(crate) fn scopes_go() -> Result<()> {
    let cri = await_cria()?;
    let pod = cri.run_pod(host_pod("scopes"));
    let slice = pod.config.linux.clone().unwrap_or_default().cgroup_parent;
    for (name, code, end) in [("by-itself", 3, "sleep 1; exit 3"), ("stopped", 0, SLEEP)] {
        let container = pod.run(script(name, end));
        let group = cgroup_of(&container.id)?;
        if let Some(group) = group {
            ensure!(group.ends_with(format!("{slice}/cria-{}.scope", container.id)), "{group:?}");
        }
        if name == "stopped" {
            ensure!(has_scope(&container.id)?, "it has no scope");
            assert_ends_well(&container.id)?;
            assert_monitors_apart()?;
            container.stop(Duration::from_secs(20))?;
        }
        let status = container.await_exit(LIMIT);
        ensure!(status.exit_code == code, "{status:?}");
        let gone = || (!has_scope(&container.id).ok()?).then_some(());
        eventually("its scope is gone", gone)?;
        eventually("its cgroup is gone", || {
            cgroup_of(&container.id).ok()?.is_none().then_some(())
        })?;
    }
    pod.stop()?;
    pod.remove()?;
    assert_no_failed_unit()
}

/// What systemd will do to the container at a shutdown of the node.
fn assert_ends_well(id: &str) -> Result<()> {
    let scope = format!("cria-{id}.scope");
    for (name, wanted) in [
        ("KillSignal", "15"),
        ("TimeoutStopUSec", "30s"),
        ("CollectMode", "inactive-or-failed"),
        ("After", "cria.service"),
        ("Before", "kubelet.service"),
    ] {
        let value = systemctl(&["show", "--value", "--property", name, &scope])?;
        ensure!(value.split_whitespace().any(|word| word == wanted), "{name} of {scope}: {value}");
    }
    Ok(())
}

/// Monitors are in cria's own cgroup: no pod pays for them.
fn assert_monitors_apart() -> Result<()> {
    let pids = run("pgrep", &["--full", "cria-monitor container"])?;
    for pid in pids.lines() {
        // One whose container has ended may go meanwhile.
        let Ok(groups) = fs_err::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        ensure!(groups.trim() == "0::/system.slice/cria.service/monitors", "{pid}: {groups}");
    }
    Ok(())
}

pub(crate) fn limits() -> Result<()> {
    let cri = await_cria()?;
    let pod = cri.run_pod(host_pod("limits"));
    let unified =
        [("memory.high", "50331648"), ("memory.min", "16777216"), ("memory.low", "20971520")];
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 204,
        memory_limit_in_bytes: 67_108_864,
        // Of memory and swap together.
        memory_swap_limit_in_bytes: 83_886_080,
        oom_score_adj: -500,
        unified: unified.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Default::default()
    };
    let container = pod.run(limited(script("main", SLEEP), resources));
    for (file, values) in [
        ("memory.max", vec!["67108864"]),
        ("memory.swap.max", vec!["16777216"]),
        ("cpu.max", vec!["50000 100000"]),
        ("cpu.weight", vec!["8", "35"]),
        ("memory.high", vec!["50331648"]),
        ("memory.min", vec!["16777216"]),
        ("memory.low", vec!["20971520"]),
    ] {
        let value = limit(&container.id, file)?;
        ensure!(values.contains(&value.as_str()), "{file} holds {value}, not {values:?}");
    }
    let score =
        fs_err::read_to_string(format!("/proc/{}/oom_score_adj", Init::of(&container.id)?.pid));
    ensure!(score?.trim() == "-500", "oom_score_adj is not what was asked for");
    let pressure = limit(&container.id, "memory.pressure")?;
    ensure!(pressure.starts_with("some "), "{pressure}");

    // systemd keeps them: a reload of its units would write its own values again.
    systemctl(&["daemon-reload"])?;
    for (file, wanted) in
        [("memory.max", "67108864"), ("cpu.max", "50000 100000"), ("memory.high", "50331648")]
    {
        let value = limit(&container.id, file)?;
        ensure!(value == wanted, "after daemon-reload {file} holds {value}, not {wanted}");
    }
    pod.stop()?;
    pod.remove()?;
    Ok(())
}

/// A shell with a child that takes all memory: `memory.oom.group` ends both.
pub(crate) fn out_of_memory() -> Result<()> {
    let cri = await_cria()?;
    let pod = cri.run_pod(host_pod("memory"));
    let resources = || LinuxContainerResources {
        memory_limit_in_bytes: 33_554_432,
        memory_swap_limit_in_bytes: 33_554_432,
        ..Default::default()
    };
    let alone = pod.run(limited(script("alone", "exec tail /dev/zero"), resources()));
    let status = alone.await_exit(LIMIT);
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "{status:?}");

    let mut group = resources();
    group.unified = [("memory.oom.group".to_owned(), "1".to_owned())].into();
    let child =
        pod.run(limited(script("group", "tail /dev/zero; echo survived; sleep 1000"), group));
    ensure!(limit(&child.id, "memory.oom.group").map_or(true, |value| value == "1"));
    let status = child.await_exit(LIMIT);
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "{status:?}");
    ensure!(!child.log().contains("survived"), "{}", child.log());
    pod.stop()?;
    pod.remove()?;
    // systemd notes what was killed for memory as its scope's result: that is no failed unit.
    eventually("no unit has failed", || assert_no_failed_unit().ok())
}

pub(crate) fn cgroupfs() -> Result<()> {
    fs_err::create_dir_all("/etc/cria/cria.toml.d")?;
    fs_err::write(DROP_IN, "[runtime]\ncgroup-driver = \"cgroupfs\"\n")?;
    systemctl(&["restart", "cria"])?;
    let outcome = one_life();
    fs_err::remove_file(DROP_IN)?;
    systemctl(&["restart", "cria"])?;
    outcome?;
    // Those that the other driver made were there all the time.
    Standing::assert_undisturbed()
}

fn one_life() -> Result<()> {
    let cri = await_cria()?;
    let driver = cri.runtime_config(RuntimeConfigRequest {})?.linux.unwrap_or_default();
    ensure!(driver.cgroup_driver() == cria_proto::CgroupDriver::Cgroupfs, "{driver:?}");
    Standing::assert_undisturbed()?;
    let parent = "/tests-cgroupfs";
    let mut config = host_pod("cgroupfs");
    config.linux.get_or_insert_default().cgroup_parent = parent.to_owned();
    let pod = cri.run_pod(config);
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 33_554_432,
        cpu_period: 100_000,
        cpu_quota: 20_000,
        ..Default::default()
    };
    let container = pod.run(limited(script("main", SLEEP), resources));
    ensure!(limit(&container.id, "memory.max")? == "33554432");
    ensure!(limit(&container.id, "cpu.max")? == "20000 100000");
    ensure!(container.exec(&["echo", "in"])?.stdout == "in\n");
    let group = cgroup_of(&container.id)?.context("it has a cgroup")?;
    ensure!(group.starts_with(format!("/sys/fs/cgroup{parent}")), "{group:?}");
    container.stop(Duration::from_secs(20))?;
    let status = container.await_exit(LIMIT);
    ensure!(status.exit_code == 0, "{status:?}");
    let oom = pod.run(limited(
        script("memory", "exec tail /dev/zero"),
        LinuxContainerResources {
            memory_limit_in_bytes: 33_554_432,
            memory_swap_limit_in_bytes: 33_554_432,
            ..Default::default()
        },
    ));
    let status = oom.await_exit(LIMIT);
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "{status:?}");
    pod.stop()?;
    pod.remove()?;
    eventually("the containers' cgroups are gone", || {
        cgroup_of(&container.id).ok()?.is_none().then_some(())
    })?;
    // The pod's own is the kubelet's to remove, which this test stands for.
    let _ = output("rmdir", &[&format!("/sys/fs/cgroup{parent}")])?;
    Ok(())
}

pub(crate) fn nothing_left() -> Result<()> {
    let cri = await_cria()?;
    let ids = running(&cri)?;
    ensure!(!ids.is_empty(), "nothing runs");
    let failures = cri.remove_all_pods()?;
    ensure!(failures.is_empty(), "{failures:?}");
    let left = || -> Result<Vec<String>> {
        let mut left = vec![];
        for path in cgroups()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("cria-") && name.ends_with(".scope") {
                left.push(name);
            }
        }
        let units = systemctl(&["list-units", "--all", "--plain", "--no-legend", "cria-*.scope"])?;
        left.extend(units.lines().map(str::to_owned));
        let mounts = fs_err::read_to_string("/proc/self/mountinfo")?;
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        left.extend(
            points
                .filter(|point| point.contains("/rootfs") || point.starts_with("/run/netns/"))
                .map(str::to_owned),
        );
        let monitors = output("pgrep", &["--full", "cria-monitor"])?;
        left.extend(
            String::from_utf8_lossy(&monitors.stdout).lines().map(|pid| format!("monitor {pid}")),
        );
        for folder in [
            "/run/cria/containers",
            "/run/cria/sandboxes",
            "/var/lib/cria/containers",
            "/var/lib/cria/sandboxes",
        ] {
            let entries = Path::new(folder).read_dir().into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        Ok(left)
    };
    within(LIMIT, || left().ok()?.is_empty().then_some(()));
    ensure!(left()?.is_empty(), "left: {:#?}", left()?);
    assert_no_failed_unit()
}
