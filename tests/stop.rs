//! StopContainer: signals, grace periods, and what goes on meanwhile.

use std::io::Read as _;
use std::thread;
use std::time::{Duration, Instant};

use cria_proto::*;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use harness::blocking::{block_on, runtime};
use harness::node::files_named_after;
use harness::scene::{OBEDIENT, SOON, Scene};
use harness::scripts::CNI_RESULT;
use harness::until;
use tokio::task::JoinSet;

#[test]
fn stopping_and_removing_twice_is_the_same_as_once() {
    let mut scene = Scene::new();
    let pod = scene.run_pod(scene.pod("twice"));
    let container = scene.obedient(&pod, "twice");
    for _ in 0..2 {
        container.stop(SOON).expect("it stops");
    }
    for _ in 0..2 {
        container.remove().expect("it is removed");
    }
    for _ in 0..2 {
        pod.stop().expect("it stops");
    }
    for _ in 0..2 {
        pod.remove().expect("it is removed");
    }
    scene.assert_clean();
}

#[test]
fn everything_else_is_answered_during_a_long_grace_period() {
    let scene = Scene::new();
    let pod = scene.host("grace");
    let (one, other) = (scene.stubborn(&pod, "one"), scene.stubborn(&pod, "other"));
    thread::scope(|scope| {
        let stop = scope.spawn(|| one.stop(Duration::from_secs(3600)));
        one.await_log("heard", SOON);
        for container in [&one, &other] {
            assert_eq!(container.status().state(), ContainerState::ContainerRunning);
            assert_eq!(container.exec(&["true"]).expect("exec runs").exit_code, 0);
            let request = ContainerStatsRequest { container_id: container.id.clone() };
            scene.cri().container_stats(request).expect("stats are answered");
            let request = ReopenContainerLogRequest { container_id: container.id.clone() };
            scene.cri().reopen_container_log(request).expect("the log is reopened");
        }
        assert!(!stop.is_finished(), "the grace period is an hour");

        // A later call shortens it, for the first caller too.
        one.stop(Duration::ZERO).expect("it is killed");
        stop.join().expect("no panic").expect("it has stopped");
    });
    assert_eq!(one.status().exit_code, 137);
    assert_eq!(other.status().state(), ContainerState::ContainerRunning);
}

#[test]
fn stops_of_a_whole_node_in_one_connection_keep_nobody_else_out_of_it() {
    let scene = Scene::new();
    let pod = scene.host("drain");
    let container = scene.stubborn(&pod, "drain");
    let mut stops = JoinSet::new();
    for _ in 0..500 {
        let mut client = scene.cri().runtime_service();
        let request = StopContainerRequest { container_id: container.id.clone(), timeout: 3600 };
        stops.spawn_on(async move { client.stop_container(request).await }, runtime().handle());
    }
    container.await_log("heard", SOON);
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    container.stop(Duration::ZERO).expect("it is killed");
    for stopped in block_on(stops.join_all()) {
        stopped.expect("it has stopped for all who asked");
    }
}

#[test]
fn a_later_stop_does_not_lengthen_the_grace_period() {
    let scene = Scene::new();
    let pod = scene.host("short");
    let container = scene.stubborn(&pod, "short");
    thread::scope(|scope| {
        let first = scope.spawn(|| container.stop(Duration::from_secs(6)));
        container.await_log("heard", SOON);
        container.stop(Duration::from_secs(3600)).expect("it is killed at the first deadline");
        first.join().expect("no panic").expect("it has stopped");
    });
    assert_eq!(container.status().exit_code, 137);
}

