//! The unit's life: whatever is done to cria's service, no container notices.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cria_proto::{CgroupDriver, ListContainersRequest, RuntimeConfigRequest, StatusRequest};
use harness::wait::within;

use crate::event::Event;
use crate::node::{
    BUSYBOX, COUNTER, LIMIT, Standing, assert_no_failed_unit, await_cria, cgroups, cri, eventually,
    host_pod, main_pid, output, pod, property, run, script, systemctl,
};
use crate::{STATE, kernel_word};

const REGISTRIES: &str = "/etc/containers/registries.conf";
const EXAMPLE: &str = "/usr/share/cria/cni/10-cria-bridge.conflist";
const NETWORK: &str = "/etc/cni/net.d/10-cria-bridge.conflist";
const DROP_IN: &str = "/etc/cria/cria.toml.d/90-test.toml";
const UNIT_DROP_INS: &str = "/run/systemd/system/cria.service.d";
const NEWER: &str = "/opt/cria/newer.deb";

pub(crate) fn is_up() -> Result<()> {
    eventually("cria.service is active", || {
        (property("ActiveState").ok()? == "active").then_some(())
    })
    .with_context(|| {
        output("systemctl", &["status", "cria"]).map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    })?;
    let cri = await_cria()?;
    let driver = cri.runtime_config(RuntimeConfigRequest {})?.linux.unwrap_or_default();
    ensure!(driver.cgroup_driver() == CgroupDriver::Systemd, "{driver:?}");
    // The network is not there yet, and optional: nothing else may be missing.
    let check = output("cria", &["check"])?;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    println!("{said}");
    let bad = |line: &&str| !line.starts_with("ok") && !line.contains("CNI");
    ensure!(said.lines().find(bad).is_none(), "{said}");
    ensure!(check.status.code() == Some(2), "something optional is missing: {}", check.status);
    set_up_images()?;
    let check = output("cria", &["check"])?;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(check.status.code() == Some(0), "nothing is missing: {}: {said}", check.status);
    Ok(())
}

/// Without two system calls that every pod takes, `cria check` fails, and says which.
pub(crate) fn check_fails() -> Result<()> {
    let filter =
        ["-p", "SystemCallFilter=~openat2 pidfd_open", "-p", "SystemCallErrorNumber=ENOSYS"];
    let run = ["--pipe", "--wait", "--quiet", "--collect", "cria", "check", "--json"];
    let check = output("systemd-run", &[&filter[..], &run[..]].concat())?;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(check.status.code() == Some(1), "{}: {said}", check.status);
    for name in ["openat2", "pidfd"] {
        let line = said.lines().find(|line| line.contains(name));
        ensure!(line.is_some(), "{name} is not named: {said}");
    }
    Ok(())
}

/// Tells cria where images come from, by a reload.
fn set_up_images() -> Result<()> {
    let address = kernel_word("cria.registry").context("no registry is named")?;
    let mut conf = String::new();
    for name in ["registry.test", "registry.k8s.io", "k8s.gcr.io", "gcr.io"] {
        conf += &format!(
            "[[registry]]\nprefix = \"{name}\"\nlocation = \"{address}\"\ninsecure = true\n\n"
        );
    }
    fs_err::create_dir_all("/etc/containers")?;
    fs_err::write(REGISTRIES, conf)?;
    fs_err::create_dir_all("/etc/cni/net.d")?;
    fs_err::copy(EXAMPLE, NETWORK)?;
    systemctl(&["reload", "cria"])?;
    Ok(())
}

