//! Limits: from the CRI's to the OCI runtime's, and an update's effect on those in force. Pure.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources,
};

use super::SpecError;
use super::node::{CgroupVersion, NodeFacts};
use crate::container::config::Resources;

/// For the spec of a new container.
pub(super) fn for_create(
    resources: &Resources,
    devices: Vec<LinuxDeviceCgroup>,
    node: &NodeFacts,
) -> LinuxResources {
    let mut spec = for_update(resources, node);
    spec.set_devices(Some(devices));
    if let Some(limit) = node.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        spec.set_pids(Some(pids));
    }
    spec
}

/// For the OCI runtime's `update`: the limits in force after it (see `merge`), whole. What a
/// request does not say is absent.
pub(crate) fn for_update(resources: &Resources, node: &NodeFacts) -> LinuxResources {
    let mut spec = LinuxResources::default();
    spec.set_cpu(cpu(resources)).set_memory(memory(resources, node));
    if node.hugetlb && !resources.hugepage_limits.is_empty() {
        spec.set_hugepage_limits(Some(hugepages(&resources.hugepage_limits)));
    }
    // These are names of cgroup v2 files: OCI runtimes refuse them on v1. The kubelet's wish is
    // kept in the record all the same.
    if node.cgroups == CgroupVersion::V2 && !resources.unified.is_empty() {
        spec.set_unified(Some(resources.unified.clone().into_iter().collect()));
    }
    spec
}

/// The limits in force after `update`, which is partial: zero and empty mean "unchanged", -1 means
/// "unlimited", and `unified` and huge pages change key by key. `oom_score_adj` belongs to a
/// process, not to its cgroup: no update reaches it, so the record goes on saying what is true.
pub(crate) fn merge(current: &Resources, update: &Resources) -> Resources {
    Resources {
        cpu_period: given(update.cpu_period, current.cpu_period),
        cpu_quota: given(update.cpu_quota, current.cpu_quota),
        cpu_shares: given(update.cpu_shares, current.cpu_shares),
        memory_limit_bytes: given(update.memory_limit_bytes, current.memory_limit_bytes),
        memory_swap_limit_bytes: given(
            update.memory_swap_limit_bytes,
            current.memory_swap_limit_bytes,
        ),
        oom_score_adj: current.oom_score_adj,
        cpuset_cpus: given_text(&update.cpuset_cpus, &current.cpuset_cpus),
        cpuset_mems: given_text(&update.cpuset_mems, &current.cpuset_mems),
        hugepage_limits: merge_hugepages(&current.hugepage_limits, &update.hugepage_limits),
        unified: merge_unified(&current.unified, &update.unified),
    }
}

/// `oom_score_adj` of the container's process: what is asked for, or the lowest the node allows.
pub(super) fn oom_score_adj(resources: &Resources, node: &NodeFacts) -> Result<i32, SpecError> {
    let asked = resources.oom_score_adj;
    if !(-1000..=1000).contains(&asked) {
        let reason = format!("{asked} is not between -1000 and 1000");
        return Err(SpecError::invalid("oom_score_adj", reason));
    }
    let clamped = asked.max(node.oom_score_adj_floor).min(1000);
    Ok(i32::try_from(clamped).expect("between -1000 and 1000"))
}

fn given(update: i64, current: i64) -> i64 {
    if update == 0 { current } else { update }
}

fn given_text(update: &str, current: &str) -> String {
    if update.is_empty() { current } else { update }.to_owned()
}

fn merge_unified(
    current: &BTreeMap<String, String>,
    update: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut merged = current.clone();
    merged.extend(update.clone());
    merged
}

fn merge_hugepages(current: &[(String, u64)], update: &[(String, u64)]) -> Vec<(String, u64)> {
    let mut merged = current.to_vec();
    for (size, limit) in update {
        match merged.iter_mut().find(|(known, _)| known == size) {
            Some(known) => known.1 = *limit,
            None => merged.push((size.clone(), *limit)),
        }
    }
    merged
}

fn cpu(resources: &Resources) -> Option<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(resources.cpu_shares))
        .set_quota(nonzero(resources.cpu_quota))
        .set_period(positive(resources.cpu_period))
        .set_cpus(text(&resources.cpuset_cpus))
        .set_mems(text(&resources.cpuset_mems));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn memory(resources: &Resources, node: &NodeFacts) -> Option<LinuxMemory> {
    let limit = nonzero(resources.memory_limit_bytes);
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit);
    if node.swap_accounting {
        // Both count memory and swap together. A container that was given no swap gets none.
        memory.set_swap(nonzero(resources.memory_swap_limit_bytes).or(limit));
    }
    (memory != LinuxMemory::default()).then_some(memory)
}

fn hugepages(limits: &[(String, u64)]) -> Vec<LinuxHugepageLimit> {
    let to_spec = |(size, limit): &(String, u64)| {
        let mut spec = LinuxHugepageLimit::default();
        spec.set_page_size(size.clone()).set_limit(i64::try_from(*limit).unwrap_or(i64::MAX));
        spec
    };
    limits.iter().map(to_spec).collect()
}

fn nonzero(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|&value| value != 0)
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}