#[test]
fn stop_answers_when_the_container_is_shown_as_exited_with_its_true_code() {
    let scene = Scene::new();
    let pod = scene.host("true-code");
    for (name, script, grace, code) in [
        ("trap", r#"trap "exit 9" TERM; echo ready; sleep 1000 & wait"#, 30, 9),
        ("killed", r#"trap "" TERM; echo ready; sleep 1000 & wait"#, 1, 137),
    ] {
        let container = pod.run(scene.script(name, script));
        container.await_log("ready", SOON);
        container.stop(Duration::from_secs(grace)).expect("it stops");
        let status = container.status();
        assert_eq!(status.state(), ContainerState::ContainerExited, "{name}");
        assert_eq!(status.exit_code, code, "{name}");
    }
}

#[test]
fn the_stop_signal_is_the_requests_or_the_images() {
    let scene = Scene::new();
    let quits = harness::busybox::busybox().stop_signal("SIGQUIT");
    let quits = scene.registry.push("quits:1", &quits);
    scene.cri().pull(&quits.reference);
    let pod = scene.host("signals");
    let script = r#"for s in TERM QUIT USR1; do trap "echo $s; exit 0" $s; done; echo ready; sleep 1000 & wait"#;
    for (name, image, signal, heard) in [
        ("default", &scene.busybox.id, Signal::RuntimeDefault, "TERM"),
        ("image", &quits.id, Signal::RuntimeDefault, "QUIT"),
        ("request", &quits.id, Signal::Sigusr1, "USR1"),
    ] {
        let mut config = harness::cri::container_config(name, image, &["sh", "-c", script]);
        config.stop_signal = signal.into();
        let container = pod.run(config);
        container.await_log("ready", SOON);
        container.stop(SOON).expect("it stops");
        assert_eq!(container.written("stdout"), format!("ready\n{heard}\n"), "{name}");
    }
}

#[test]
fn a_container_that_was_only_created_is_stopped_at_once() {
    let scene = Scene::new();
    let pod = scene.host("created");
    let container = pod.create(scene.script("created", "true")).expect("it is created");
    let begun = Instant::now();
    container.stop(Duration::from_secs(3600)).expect("it is stopped");
    assert!(begun.elapsed() < Duration::from_secs(600), "it waited for its grace period");
    assert_eq!(container.status().state(), ContainerState::ContainerExited);
}

#[test]
fn what_was_begun_is_done_to_its_end_though_its_caller_gave_up() {
    let mut scene = Scene::with(|setup| {
        setup.oci_runtime("[ $VERB = delete ] && while [ -e $NODE/hold ]; do sleep 0.05; done")
    });
    scene.cni_script(&format!(
        "[ $CNI_COMMAND = DEL ] && {{ touch $NODE/deleting; while [ -e $NODE/hold ]; do sleep 0.05; done; exit; }}\n{CNI_RESULT}"
    ));
    let pod = scene.run_pod(scene.pod("gave-up"));
    let container = scene.obedient(&pod, "gave-up");
    let mut client = scene.cri().runtime_service();

    let hold = scene.flag("hold");
    let request = RemoveContainerRequest { container_id: container.id.clone() };
    let mut caller = client.clone();
    let call = runtime().spawn(async move { caller.remove_container(request).await });
    let status =
        ContainerStatusRequest { container_id: container.id.clone(), ..Default::default() };
    container.await_exit(SOON);
    call.abort();
    fs_err::remove_file(&hold).expect("own folder");
    until("the container is gone", SOON, || {
        scene.cri().container_status(status.clone()).is_err().then_some(())
    });

    scene.flag("hold");
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let call = runtime().spawn(async move { client.remove_pod_sandbox(request).await });
    until("the network is being detached", SOON, || scene.has_flag("deleting").then_some(()));
    call.abort();
    fs_err::remove_file(&hold).expect("own folder");
    until("the pod is gone", SOON, || {
        let pods = scene.cri().list_pod_sandbox(ListPodSandboxRequest::default());
        pods.expect("pods are listed").items.is_empty().then_some(())
    });
    scene.assert_clean();
}

#[test]
fn a_stop_whose_caller_hangs_up_while_it_is_being_recorded_goes_on() {
    let mut scene = Scene::new();
    let pod = scene.host("hang-up");
    let mut config = scene.container("hang-up", &OBEDIENT);
    // More than a pipe holds.
    config.annotations.insert("large".into(), "x".repeat(200_000));
    let container = pod.run(config);
    container.await_log("ready", SOON);
    let mut records = files_named_after(&scene.root(), &container.id);
    records.retain(|file| file.ends_with("record.json"));
    let aside = records.pop().expect("it has a record").with_extension("new");
    nix::unistd::mkfifo(&aside, nix::sys::stat::Mode::S_IRWXU).expect("own folder");
    let mut options = fs_err::OpenOptions::new();
    let mut pipe = options.read(true).custom_flags(libc::O_NONBLOCK).open(&aside).expect("ours");

    let request = StopContainerRequest { container_id: container.id.clone(), timeout: 3600 };
    let mut client = scene.cri().runtime_service();
    let call = runtime().spawn(async move { client.stop_container(request).await });
    until("the record is being written", SOON, || (pipe.read(&mut [0]).ok()? > 0).then_some(()));
    call.abort();
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    let mut rest = vec![0; 4096];
    until("it is written", SOON, || (pipe.read(&mut rest).ok()? == 0).then_some(()));
    assert_eq!(container.await_exit(SOON).exit_code, 0);
    scene.assert_nothing_left();
}
