//! Probes of every kind: those that pass, and those that fail.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Case, case};
use crate::site::{Site, restarts, status, with};

pub(crate) const CASES: &[Case] = &[
    case("exec, HTTP and TCP probes pass", passing),
    case("a readiness probe turns, and turns back", turning),
    case("a failing liveness probe restarts the container", failing),
    case("an exec probe that runs out of time fails", timing_out),
];

fn passing(site: &Site) -> Result<()> {
    let serve = "mkdir -p /tmp/www; echo well > /tmp/www/health; exec httpd -f -p 80 -h /tmp/www";
    let kinds = [
        ("exec", json!({ "exec": { "command": ["sh", "-c", "test $(hostname) = probes-node"] } })),
        ("http", json!({ "httpGet": { "path": "/health", "port": 80 } })),
        ("tcp", json!({ "tcpSocket": { "port": 80 } })),
    ];
    let containers = kinds.map(|(name, probe)| {
        let probe = with(
            probe,
            json!({ "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 30 }),
        );
        // One of them serves; the others are asked at the pod's address too.
        let script = if name == "http" { serve } else { "sleep 10000" };
        let probes =
            json!({ "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe });
        with(site.sh(name, script), probes)
    });
    site.apply("probes", json!({ "containers": containers }));
    let pod = site.ready("probes")?;
    for name in ["exec", "http", "tcp"] {
        ensure!(status(&pod, name)["started"] == true, "{}", pod["status"]);
        ensure!(restarts(&pod, name) == 0, "{}", pod["status"]);
    }
    Ok(())
}

fn turning(site: &Site) -> Result<()> {
    let probe = json!({ "readinessProbe": {
        "exec": { "command": ["test", "-e", "/tmp/ready"] },
        "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 1,
    }});
    let main = with(site.sh("main", "touch /tmp/ready; sleep 10000"), probe);
    site.apply("turning", json!({ "containers": [main] }));
    let is = |ready: bool| {
        move |pod: &Value| (status(pod, "main")["ready"] == ready).then(|| restarts(pod, "main"))
    };
    site.ready("turning")?;
    site.exec("turning", "main", "rm /tmp/ready")?;
    site.pod("turning", "not ready", is(false))?;
    site.exec("turning", "main", "touch /tmp/ready")?;
    ensure!(site.pod("turning", "ready again", is(true))? == 0, "it was restarted");
    Ok(())
}

fn failing(site: &Site) -> Result<()> {
    let probe = json!({ "livenessProbe": {
        "exec": { "command": ["false"] },
        "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 1,
    }});
    let script = "trap 'exit 9' TERM; while :; do sleep 0.1; done";
    let main = with(site.sh("main", script), probe);
    let spec = json!({ "terminationGracePeriodSeconds": 30, "containers": [main] });
    site.apply("failing-probe", spec);
    let pod = site.pod("failing-probe", "restarted", |pod| {
        (restarts(pod, "main") >= 2).then(|| pod.clone())
    })?;
    let last = &status(&pod, "main")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 9, "{last}");
    Ok(())
}

fn timing_out(site: &Site) -> Result<()> {
    let probe = json!({ "readinessProbe": {
        "exec": { "command": ["sleep", "1000"] },
        "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1,
    }});
    let main = with(site.sh("main", "sleep 10000"), probe);
    site.apply("slow-probe", json!({ "containers": [main] }));
    site.pod("slow-probe", "running", |pod| {
        status(pod, "main")["state"]["running"].is_object().then_some(())
    })?;
    // The command that ran out of time is ended: at most the last probes' are there.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        let table = site.exec("slow-probe", "main", "ps")?;
        let running = table.lines().filter(|line| line.ends_with("sleep 1000")).count();
        ensure!(running <= 2, "{running} commands of probes at once:\n{table}");
    }
    ensure!(status(&site.now("slow-probe"), "main")["ready"] == false, "it is ready");
    Ok(())
}
