//! Resources of a container: as they were asked for, partly changed, and after a restart.

use std::path::PathBuf;

use cria_proto::*;
use harness::Scene;
use harness::cri::{Container, Pod};

/// A container's resource and where the kernel shows it, on cgroup v1 and v2.
fn in_kernel(pod: &Pod, container: &Container, v1: &str, v2: &str) -> String {
    let parent = pod.config.linux.clone().unwrap_or_default().cgroup_parent;
    let (controller, v1) = v1.split_once('/').expect("controller and file");
    let name = |root: PathBuf| root.join(parent.trim_start_matches('/'));
    let v2_root = PathBuf::from("/sys/fs/cgroup");
    let (folder, file) = if v2_root.join("cgroup.controllers").exists() {
        (name(v2_root), v2)
    } else {
        (name(v2_root.join(controller)), v1)
    };
    let mut children = folder.read_dir().expect("the pod has a cgroup").flatten();
    let child = children
        .find(|entry| entry.file_name().to_string_lossy().contains(&container.id))
        .expect("the container has a cgroup");
    let text = fs_err::read_to_string(child.path().join(file)).expect("the controller is there");
    text.trim().to_owned()
}

fn told(container: &Container) -> LinuxContainerResources {
    let resources = container.status().resources.expect("resources are reported");
    resources.linux.expect("of linux")
}

fn update(scene: &Scene, container: &Container, linux: LinuxContainerResources) {
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    scene.cri().update_container_resources(request).expect("they are updated");
}

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
    let told = told(&container);
    assert_eq!((told.cpu_period, told.cpu_quota, told.cpu_shares), (100_000, 50_000, 512));
    assert_eq!(told.memory_limit_in_bytes, 64 << 20);
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else_also_over_a_restart() {
    let mut scene = Scene::new();
    let (pod, container) = limited(&scene, "partial");
    // As the CPU manager does.
    let cpus = LinuxContainerResources { cpuset_cpus: "0".to_owned(), ..Default::default() };
    update(&scene, &container, cpus);
    let bigger = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    update(&scene, &container, bigger);
    let check = || {
        let told = told(&container);
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
    update(&scene, &container, none);
    let quota = in_kernel(&pod, &container, "cpu/cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "-1" || quota.starts_with("max"), "{quota}");
    assert_eq!(told(&container).memory_limit_in_bytes, 64 << 20);
}

#[test]
fn a_container_that_was_only_created_starts_with_what_it_was_given_since() {
    let scene = Scene::new();
    let pod = scene.host("later");
    let container = pod.create(scene.container("later", &harness::scene::OBEDIENT));
    let container = container.expect("it is created");
    let limit = LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() };
    update(&scene, &container, limit);
    container.start().expect("it starts");
    let memory = in_kernel(&pod, &container, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (48 << 20).to_string());
    assert_eq!(told(&container).memory_limit_in_bytes, 48 << 20);
}
