//! The life of pods and containers, as a kubelet leads them through it.

use std::path::Path;
use std::thread;

use cria_proto::*;
use harness::scene::{SOON, Scene, refused};
use harness::until;
use tonic::Code;

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn a_pod_on_the_bridge_lives_from_its_image_to_its_removal_and_leaves_nothing() {
    let mut scene = Scene::new();
    let pod = scene.run_pod(scene.pod("whole"));
    let ip = pod.ip();
    assert!(ip.starts_with(&scene.place().subnet()), "{ip} is not of the pod network");
    assert_eq!(pod.status().state(), PodSandboxState::SandboxReady);

    let short = pod.run(scene.script("short", "echo out; echo err >&2; exit 7"));
    let status = short.await_exit(SOON);
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.created_at > 0 && status.started_at >= status.created_at);
    assert!(status.finished_at >= status.started_at);
    assert_eq!(
        (short.written("stdout").as_str(), short.written("stderr").as_str()),
        ("out\n", "err\n")
    );

    let long = scene.obedient(&pod, "long");
    let seen = long.exec(&["sh", "-c", "hostname; cat /proc/1/comm; exit 3"]).expect("exec runs");
    assert_eq!((seen.exit_code, seen.stdout.as_str()), (3, "whole\nsh\n"));
    let seen = long.exec(&["ip", "-4", "-o", "address", "show", "eth0"]).expect("exec runs");
    assert!(seen.stdout.contains(&ip), "{seen}");

    long.stop(SOON).expect("it stops");
    assert_eq!(long.status().exit_code, 0);
    for container in [&short, &long] {
        container.remove().expect("it is removed");
    }
    pod.stop().expect("the pod stops");
    assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    pod.remove().expect("the pod is removed");
    scene.assert_clean();
}

#[test]
fn removing_a_pod_ends_its_running_containers_and_leaves_nothing() {
    let mut scene = Scene::new();
    let pod = scene.run_pod(scene.pod("busy"));
    let container = scene.stubborn(&pod, "stays");
    pod.remove().expect("a running pod is removed");
    let request = ContainerStatusRequest { container_id: container.id, ..Default::default() };
    refused(scene.cri().container_status(request), Code::NotFound);
    scene.assert_clean();
}

#[test]
fn removals_at_once_of_the_same_all_succeed_without_a_warning() {
    let mut scene = Scene::new();
    let pod = scene.host("twice");
    let container = scene.obedient(&pod, "twice");
    thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| container.remove())).collect();
        calls.into_iter().for_each(|call| call.join().expect("no panic").expect("it is removed"));
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| pod.remove())).collect();
        calls.into_iter().for_each(|call| call.join().expect("no panic").expect("it is removed"));
    });
    assert!(!scene.log().contains("cannot write the record"), "{}", scene.log());
    scene.assert_nothing_left();
}

#[test]
fn a_command_that_is_not_there_fails_the_start_and_leaves_an_empty_log() {
    let mut scene = Scene::new();
    let pod = scene.host("bad");
    let container = pod.create(scene.container("bad", &["/no/such/program"]));
    let container = container.expect("a bad command is the start's to tell");
    let message = match container.start() {
        Err(status) => status.message().to_owned(),
        Ok(()) => panic!("a program that is not there starts"),
    };
    assert!(message.contains("/no/such/program"), "{message}");
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert_eq!(container.log(), "");
    scene.assert_nothing_left();
}

#[test]
fn stopping_and_removing_what_is_unknown_succeeds_and_asking_for_it_does_not() {
    let scene = Scene::new();
    let cri = scene.cri();
    let container_id = UNKNOWN.to_owned();
    let pod_sandbox_id = UNKNOWN.to_owned();
    cri.stop_container(StopContainerRequest { container_id: container_id.clone(), timeout: 1 })
        .expect("stop is idempotent");
    cri.remove_container(RemoveContainerRequest { container_id: container_id.clone() })
        .expect("remove is idempotent");
    cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
        .expect("stop is idempotent");
    cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
        .expect("remove is idempotent");

    let request =
        ContainerStatusRequest { container_id: container_id.clone(), ..Default::default() };
    let message = refused(cri.container_status(request), Code::NotFound);
    assert!(message.contains(UNKNOWN), "{message}");
    let request = StartContainerRequest { container_id: container_id.clone() };
    refused(cri.start_container(request), Code::NotFound);
    let request = ContainerStatsRequest { container_id: container_id.clone() };
    refused(cri.container_stats(request), Code::NotFound);
    let request = ReopenContainerLogRequest { container_id: container_id.clone() };
    refused(cri.reopen_container_log(request), Code::NotFound);
    let request = UpdateContainerResourcesRequest {
        container_id: container_id.clone(),
        ..Default::default()
    };
    refused(cri.update_container_resources(request), Code::NotFound);
    let request = ExecSyncRequest { container_id, cmd: vec!["true".into()], timeout: 1 };
    refused(cri.exec_sync(request), Code::NotFound);
    let request =
        PodSandboxStatusRequest { pod_sandbox_id: pod_sandbox_id.clone(), ..Default::default() };
    refused(cri.pod_sandbox_status(request), Code::NotFound);
    refused(cri.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id }), Code::NotFound);
}

#[test]
fn a_container_killed_for_its_memory_says_so() {
    let scene = Scene::new();
    let pod = scene.host("memory");
    let mut config = scene.container("memory", &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M"]);
    let limit = LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(limit);
    let status = pod.run(config).await_exit(SOON);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}

#[test]
fn a_child_left_behind_in_the_hosts_pid_namespace_ends_with_its_container() {
    let mut scene = Scene::new();
    let pod = scene.host("host-pid");
    let mut config = scene.script("parent", "sleep 100000 & echo $! ; exit 0");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
    let container = pod.run(config);
    container.await_exit(SOON);
    let child = container.written("stdout").trim().to_owned();
    until("the child ends", SOON, || (!Path::new("/proc").join(&child).exists()).then_some(()));
    scene.assert_nothing_left();
}

#[test]
fn starting_what_has_run_is_refused() {
    let scene = Scene::new();
    let pod = scene.host("again");
    let container = pod.run(scene.script("again", "true"));
    container.await_exit(SOON);
    refused(container.start(), Code::FailedPrecondition);
}
