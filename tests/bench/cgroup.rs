//! Which processes stand over containers: the parents, outside the pods' cgroups, of processes
//! inside.

use std::collections::BTreeSet;
use std::path::Path;

/// Parents outside the cgroup `pods` of the processes beneath it, those that run `program`.
pub(crate) fn outside_parents(pods: &str, program: Option<&str>) -> Vec<i32> {
    let entries = Path::new("/proc").read_dir().expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = pids.filter(|pid| is_inside(*pid, pods));
    let parents: BTreeSet<_> = inside.filter_map(parent).collect();
    parents
        .into_iter()
        .filter(|pid| *pid > 1 && !is_inside(*pid, pods))
        .filter(|pid| program.is_none_or(|program| runs(*pid, program)))
        .collect()
}

fn is_inside(pid: i32, pods: &str) -> bool {
    let groups = fs_err::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
        path.split_once(pods).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
    })
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// By its arguments: a program that runs from a memfd has no name in /proc/PID/exe. Only the
/// beginning of the name counts: built tools carry their version after it.
fn runs(pid: i32, program: &str) -> bool {
    let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    let name = Path::new(first.as_ref()).file_name().unwrap_or_default();
    name.to_string_lossy().starts_with(program)
}
