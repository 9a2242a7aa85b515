//! The numbers of pods when they come from the CRI alone, held against the kernel's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::wait::{after, within};

use super::resources::pod_summary;
use super::{Case, case, ours};
use crate::cgroup;
use crate::site::{LIMIT, Site, read};

pub(crate) const CASES: &[Case] = &[
    case("statistics from the CRI: a pod's network is the kernel's", network),
    ours("statistics from the CRI: a pod's processes are the kernel's", processes),
];

/// A pod of the first stage, which is quiet by now.
const POD: &str = "measured";

fn network(site: &Site) -> Result<()> {
    let pod = site.ready(POD)?;
    let gateway = format!("{}.1", site.subnet);
    site.exec(POD, "main", &format!("ping -c 3 -i 0.2 -s 1000 {gateway}"))?;
    let pid = cgroup::init(site, &pod, "main").context("it runs")?;
    agree(|| {
        let told = &pod_summary(site, POD)?["network"];
        let (received, sent) = eth0(pid)?;
        ensure!(told["name"] == "eth0", "{told}");
        ensure!(
            told["rxBytes"] == received && told["txBytes"] == sent,
            "{told}: {received} {sent}"
        );
        ensure!(received > 3000 && sent > 3000, "{told}");
        Ok(())
    })
}

fn processes(site: &Site) -> Result<()> {
    let pod = site.ready(POD)?;
    agree(|| {
        let told = pod_summary(site, POD)?["process_stats"]["process_count"].take();
        let counted = cgroup::pod_pids(site, &pod).len();
        ensure!(told == counted, "{told} told, {counted} counted");
        Ok(())
    })
}

/// The numbers are taken every so often, and may be told a little later.
fn agree(check: impl Fn() -> Result<()>) -> Result<()> {
    let mut last = anyhow::anyhow!("never asked");
    let good = within(LIMIT, || match check() {
        Ok(()) => Some(()),
        Err(error) => {
            last = error;
            after(Duration::from_secs(1));
            None
        }
    });
    good.with_context(|| format!("{last:#}"))
}

/// Bytes received and sent by eth0, in the network namespace of a process.
fn eth0(pid: u32) -> Result<(u64, u64)> {
    let table = read(format!("/proc/{pid}/net/dev"))?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let fields: Vec<_> = line.context("a pod has eth0")?.split_whitespace().collect();
    Ok((fields[0].parse()?, fields[8].parse()?))
}
