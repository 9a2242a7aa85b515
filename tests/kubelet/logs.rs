//! Logs as the kubelet reads them, and log files before there is a log.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Case, case};
use crate::site::{LIMIT, Site, read, restarts, with};

pub(crate) const CASES: &[Case] = &[
    case("logs: both streams, long lines, no last newline, the tail", reading),
    case("a create that fails five times stays at attempt 0, without a log", failing_create),
];

fn reading(site: &Site) -> Result<()> {
    let script = "echo to stdout; sleep 0.2; echo to stderr >&2; sleep 0.2; \
                  head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'a\\rb\\n'; printf 'no newline'";
    let spec = json!({ "restartPolicy": "Never", "containers": [site.sh("main", script)] });
    site.apply("logs", spec);
    site.ended("logs", "Succeeded")?;
    let long = "x".repeat(40_000);
    let wanted = format!("to stdout\nto stderr\n{long}\na\rb\nno newline");
    let log = site.log("logs", "main")?;
    ensure!(log.trim_end_matches('\n') == wanted, "{} bytes: {:.300}", log.len(), log);
    ensure!(site.log_with("logs", "main", "tailLines=2")?.starts_with("a\rb\n"));
    Ok(())
}

/// The profile is read when the container is made; the kubelet does not look whether it is there.
fn failing_create(site: &Site) -> Result<()> {
    let profile = json!({ "type": "Localhost", "localhostProfile": "later.json" });
    let main = with(
        site.sh("main", "echo made; sleep 10000"),
        json!({ "securityContext": { "seccompProfile": profile } }),
    );
    site.apply("failing-create", json!({ "containers": [main] }));
    site.waited_for("failing-create", "CreateContainerError")?;
    let failures = || {
        let log = read(&site.kubelet_log).unwrap_or_default();
        let wanted = |line: &&str| {
            line.contains("CreateContainerError")
                && line.contains("failing-create")
                && line.contains("pod_workers.go")
        };
        log.lines().filter(wanted).count()
    };
    let enough = harness::wait::within(LIMIT, || {
        harness::wait::after(Duration::from_millis(500));
        (failures() >= 5).then_some(())
    });
    enough.with_context(|| format!("it was tried {} times", failures()))?;
    let folder = site.log_folder(&site.now("failing-create"), "main");
    let files: Vec<_> = folder.read_dir().into_iter().flatten().flatten().collect();
    ensure!(files.is_empty(), "before the first start: {files:?}");

    let profiles = site.files.root().join("seccomp");
    fs_err::create_dir_all(&profiles)?;
    fs_err::write(profiles.join("later.json"), r#"{ "defaultAction": "SCMP_ACT_ALLOW" }"#)?;
    let pod = site.ready("failing-create")?;
    ensure!(restarts(&pod, "main") == 0, "{}", pod["status"]);
    let log = read(folder.join("0.log"))?;
    ensure!(log.ends_with(" stdout F made\n"), "{log}");
    Ok(())
}
