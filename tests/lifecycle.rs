//! The life of pods and containers, as a kubelet leads them through it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cria_proto::*;
use fs_err as fs;
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
fn the_log_appears_when_the_container_starts_and_not_before() {
    let scene = Scene::new();
    let pod = scene.host("logs");
    let container = pod.create(scene.script("one", "echo here")).expect("it is created");
    let folder = Path::new(&pod.config.log_directory);
    assert_eq!(fs::read_dir(folder).expect("the kubelet made it").count(), 0);
    container.start().expect("it starts");
    assert!(folder.join("one.log").exists());
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
fn a_create_that_fails_leaves_no_file_in_the_log_directory() {
    let scene = Scene::new();
    let pod = scene.host("none");
    let missing = harness::cri::container_config("none", &scene.registry.reference("no:1"), &[]);
    refused(pod.create(missing).map(drop), Code::NotFound);
    assert_eq!(fs::read_dir(&pod.config.log_directory).expect("the kubelet made it").count(), 0);
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
fn a_later_stop_does_not_lengthen_the_grace_period() {
    let scene = Scene::new();
    let pod = scene.host("short");
    let container = scene.stubborn(&pod, "short");
    thread::scope(|scope| {
        let first = scope.spawn(|| container.stop(Duration::from_secs(2)));
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
fn a_container_is_shown_as_exited_only_after_its_last_byte_is_in_the_log() {
    let scene = Scene::new();
    let pod = scene.host("last-byte");
    for attempt in 0..5 {
        let script = "yes 0123456789 | head -n 200000; echo -n end";
        let container = pod.run(scene.script(&format!("writer{attempt}"), script));
        container.await_exit(SOON);
        let log = container.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.ends_with(" stdout F end"), "the log ends with {last:?}");
        assert_eq!(log.lines().count(), 200_001);
    }
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
fn a_container_inherits_nothing_of_the_daemons() {
    let scene = Scene::new();
    let pod = scene.host("clean");
    let script = "umask; ulimit -n; ulimit -Hn; ls /proc/self/fd | wc -l; \
                  grep -E '^(NoNewPrivs|SigBlk|SigIgn):' /proc/self/status; cat /proc/self/oom_score_adj";
    let mut config = scene.script("clean", script);
    let resources = LinuxContainerResources { oom_score_adj: 321, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    let container = pod.run(config);
    container.await_exit(SOON);
    let written = container.written("stdout");
    let words: Vec<_> = written.split_whitespace().collect();
    // `ls` itself has the folder open besides its three.
    let expected = [
        "0022",
        "1024",
        "524288",
        "4",
        "SigBlk:",
        "0000000000000000",
        "SigIgn:",
        "0000000000000000",
        "NoNewPrivs:",
        "0",
        "321",
    ];
    // Without CAP_SYS_RESOURCE a hard limit cannot be raised above the node's own.
    let hard = fs::read_to_string("/proc/self/limits").expect("/proc is mounted");
    let hard = hard.lines().find(|line| line.starts_with("Max open files")).expect("it is there");
    let hard: u64 = hard.split_whitespace().nth(4).and_then(|n| n.parse().ok()).unwrap_or(u64::MAX);
    for (word, expected) in words.iter().zip(expected) {
        if expected == "524288" && hard < 524_288 {
            assert_eq!(word.parse::<u64>().ok(), Some(hard));
        } else {
            assert_eq!(*word, expected, "{written}");
        }
    }
    assert_eq!(words.len(), expected.len(), "{written}");
}

#[test]
fn lists_filter_by_id_prefix_state_label_and_pod() {
    let scene = Scene::new();
    let (one, two) = (scene.host("one"), scene.host("two"));
    let labelled = |name: &str, command: &str, app: &str| {
        let mut config = scene.script(name, command);
        config.labels.insert("app".to_owned(), app.to_owned());
        config
    };
    let runs = one.run(labelled("runs", "sleep 1000", "a"));
    let exited = one.run(labelled("exited", "true", "b"));
    exited.await_exit(SOON);
    let created = two.create(labelled("created", "true", "a")).expect("it is created");

    let list = |filter: ContainerFilter| {
        let request = ListContainersRequest { filter: Some(filter.clone()) };
        let found = scene.cri().list_containers(request).expect("containers are listed").containers;
        let mut ids: Vec<_> = found.into_iter().map(|container| container.id).collect();
        ids.sort();
        let request = StreamContainersRequest { filter: Some(filter) };
        let streamed = scene.cri().stream_containers(request).expect("containers are streamed");
        let mut streamed: Vec<_> = streamed
            .into_iter()
            .flat_map(|part| part.containers)
            .map(|container| container.id)
            .collect();
        streamed.sort();
        assert_eq!(ids, streamed, "the stream says the same");
        ids
    };
    let sorted = |containers: &[&harness::cri::Container]| {
        let mut ids: Vec<_> = containers.iter().map(|container| container.id.clone()).collect();
        ids.sort();
        ids
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let app = |value: &str| [("app".to_owned(), value.to_owned())].into_iter().collect();
    for (filter, expected) in [
        (ContainerFilter::default(), sorted(&[&runs, &exited, &created])),
        (ContainerFilter { id: runs.id.clone(), ..Default::default() }, sorted(&[&runs])),
        (ContainerFilter { id: runs.id[..13].to_owned(), ..Default::default() }, sorted(&[&runs])),
        (ContainerFilter { id: UNKNOWN.to_owned(), ..Default::default() }, vec![]),
        (
            ContainerFilter {
                state: state(ContainerState::ContainerRunning),
                ..Default::default()
            },
            sorted(&[&runs]),
        ),
        (
            ContainerFilter {
                state: state(ContainerState::ContainerCreated),
                ..Default::default()
            },
            sorted(&[&created]),
        ),
        (
            ContainerFilter { label_selector: app("a"), ..Default::default() },
            sorted(&[&runs, &created]),
        ),
        (
            ContainerFilter { pod_sandbox_id: one.id.clone(), ..Default::default() },
            sorted(&[&runs, &exited]),
        ),
        (
            ContainerFilter {
                pod_sandbox_id: one.id.clone(),
                label_selector: app("a"),
                ..Default::default()
            },
            sorted(&[&runs]),
        ),
    ] {
        assert_eq!(list(filter.clone()), expected, "{filter:?}");
    }
}

#[test]
fn stats_carry_attributes_and_true_values() {
    let scene = Scene::new();
    let pod = scene.run_pod(scene.pod("stats"));
    let script = "dd if=/dev/zero of=/written bs=1M count=5; while :; do :; done";
    let container = pod.run(scene.script("stats", script));
    let stats = until("5 MiB are seen in the writable layer", SOON, || {
        let request = ContainerStatsRequest { container_id: container.id.clone() };
        let stats = scene.cri().container_stats(request).ok()?.stats?;
        let written = stats.writable_layer.as_ref()?.used_bytes.as_ref()?.value;
        (written >= 5 << 20).then_some(stats)
    });
    let attributes = stats.attributes.expect("attributes are always there");
    assert_eq!(attributes.metadata.expect("with metadata").name, "stats");
    let layer = stats.writable_layer.expect("seen above");
    let mountpoint = layer.fs_id.expect("it is on a file system").mountpoint;
    assert_eq!(Path::new(&mountpoint), scene.root(), "a path that never vanishes");
    assert!(stats.cpu.expect("it runs").usage_core_nano_seconds.expect("it is known").value > 0);
    assert!(stats.memory.expect("it runs").usage_bytes.expect("it is known").value > 0);

    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = scene.cri().pod_sandbox_stats(request).expect("stats are answered").stats;
    let stats = stats.expect("stats carry stats");
    assert_eq!(stats.attributes.expect("always there").id, pod.id);
    let linux = stats.linux.expect("always there");
    let network = linux.network.expect("a pod on the pod network");
    assert_eq!(network.default_interface.expect("the kubelet reads it").name, "eth0");
    assert!(linux.process.expect("it runs").process_count.expect("it is known").value >= 1);
}

#[test]
fn a_reopened_log_is_a_new_file_and_a_stopped_container_gets_none() {
    let scene = Scene::new();
    let pod = scene.host("reopen");
    let script = "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.01; done";
    let container = pod.run(scene.script("writer", script));
    let file = container.log_file();
    let old = file.with_extension("old");
    container.await_log("line 5", SOON);
    fs::rename(&file, &old).expect("own folder");
    let request = ReopenContainerLogRequest { container_id: container.id.clone() };
    scene.cri().reopen_container_log(request.clone()).expect("the log is reopened");
    assert!(file.exists(), "it answers when the new file is there");
    until("the new file is written", SOON, || fs::metadata(&file).ok()?.len().gt(&0).then_some(()));

    container.stop(Duration::ZERO).expect("it is killed");
    let all = [&old, &file].map(|file| fs::read_to_string(file).expect("both are there")).concat();
    for (number, line) in all.lines().enumerate() {
        assert!(line.ends_with(&format!(" stdout F line {number}")), "line {number}: {line}");
    }
    fs::remove_file(&file).expect("own folder");
    // Whether this is an error is cria's choice; a file is not to come of it.
    let _ = scene.cri().reopen_container_log(request);
    assert!(!file.exists());
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
fn starting_what_has_run_is_refused() {
    let scene = Scene::new();
    let pod = scene.host("again");
    let container = pod.run(scene.script("again", "true"));
    container.await_exit(SOON);
    refused(container.start(), Code::FailedPrecondition);
}
