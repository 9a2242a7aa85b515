//! Limits in the kernel's own files, out of memory, and the numbers of `/stats/summary`.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Case, case, ours};
use crate::cgroup;
use crate::site::{LIMIT, Site, restarts, status, terminated, with};

pub(crate) const CASES: &[Case] = &[
    case("resource limits are in the container's cgroup", limits),
    case("out of memory: OOMKilled, 137", out_of_memory),
    ours("out of memory in a child alone is not the container's end", child_out_of_memory),
    case("/stats/summary with default gates", summary),
];

fn limits(site: &Site) -> Result<()> {
    let of = |name: &str, resources| {
        with(site.sh(name, "sleep 10000"), json!({ "resources": resources }))
    };
    let spec = json!({ "containers": [
        of("limited", json!({
            "requests": { "cpu": "200m", "memory": "32Mi" },
            "limits": { "cpu": "500m", "memory": "64Mi" },
        })),
        of("free", json!({})),
    ]});
    site.apply("limits", spec);
    let pod = site.ready("limits")?;
    let v1 = [
        (vec!["memory.limit_in_bytes", "memory.max"], vec!["67108864"]),
        (vec!["cpu.cfs_quota_us"], vec!["50000"]),
        (vec!["cpu.shares"], vec!["204"]),
    ];
    let v2 = [
        (vec!["memory.max"], vec!["67108864"]),
        (vec!["cpu.max"], vec!["50000 100000"]),
        // Two formulas are in use for the weight of 204 shares.
        (vec!["cpu.weight"], vec!["8", "35"]),
    ];
    let is_v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    for (files, values) in if is_v2 { v2 } else { v1 } {
        let value = cgroup::value(site, &pod, "limited", &files)?;
        ensure!(values.contains(&value.as_str()), "{files:?} holds {value}, not {values:?}");
    }
    if !is_v2 {
        ensure!(cgroup::value(site, &pod, "free", &["cpu.shares"])? == "2");
        ensure!(cgroup::value(site, &pod, "free", &["cpu.cfs_quota_us"])? == "-1");
    }
    Ok(())
}

fn out_of_memory(site: &Site) -> Result<()> {
    let more = json!({ "resources": { "limits": { "memory": "32Mi" } } });
    let spec = json!({ "restartPolicy": "Never", "containers": [
        with(site.sh("main", "echo up; exec tail /dev/zero"), more),
    ]});
    site.apply("out-of-memory", spec);
    let pod = site.ended("out-of-memory", "Failed")?;
    let end = terminated(&pod, "main").context("it has ended")?;
    ensure!(end["reason"] == "OOMKilled" && end["exitCode"] == 137, "{end}");
    ensure!(site.log("out-of-memory", "main")? == "up\n");
    Ok(())
}

fn child_out_of_memory(site: &Site) -> Result<()> {
    let more = json!({ "resources": { "limits": { "memory": "32Mi" } } });
    let spec = json!({ "restartPolicy": "Never", "containers": [
        with(site.sh("main", "tail /dev/zero; echo child $?; exit 0"), more),
    ]});
    site.apply("child-out-of-memory", spec);
    let pod = site.ended("child-out-of-memory", "Succeeded")?;
    let end = terminated(&pod, "main").context("it has ended")?;
    ensure!(end["reason"] == "Completed" && end["exitCode"] == 0, "{end}");
    ensure!(restarts(&pod, "main") == 0 && status(&pod, "main").is_object());
    // The shell's own word, on the other output, may come before or behind.
    let log = site.log("child-out-of-memory", "main")?;
    ensure!(log.contains("child 137\n"), "{log}");
    Ok(())
}

/// Burns some time, holds some memory, writes something.
pub(crate) const WORK: &str = "n=0; while [ $n -lt 200000 ]; do n=$((n + 1)); done; \
    dd if=/dev/urandom of=/written bs=1024 count=2048 2>&-; echo end; sleep 10000";

fn summary(site: &Site) -> Result<()> {
    site.apply("measured", json!({ "containers": [site.sh("main", WORK)] }));
    site.await_log("measured", "main", "end\n")?;
    let mut last = anyhow::anyhow!("never asked");
    let good = harness::wait::within(LIMIT, || match check_summary(site, "measured") {
        Ok(()) => Some(()),
        Err(error) => {
            last = error;
            None
        }
    });
    good.with_context(|| format!("{last:#}"))
}

fn check_summary(site: &Site, name: &str) -> Result<()> {
    let pod = pod_summary(site, name)?;
    let container = &pod["containers"][0];
    ensure!(container["name"] == "main", "{pod:#}");
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    ensure!(number(&container["cpu"]["usageCoreNanoSeconds"]) > 10_000_000, "{container:#}");
    ensure!(number(&container["memory"]["workingSetBytes"]) > 10_000, "{container:#}");
    ensure!(number(&container["rootfs"]["usedBytes"]) >= 2048 * 1024, "{container:#}");
    ensure!(number(&container["rootfs"]["capacityBytes"]) > 0, "{container:#}");
    ensure!(number(&container["logs"]["usedBytes"]) > 0, "{container:#}");
    ensure!(number(&pod["memory"]["workingSetBytes"]) > 10_000, "{pod:#}");
    let images = site.api.json("/stats/summary")?["node"]["runtime"]["imageFs"].take();
    ensure!(number(&images["usedBytes"]) > 1024 * 1024, "{images:#}");
    ensure!(number(&images["capacityBytes"]) > number(&images["usedBytes"]), "{images:#}");
    Ok(())
}

/// What the kubelet's summary says of a pod.
pub(crate) fn pod_summary(site: &Site, name: &str) -> Result<Value> {
    let mut summary = site.api.json("/stats/summary")?;
    let pods = summary["pods"].as_array_mut().context("a summary has pods")?;
    let name = format!("{name}-{}", crate::process::NODE_NAME);
    let pod = pods.iter_mut().find(|pod| pod["podRef"]["name"] == name.as_str());
    Ok(pod.with_context(|| format!("{name} is not in the summary"))?.take())
}