/// Two pods that are there through all that follows.
pub(crate) fn pods_run() -> Result<()> {
    let cri = await_cria()?;
    eventually("the network is ready", || {
        let status = cri.status(StatusRequest::default()).ok()?.status?;
        status.conditions.iter().all(|condition| condition.status).then_some(())
    })?;
    cri.pull(BUSYBOX);
    for config in [host_pod("on-host"), pod("on-bridge")] {
        let pod = cri.run_pod(config);
        for name in ["one", "two"] {
            pod.run(script(name, COUNTER)).await_log("stdout F 2\n", LIMIT);
        }
    }
    Standing::remember(&cri)?;
    Standing::assert_undisturbed()?;
    eventually("the status line counts them", || {
        let line = property("StatusText").ok()?;
        (line.contains('2') && line.contains('4')).then_some(())
    })
    .with_context(|| property("StatusText").unwrap_or_default())?;
    assert_no_failed_unit()
}

/// Whether `action` left every container alone, and the service is active after it.
fn undisturbed_by(action: impl FnOnce() -> Result<()>) -> Result<()> {
    action()?;
    eventually("cria.service is active", || {
        (property("ActiveState").ok()? == "active").then_some(())
    })?;
    Standing::assert_undisturbed()?;
    assert_no_failed_unit()
}

pub(crate) fn reload() -> Result<()> {
    let pid = main_pid()?;
    undisturbed_by(|| systemctl(&["reload", "cria"]).map(drop))?;
    ensure!(main_pid()? == pid, "a reload is no restart");
    Ok(())
}

pub(crate) fn restart() -> Result<()> {
    undisturbed_by(|| systemctl(&["restart", "cria"]).map(drop))?;
    // And a second one at once: nothing of the first may be in the way.
    undisturbed_by(|| systemctl(&["restart", "cria"]).map(drop))
}

pub(crate) fn stop_and_start() -> Result<()> {
    undisturbed_by(|| {
        systemctl(&["stop", "cria"])?;
        ensure!(property("ActiveState")? == "inactive", "it is {}", property("ActiveState")?);
        let begun = Instant::now();
        systemctl(&["start", "--no-block", "cria"])?;
        let listed = || cri().list_containers(ListContainersRequest::default()).ok();
        let listed = within(LIMIT, listed).context("cria does not answer")?.containers.len();
        let took = begun.elapsed();
        println!("{}{listed} containers listed {took:.1?} after the start", Event::MEASURED);
        Ok(())
    })
}

/// Stopped in the middle of everything, the daemon tells systemd no more that it lives.
pub(crate) fn watchdog() -> Result<()> {
    // Not so long as the unit's own, and without the core that the signal would leave.
    fs_err::create_dir_all(UNIT_DROP_INS)?;
    let drop_in = Path::new(UNIT_DROP_INS).join("90-watchdog.conf");
    fs_err::write(&drop_in, "[Service]\nWatchdogSec=10s\nLimitCORE=0\n")?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["restart", "cria"])?;
    let pid = main_pid()?;
    let outcome = undisturbed_by(|| {
        systemctl(&["kill", "--kill-whom=main", "--signal=STOP", "cria"])?;
        await_another(pid)
    });
    fs_err::remove_file(drop_in)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["restart", "cria"])?;
    outcome
}

pub(crate) fn kill9() -> Result<()> {
    let pid = main_pid()?;
    undisturbed_by(|| {
        systemctl(&["kill", "--kill-whom=main", "--signal=KILL", "cria"])?;
        await_another(pid)
    })
}

/// SIGTERM to the daemon and to all monitors.
pub(crate) fn kill_all() -> Result<()> {
    let pid = main_pid()?;
    undisturbed_by(|| {
        systemctl(&["kill", "cria"])?;
        await_another(pid)
    })
}

