//! Limits, as they are asked for and told.

use cria_proto as proto;

use crate::container::config::Resources;

pub(in crate::cri) fn resources(resources: proto::LinuxContainerResources) -> Resources {
    let pages = resources.hugepage_limits.into_iter();
    Resources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_bytes: resources.memory_limit_in_bytes,
        memory_swap_limit_bytes: resources.memory_swap_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        hugepage_limits: pages.map(|limit| (limit.page_size, limit.limit)).collect(),
        unified: resources.unified,
    }
}

pub(in crate::cri) fn resources_held(resources: &Resources) -> proto::LinuxContainerResources {
    let pages = resources.hugepage_limits.iter().cloned();
    proto::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: pages
            .map(|(page_size, limit)| proto::HugepageLimit { page_size, limit })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_as_they_were_asked_for() {
        let asked = proto::LinuxContainerResources {
            cpu_period: 100_000,
            memory_limit_in_bytes: -1,
            hugepage_limits: vec![proto::HugepageLimit { page_size: "2MB".into(), limit: 7 }],
            ..Default::default()
        };
        assert_eq!(resources_held(&resources(asked.clone())), asked);
    }
}
