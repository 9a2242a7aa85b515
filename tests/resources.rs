//! Resources of a container: as they were asked for, partly changed, and after a restart.

use std::thread;

use cria_proto::*;
use harness::cri::{Container, Pod};
use harness::limits::{cgroup2, in_kernel};
use harness::scene::{SOON, Scene, refused};
use tonic::Code;

fn limited(scene: &Scene, name: &str) -> (Pod, Container) {
    let pod = scene.host(name);
    let mut config = scene.container(name, &harness::scene::OBEDIENT);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let container = pod.run(config);
    (pod, container)
}

#[test]
fn resources_reach_the_kernel_and_the_status() {
    let scene = Scene::new();
    let (pod, container) = limited(&scene, "limited");
    let memory = in_kernel(&pod, &container, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (64 << 20).to_string());
    assert!(in_kernel(&pod, &container, "cpu/cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
    let told = container.limits();
    assert_eq!((told.cpu_period, told.cpu_quota, told.cpu_shares), (100_000, 50_000, 512));
    assert_eq!(told.memory_limit_in_bytes, 64 << 20);
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else_also_over_a_restart() {
    let mut scene = Scene::new();
    let (pod, container) = limited(&scene, "partial");
    // As the CPU manager does.
    let cpus = LinuxContainerResources { cpuset_cpus: "0".to_owned(), ..Default::default() };
    container.limit(cpus);
    let bigger = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    container.limit(bigger);
    let check = || {
        let told = container.limits();
        assert_eq!((told.cpu_period, told.cpu_quota, told.cpu_shares), (100_000, 50_000, 512));
        assert_eq!(told.memory_limit_in_bytes, 96 << 20);
        assert_eq!(told.cpuset_cpus, "0");
        let memory = in_kernel(&pod, &container, "memory/memory.limit_in_bytes", "memory.max");
        assert_eq!(memory, (96 << 20).to_string());
        let quota = in_kernel(&pod, &container, "cpu/cpu.cfs_quota_us", "cpu.max");
        assert!(quota.starts_with("50000"), "{quota}");
        assert_eq!(in_kernel(&pod, &container, "cpuset/cpuset.cpus", "cpuset.cpus"), "0");
    };
    check();
    scene.kill9();
    scene.resume();
    check();
}

#[test]
fn minus_one_takes_a_limit_away() {
    let scene = Scene::new();
    let (pod, container) = limited(&scene, "unlimited");
    let none = LinuxContainerResources { cpu_quota: -1, ..Default::default() };
    container.limit(none);
    let quota = in_kernel(&pod, &container, "cpu/cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "-1" || quota.starts_with("max"), "{quota}");
    assert_eq!(container.limits().memory_limit_in_bytes, 64 << 20);
}

#[test]
fn a_container_that_was_only_created_starts_with_what_it_was_given_since() {
    let scene = Scene::new();
    let pod = scene.host("later");
    let container = pod.create(scene.container("later", &harness::scene::OBEDIENT));
    let container = container.expect("it is created");
    let limit = LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() };
    container.limit(limit);
    container.start().expect("it starts");
    let memory = in_kernel(&pod, &container, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (48 << 20).to_string());
    assert_eq!(container.limits().memory_limit_in_bytes, 48 << 20);
}

/// As the CRI has it: what is zero or empty stays, -1 takes a limit away.
#[test]
fn each_limit_can_be_changed_by_itself_and_leaves_the_others() {
    let scene = Scene::new();
    let (pod, container) = limited(&scene, "each");
    type Change = (&'static str, fn(&mut LinuxContainerResources));
    let changes: [Change; 7] = [
        ("quota", |r| r.cpu_quota = 20_000),
        ("period", |r| r.cpu_period = 50_000),
        ("shares", |r| r.cpu_shares = 2048),
        ("processors", |r| r.cpuset_cpus = "0".to_owned()),
        ("memory nodes", |r| r.cpuset_mems = "0".to_owned()),
        ("memory", |r| r.memory_limit_in_bytes = 80 << 20),
        ("less memory", |r| r.memory_limit_in_bytes = 40 << 20),
    ];
    let mut expected = container.limits();
    for (what, change) in changes {
        let mut request = LinuxContainerResources::default();
        change(&mut request);
        container.limit(request);
        change(&mut expected);
        assert_eq!(container.limits(), expected, "{what}");
        let kernel = |v1, v2| in_kernel(&pod, &container, v1, v2);
        let quota = kernel("cpu/cpu.cfs_quota_us", "cpu.max");
        assert!(quota.starts_with(&expected.cpu_quota.to_string()), "{what}: {quota}");
        let period = kernel("cpu/cpu.cfs_period_us", "cpu.max");
        assert!(period.ends_with(&expected.cpu_period.to_string()), "{what}: {period}");
        let memory = kernel("memory/memory.limit_in_bytes", "memory.max");
        assert_eq!(memory, expected.memory_limit_in_bytes.to_string(), "{what}");
        if !cgroup2() {
            let shares = kernel("cpu/cpu.shares", "cpu.weight");
            assert_eq!(shares, expected.cpu_shares.to_string(), "{what}");
        }
    }
    let kernel = |v1, v2| in_kernel(&pod, &container, v1, v2);
    assert_eq!(kernel("cpuset/cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(kernel("cpuset/cpuset.mems", "cpuset.mems"), "0");

    let unlimited =
        LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: -1, ..Default::default() };
    container.limit(unlimited);
    let told = container.limits();
    assert_eq!((told.cpu_quota, told.memory_limit_in_bytes, told.cpu_shares), (-1, -1, 2048));
    let memory = kernel("memory/memory.limit_in_bytes", "memory.max");
    assert!(memory == "max" || memory.parse::<u64>().is_ok_and(|most| most > 1 << 60), "{memory}");
    assert!(["-1", "max 50000"].contains(&kernel("cpu/cpu.cfs_quota_us", "cpu.max").as_str()));
}

/// The processors of a container are the CPU manager's, which sends them alone, again and again.
#[test]
fn limits_changed_many_times_at_once_are_all_in_force_and_survive_a_restart() {
    let mut scene = Scene::new();
    let (pod, container) = limited(&scene, "at-once");
    thread::scope(|scope| {
        for round in 1..=8 {
            let container = &container;
            scope.spawn(move || {
                let cpus =
                    LinuxContainerResources { cpuset_cpus: "0".to_owned(), ..Default::default() };
                container.limit(cpus);
                let shares =
                    LinuxContainerResources { cpu_shares: 100 + round, ..Default::default() };
                container.limit(shares);
            });
        }
        let memory =
            LinuxContainerResources { memory_limit_in_bytes: 72 << 20, ..Default::default() };
        container.limit(memory);
    });
    let before = container.limits();
    assert_eq!((before.cpuset_cpus.as_str(), before.memory_limit_in_bytes), ("0", 72 << 20));
    assert_eq!(before.cpu_quota, 50_000);
    let memory = in_kernel(&pod, &container, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (72 << 20).to_string());
    if !cgroup2() {
        let shares = in_kernel(&pod, &container, "cpu/cpu.shares", "cpu.weight");
        assert_eq!(shares, before.cpu_shares.to_string(), "status and kernel say the same");
    }
    scene.kill9();
    scene.resume();
    assert_eq!(container.limits(), before);
    // What was changed before the restart is what the next change is merged into.
    let quota = LinuxContainerResources { cpu_quota: 30_000, ..Default::default() };
    container.limit(quota);
    assert_eq!(container.limits(), LinuxContainerResources { cpu_quota: 30_000, ..before });
}

#[test]
fn an_update_that_the_kernel_refuses_fails_and_changes_nothing_of_what_is_told() {
    let scene = Scene::new();
    let (_, container) = limited(&scene, "refused");
    let before = container.limits();
    for (what, request) in [
        (
            "processor",
            LinuxContainerResources { cpuset_cpus: "4095".to_owned(), ..Default::default() },
        ),
        ("quota", LinuxContainerResources { cpu_quota: 1, ..Default::default() }),
    ] {
        let request = UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(request),
            ..Default::default()
        };
        let refusal = scene.cri().update_container_resources(request);
        assert!(refusal.is_err(), "{what}");
        assert_eq!(container.limits(), before, "{what}");
    }
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        ..Default::default()
    };
    refused(scene.cri().update_container_resources(request), Code::InvalidArgument);
    container.stop(SOON).expect("it stops");
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(LinuxContainerResources { cpu_shares: 3, ..Default::default() }),
        ..Default::default()
    };
    refused(scene.cri().update_container_resources(request), Code::FailedPrecondition);
    assert_eq!(container.limits(), before, "an exited container tells what it had");
}

/// Files of cgroup v2. On v1 there are none: they are kept and told, and the daemon says once at
/// its start that they have no effect.
#[test]
fn unified_limits_are_merged_by_key_and_told_on_every_node() {
    let mut scene = Scene::new();
    let pod = scene.host("unified");
    let mut config = scene.container("unified", &harness::scene::OBEDIENT);
    let unified = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        LinuxContainerResources { unified: pairs.collect(), ..Default::default() }
    };
    config.linux.get_or_insert_default().resources =
        Some(unified(&[("memory.high", "50331648"), ("memory.low", "1048576")]));
    let container = pod.run(config);
    container.limit(unified(&[("memory.high", "67108864"), ("pids.max", "99")]));
    let all =
        unified(&[("memory.high", "67108864"), ("memory.low", "1048576"), ("pids.max", "99")]);
    assert_eq!(container.limits().unified, all.unified);
    scene.kill9();
    scene.resume();
    assert_eq!(container.limits().unified, all.unified);
    if cgroup2() {
        for (key, value) in all.unified {
            assert_eq!(in_kernel(&pod, &container, "", &key), value);
        }
    } else {
        let said = scene.log().matches("`unified` limits are not applied").count();
        assert_eq!(said, 2, "once at each of the two starts");
    }
}

#[test]
fn a_changed_pod_is_known_or_not_found() {
    let scene = Scene::new();
    let pod = scene.host("pod");
    let change = |pod_sandbox_id: &str| {
        scene.cri().update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod_sandbox_id.to_owned(),
            resources: Some(LinuxContainerResources { cpu_shares: 7, ..Default::default() }),
            ..Default::default()
        })
    };
    change(&pod.id).expect("the kubelet has changed the pod's cgroup itself");
    assert_eq!(pod.status().state(), PodSandboxState::SandboxReady);
    refused(change("none"), Code::NotFound);
}

#[test]
fn limits_of_huge_pages_are_kept_and_told_where_nobody_counts_them() {
    let scene = Scene::new();
    if cgroup2() {
        println!("not tried: here the controller is there");
        return;
    }
    let pod = scene.host("huge");
    let mut config = scene.container("huge", &harness::scene::OBEDIENT);
    let limit = HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 };
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        hugepage_limits: vec![limit.clone()],
        ..Default::default()
    });
    let container = pod.run(config);
    assert_eq!(container.limits().hugepage_limits, [limit]);
    let said = "limits of huge pages are not applied";
    assert_eq!(scene.log().matches(said).count(), 1, "said once, at the start");
}