/// SIGKILL to the daemon and to all monitors: what the containers write meanwhile is lost, and a
/// pipe that nobody reads would end them, so these count quietly.
pub(crate) fn kill9_all() -> Result<()> {
    let cri = await_cria()?;
    let pod = cri.run_pod(host_pod("quiet"));
    let quiet = pod.run(script("quiet", "trap 'exit 3' TERM; while :; do sleep 0.1; done"));
    let init = crate::node::Init::of(&quiet.id)?;
    let pid = main_pid()?;
    systemctl(&["kill", "--signal=KILL", "cria"])?;
    await_another(pid)?;
    await_cria()?;
    ensure!(crate::node::Init::of(&quiet.id)? == init, "it is another process");
    eventually("it can be entered", || quiet.exec(&["true"]).ok().filter(|o| o.exit_code == 0))?;
    quiet.stop(Duration::from_secs(20))?;
    quiet.await_exit(LIMIT);
    pod.stop()?;
    pod.remove()?;
    // The others may have met a closed pipe, or not: they begin anew here.
    renew_standing()?;
    assert_no_failed_unit()
}

/// Takes all pods away and puts new ones up.
fn renew_standing() -> Result<()> {
    let failures = await_cria()?.remove_all_pods()?;
    ensure!(failures.is_empty(), "{failures:?}");
    pods_run()
}

pub(crate) fn crash_loop() -> Result<()> {
    fs_err::create_dir_all("/etc/cria/cria.toml.d")?;
    fs_err::write(DROP_IN, "[runtime]\ncgroup-driver = \"nonsense\"\n")?;
    let outcome = systemctl(&["restart", "cria"]);
    ensure!(outcome.is_err(), "it starts with a wrong configuration");
    let restarts = || property("NRestarts").ok()?.parse::<u32>().ok();
    eventually("it is tried again and again", || (restarts()? >= 4).then_some(()))?;
    fs_err::remove_file(DROP_IN)?;
    undisturbed_by(|| eventually("cria answers", || await_cria().ok()).map(drop))
}

pub(crate) fn upgrade() -> Result<()> {
    let pid = main_pid()?;
    undisturbed_by(|| {
        dpkg(&["--install", NEWER])?;
        await_another(pid)
    })?;
    let version = run("dpkg-query", &["--show", "--showformat", "${Version}", "cria"])?;
    ensure!(version.ends_with("-2"), "{version} is installed");
    Ok(())
}

fn dpkg(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("dpkg");
    let output = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    ensure!(output.status.success(), "dpkg {arguments:?}: {said}");
    Ok(())
}

fn await_another(pid: u32) -> Result<()> {
    eventually("another daemon runs", || {
        let now = main_pid().ok()?;
        (now != pid && now != 0).then_some(())
    })
}

pub(crate) fn remove() -> Result<()> {
    renew_standing()?;
    let ids = Standing::ids()?;
    dpkg(&["--remove", "cria"])?;
    ensure!(!Path::new("/usr/bin/cria").exists(), "the program is there still");
    let there = cgroups()?;
    for id in &ids {
        let scope = format!("cria-{id}.scope");
        ensure!(there.iter().any(|path| path.ends_with(&scope)), "{id} does not run on");
    }
    // And they are taken up again by the daemon that comes next.
    dpkg(&["--install", NEWER])?;
    systemctl(&["start", "cria"])?;
    undisturbed_by(|| Ok(()))
}

pub(crate) fn purge() -> Result<()> {
    ensure!(
        !await_cria()?.list_containers(ListContainersRequest::default())?.containers.is_empty()
    );
    dpkg(&["--purge", "cria"])?;
    let left = || {
        let mut left: Vec<_> = ["/run/cria", "/var/lib/cria", "/etc/cria"]
            .into_iter()
            .filter(|path| Path::new(path).exists())
            .map(str::to_owned)
            .collect();
        left.extend(lines("/proc/self/mountinfo", |line| line.contains("cria")));
        let groups =
            cgroups().unwrap_or_default().into_iter().map(|path| path.display().to_string());
        left.extend(groups.filter(|path| path.contains("/cria-") && path.ends_with(".scope")));
        left
    };
    within(LIMIT, || left().is_empty().then_some(()));
    ensure!(left().is_empty(), "left: {:#?}", left());
    fs_err::write(Path::new(STATE).join("purged"), "")?;
    assert_no_failed_unit()
}

fn lines(path: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| wanted(line)).map(str::to_owned).collect()
}
