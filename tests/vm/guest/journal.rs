//! What the journal and the kernel's log hold at warning or above, over all boots, beyond what is
//! known to be said there.

use anyhow::{Result, ensure};

use crate::node::run;

/// Of cria's unit.
const ALLOWED: &[&str] = &[
    // systemd's lines about the monitors, which go on running: that is what they are for.
    "Found left-over process",
    "This usually indicates unclean termination of a previous run",
    "Unit process", // "... remains running after unit stopped."
    // What the tests do to it on purpose; the last two follow a kill of all monitors, for the end of
    // a container whose monitor was killed is waited for some seconds before it counts as unknown.
    "Main process exited, code=killed, status=9/KILL",
    "Failed with result 'signal'",
    "Failed with result 'exit-code'",
    "Failed to start cria.service",
    "Watchdog timeout",
    "with signal SIGABRT",
    "Main process exited, code=killed, status=6/ABRT",
    "Failed with result 'watchdog'",
    "no monitor answers",
    "a killed container does not end",
];

/// Of the containers' scopes: those that some tests have run out of memory.
const SCOPES: &[&str] = &["killed by the OOM killer", "Failed with result 'oom-kill'"];

/// Of the kernel: what emulation makes it say.
const EMULATED: &[&str] = &[
    "mtrr:",
    "tsc:",
    "TSC",
    "clocksource",
    "hrtimer: interrupt took",
    "amd_pstate",
    "LPM support broken",
    "APIC calibration",
    "MDS",
    "RETBleed",
    "Spectre",
    "spec_store_bypass",
    "vulnerab",
    "mitigations",
    "systemd[1]",
    "Speculative",
    "perf: interrupt took",
    "workqueue:",
    "8254 timer",
    "RTC interrupts",
    "rcu:",
    "sched: RT throttling",
    "sched: DL replenish lagged too much",
];

/// What a power cut leaves to say. Records are not synced as they are written: one of the moment
/// before is an empty file then, of a pod that is gone. And the kubelet may end the pods that are made
/// up to the cut under the hands of who makes them.
const POWER_CUT: &[&str] = &[
    "corrupted or uncleanly shut down",
    "recovery complete",
    "a record is set aside",
    "pod=\"tests/in-work\"",
];

/// And what containers make it say when they run out of memory, as some tests have it.
const MEMORY: &[&str] = &[
    "oom",
    "Out of memory",
    "Killed process",
    "Tasks state",
    "Memory cgroup",
    "invoked",
    "Call Trace",
    "Mem-Info",
    "CPU:",
    "Hardware name",
    "memory: usage",
    "swap: usage",
    "Memory cgroup stats",
];

pub(crate) fn is_clean() -> Result<()> {
    // cria writes its levels into the text: to journald every line of it is of the same priority.
    let own =
        run("journalctl", &["--unit=cria.service", "--boot=all", "--output=cat", "--no-pager"])?;
    let own: Vec<_> =
        own.lines().filter(|l| l.contains(" WARN ") || l.contains(" ERROR ")).collect();
    let own = own.join("\n");
    let strange_own = strange(&own, &[ALLOWED, POWER_CUT]);
    ensure!(strange_own.is_empty(), "cria's log: {strange_own:#?}");
    let cria = run(
        "journalctl",
        &["--unit=cria.service", "--priority=warning", "--output=cat", "--no-pager"],
    )?;
    let strange = strange(&cria, &[ALLOWED]);
    ensure!(strange.is_empty(), "cria's journal: {strange:#?}");
    let scopes = run(
        "journalctl",
        &["--unit=cria-*.scope", "--boot=all", "--priority=warning", "--output=cat", "--no-pager"],
    )?;
    let strange = self::strange(&scopes, &[SCOPES]);
    ensure!(strange.is_empty(), "the journal of containers' scopes: {strange:#?}");
    let kernel = run(
        "journalctl",
        &["--dmesg", "--boot=all", "--priority=warning", "--output=cat", "--no-pager"],
    )?;
    // Each line of a report is indented, or names a task: only what is in none counts.
    let outside: String = outside_of_reports(&kernel).join("\n");
    let strange = self::strange(&outside, &[EMULATED, POWER_CUT, MEMORY]);
    ensure!(strange.is_empty(), "the kernel's log: {strange:#?}");
    Ok(())
}

/// How reports of many lines begin and end: on memory, with who was killed; on a processor that did not
/// get on, which is the host's doing here, with its stack.
const REPORTS: [(&str, &str); 4] = [
    ("invoked oom-killer", "Killed process"),
    ("detected stalls", "</TASK>"),
    ("self-detected stall", "</TASK>"),
    ("soft lockup", "</TASK>"),
];

/// The lines of the kernel's log that are not within a report. One without an end is none.
fn outside_of_reports(log: &str) -> Vec<&str> {
    let (mut found, mut inside) = (vec![], vec![]);
    let mut end = None;
    for line in log.lines() {
        let begun = REPORTS.iter().find(|(first, _)| line.contains(first));
        end = end.or(begun.map(|(_, last)| *last));
        match end {
            None => found.push(line),
            Some(last) if line.contains(last) => {
                end = None;
                inside.clear();
            }
            Some(_) => inside.push(line),
        }
    }
    found.extend(inside);
    found
}

fn strange<'a>(text: &'a str, allowed: &[&[&str]]) -> Vec<&'a str> {
    let known =
        |line: &str| allowed.iter().flat_map(|list| list.iter()).any(|part| line.contains(part));
    text.lines().filter(|line| !line.trim().is_empty() && !known(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::outside_of_reports;

    #[test]
    fn what_is_in_no_whole_report_counts() {
        for (log, outside) in [
            ("a\nx invoked oom-killer\nb\nKilled process 1\nc", &["a", "c"][..]),
            ("rcu: detected stalls on CPUs\nRIP: 0\n </TASK>\nc", &["c"]),
            ("watchdog: BUG: soft lockup\nRIP: 0", &["watchdog: BUG: soft lockup", "RIP: 0"]),
            (
                "INFO: task x blocked for more than 120 s\n </TASK>",
                &["INFO: task x blocked for more than 120 s", " </TASK>"],
            ),
        ] {
            assert_eq!(outside_of_reports(log), outside, "{log}");
        }
    }
}
