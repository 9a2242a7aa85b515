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
    spec.set_cpu(cpu(resources, node)).set_memory(memory(resources, node));
    if node.cgroups.hugetlb && !resources.hugepage_limits.is_empty() {
        spec.set_hugepage_limits(Some(hugepages(&resources.hugepage_limits)));
    }
    // These are names of cgroup v2 files: OCI runtimes refuse them on v1. The kubelet's wish is
    // kept in the record all the same.
    if node.cgroups.version == CgroupVersion::V2 && !resources.unified.is_empty() {
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
pub(crate) fn oom_score_adj(resources: &Resources, node: &NodeFacts) -> Result<i32, SpecError> {
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

fn cpu(resources: &Resources, node: &NodeFacts) -> Option<LinuxCpu> {
    // crun 1.8 (Debian 12) writes "none" into v1's file as a huge number, which the kernel refuses.
    // A new cgroup has none, and an update takes it away itself (`Hierarchy::lift_cpu_quota`).
    let tells_none = node.cgroups.version == CgroupVersion::V2;
    let quota = nonzero(resources.cpu_quota).filter(|&quota| quota > 0 || tells_none);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(resources.cpu_shares))
        .set_quota(quota)
        .set_period(positive(resources.cpu_period))
        .set_cpus(text(&resources.cpuset_cpus))
        .set_mems(text(&resources.cpuset_mems));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn memory(resources: &Resources, node: &NodeFacts) -> Option<LinuxMemory> {
    let limit = nonzero(resources.memory_limit_bytes);
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit);
    if node.cgroups.swap {
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

#[cfg(test)]
mod tests {
    use super::super::tests::node;
    use super::*;

    fn full() -> Resources {
        Resources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_bytes: 1 << 20,
            memory_swap_limit_bytes: 2 << 20,
            oom_score_adj: 500,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![("2MB".into(), 4 << 20)],
            unified: BTreeMap::from([("memory.low".into(), "1".into())]),
        }
    }

    #[test]
    fn an_update_changes_what_it_says_and_nothing_else() {
        assert_eq!(merge(&full(), &Resources::default()), full());
        type Change = (&'static str, fn(&mut Resources));
        let changes: [Change; 10] = [
            ("period", |r| r.cpu_period = 10_000),
            ("quota", |r| r.cpu_quota = -1),
            ("shares", |r| r.cpu_shares = 2),
            ("memory", |r| r.memory_limit_bytes = -1),
            ("swap", |r| r.memory_swap_limit_bytes = -1),
            ("cpus", |r| r.cpuset_cpus = "3".into()),
            ("mems", |r| r.cpuset_mems = "1".into()),
            ("huge pages", |r| r.hugepage_limits = vec![("2MB".into(), 0)]),
            ("unified", |r| drop(r.unified.insert("memory.low".into(), "2".into()))),
            ("all at once", |r| {
                r.cpu_shares = 7;
                r.cpuset_cpus = "1".into();
            }),
        ];
        for (what, change) in changes {
            let (mut update, mut expected) = (Resources::default(), full());
            change(&mut update);
            change(&mut expected);
            assert_eq!(merge(&full(), &update), expected, "{what}");
        }
    }

    #[test]
    fn keyed_limits_are_merged_key_by_key() {
        let update = Resources {
            hugepage_limits: vec![("1GB".into(), 7)],
            unified: BTreeMap::from([("memory.high".into(), "9".into())]),
            ..Default::default()
        };
        let merged = merge(&full(), &update);
        assert_eq!(merged.hugepage_limits, [("2MB".into(), 4 << 20), ("1GB".into(), 7)]);
        let keys: Vec<_> = merged.unified.keys().collect();
        assert_eq!(keys, ["memory.high", "memory.low"]);
    }

    #[test]
    fn an_update_leaves_the_process_oom_score_alone() {
        let update = Resources { oom_score_adj: 1, ..Default::default() };
        assert_eq!(merge(&full(), &update).oom_score_adj, 500);
    }

    #[test]
    fn what_is_not_given_is_not_in_the_spec() {
        let spec = for_update(&Resources::default(), &node());
        assert_eq!(serde_json::to_string(&spec).unwrap(), "{}");
    }

    #[test]
    fn everything_given_is_in_the_spec_as_far_as_the_node_has_it() {
        use serde_json::json;
        let on = |change: fn(&mut NodeFacts)| {
            let mut node = node();
            change(&mut node);
            serde_json::to_value(for_update(&full(), &node)).unwrap()
        };
        let all = json!({
            "cpu": {
                "shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0",
            },
            "memory": {"limit": 1 << 20, "swap": 2 << 20},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
            "unified": {"memory.low": "1"},
        });
        let without = |pointer: &str, key: &str| {
            let mut spec = all.clone();
            spec.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key).unwrap();
            spec
        };
        assert_eq!(on(|_| {}), all);
        assert_eq!(on(|node| node.cgroups.version = CgroupVersion::V1), without("", "unified"));
        assert_eq!(on(|node| node.cgroups.hugetlb = false), without("", "hugepageLimits"));
        assert_eq!(on(|node| node.cgroups.swap = false), without("/memory", "swap"));
    }

    #[test]
    fn no_quota_is_told_where_oci_runtimes_can_write_it() {
        let resources =
            Resources { cpu_quota: -1, cpu_period: 100_000, cpu_shares: 2, ..Default::default() };
        for (version, told) in [(CgroupVersion::V1, None), (CgroupVersion::V2, Some(-1))] {
            let mut node = node();
            node.cgroups.version = version;
            let cpu = cpu(&resources, &node).expect("there are shares");
            assert_eq!((cpu.quota(), cpu.period()), (told, Some(100_000)), "{version:?}");
        }
    }

    #[test]
    fn a_container_with_a_memory_limit_alone_gets_no_swap() {
        for (limit, swap, expected) in [
            (0, 0, (None, None)),
            (5, 0, (Some(5), Some(5))),
            (5, 7, (Some(5), Some(7))),
            (5, -1, (Some(5), Some(-1))),
            (-1, 0, (Some(-1), Some(-1))),
        ] {
            let resources = Resources {
                memory_limit_bytes: limit,
                memory_swap_limit_bytes: swap,
                ..Default::default()
            };
            let memory = memory(&resources, &node()).unwrap_or_default();
            assert_eq!((memory.limit(), memory.swap()), expected, "{limit} {swap}");
        }
    }

    #[test]
    fn the_oom_score_is_clamped_to_the_nodes_floor_and_checked() {
        for (asked, floor, given) in [
            (0, -1000, Some(0)),
            (-998, -1000, Some(-998)),
            (-998, 0, Some(0)),
            (300, 0, Some(300)),
            (1000, 0, Some(1000)),
            (1001, 0, None),
            (-1001, -1000, None),
        ] {
            let resources = Resources { oom_score_adj: asked, ..Default::default() };
            let mut node = node();
            node.oom_score_adj_floor = floor;
            assert_eq!(oom_score_adj(&resources, &node).ok(), given, "{asked} {floor}");
        }
    }

    #[test]
    fn a_new_container_also_has_a_limit_of_tasks_and_rules_for_devices() {
        let rules = vec![LinuxDeviceCgroup::default()];
        let spec = for_create(&Resources::default(), rules.clone(), &node());
        assert_eq!(spec.pids().map(|pids| pids.limit()), Some(500));
        assert_eq!(spec.devices().as_ref(), Some(&rules));
        let mut node = node();
        node.pids_limit = None;
        assert_eq!(*for_create(&Resources::default(), rules, &node).pids(), None);
    }
}
