//! What a daemon finds at its start: another boot, records that it cannot read, a runtime that
//! hangs, monitors that died in the middle.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cria_proto::*;
use harness::cri::{Container, image_spec, with_shared_processes};
use harness::leftovers::processes_of;
use harness::node::{files_named_after, monitors};
use harness::scene::{OBEDIENT, SOON, Scene, refused};
use harness::scripts::{self, CNI_RESULT};
use harness::{Image, Layer, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tonic::Code;

#[test]
fn after_a_reboot_all_has_exited_unknown_and_is_taken_down_as_ever() {
    let mut scene = Scene::new();
    scene.cni_script(&format!("[ $CNI_COMMAND = DEL ] && exit\n{CNI_RESULT}"));
    let (pod, shared) = (scene.run_pod(scene.pod("rebooted")), scene.host("host"));
    let running = scene.obedient(&pod, "running");
    let created = shared.create(scene.container("created", &OBEDIENT)).expect("it is created");
    let ended = shared.run(scene.script("ended", "exit 7"));
    ended.await_exit(SOON);

    reboot(&mut scene);
    for (container, code, reason) in
        [(&running, 255, "Unknown"), (&created, 255, "Unknown"), (&ended, 7, "Error")]
    {
        let status = container.status();
        assert_eq!(status.state(), ContainerState::ContainerExited, "{status:?}");
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{status:?}");
        assert!(status.finished_at >= status.started_at, "{status:?}");
    }
    for pod in [&pod, &shared] {
        assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    }
    until("CNI DEL has been made", SOON, || {
        scene.cni_calls().contains(&format!("DEL {}", pod.id)).then_some(())
    });
    // The image is there still, and the kubelet's next try is another pod.
    let next = scene.host("next");
    scene.obedient(&next, "next");
    running.remove().expect("it is removed");
    scene.assert_nothing_left();
}

#[test]
fn after_a_reboot_whoever_has_the_pid_of_a_pods_init_lives_on() {
    let mut scene = Scene::new();
    let pod = scene.run_pod(with_shared_processes(scene.host_pod("rebooted")));
    let mut stranger = Command::new("sleep").arg("300").spawn().expect("it is installed");
    let named = json!({ "pid": stranger.id(), "start_time": start_time(stranger.id()) });
    scene.kill9();
    kill_all(processes_of(scene.place(), "pod-init"));
    change_records(&scene, |record| {
        record["boot_id"] = "another boot".into();
        record["init"] = named.clone();
    });
    scene.resume();
    assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    pod.stop().expect("it stops");
    pod.remove().expect("it is removed");
    assert_eq!(stranger.try_wait().expect("it is our child"), None);
    stranger.kill().expect("it runs");
    stranger.wait().expect("it is our child");
    scene.assert_nothing_left();
}

#[test]
fn a_record_that_is_damaged_newer_or_missing_is_told_and_the_rest_is_listed() {
    let mut scene = Scene::new();
    let good = scene.host("good");
    let container = scene.obedient(&good, "good");
    let [damaged, newer, missing] = ["damaged", "newer", "missing"].map(|name| scene.host(name));
    let lost = ["lost1", "lost2"].map(|name| scene.obedient(&good, name));
    scene.kill9();
    let newer_form = "{ \"version\": 1000 }";
    fs_err::write(record(&scene, &damaged.id), "{ \"half").expect("own folder");
    fs_err::write(record(&scene, &newer.id), newer_form).expect("own folder");
    fs_err::remove_file(record(&scene, &missing.id)).expect("own folder");
    fs_err::write(record(&scene, &lost[0].id), newer_form).expect("own folder");
    fs_err::remove_file(record(&scene, &lost[1].id)).expect("own folder");

    scene.resume();
    let log = scene.log();
    for id in [&damaged.id, &newer.id, &lost[0].id] {
        let told = log.lines().any(|line| line.contains("WARN") && line.contains(id.as_str()));
        assert!(told, "a warning names {id}");
    }
    let pods = scene.cri().list_pod_sandbox(ListPodSandboxRequest::default());
    let pods: Vec<_> = pods.expect("pods are listed").items.into_iter().map(|pod| pod.id).collect();
    assert_eq!(pods, std::slice::from_ref(&good.id));
    let containers = scene.cri().list_containers(ListContainersRequest::default());
    let containers = containers.expect("containers are listed").containers;
    assert_eq!(
        containers.into_iter().map(|it| it.id).collect::<Vec<_>>(),
        std::slice::from_ref(&container.id)
    );
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    assert_eq!(container.exec(&["true"]).expect("exec runs").exit_code, 0);
    container.stop(SOON).expect("it stops");
    // The name is free, whatever became of the one that had it.
    let again = scene.run_pod(missing.config.clone());
    assert_ne!(again.id, missing.id);
}

#[test]
fn a_pod_whose_record_is_damaged_keeps_its_network_while_it_is_in_use_and_is_detached_then() {
    let mut scene = Scene::new();
    scene.cni_script(&format!("[ $CNI_COMMAND = DEL ] && exit\n{CNI_RESULT}"));
    // Of the version that has GC, whose list of what is in use is to name this pod.
    let plugin = scene.place().folder().join("cni-bin/scripted");
    let script = fs_err::read_to_string(&plugin).expect("own folder").replace(
        "cat > /dev/null\n",
        "cat > $NODE/input\n[ $CNI_COMMAND = GC ] && mv $NODE/input $NODE/gc\n",
    );
    scripts::write(&plugin, &script);
    let list = scene.cni_conf_dir().join("05-scripted.conflist");
    let network = fs_err::read_to_string(&list).expect("own folder").replace("1.0.0", "1.1.0");
    fs_err::write(&list, network).expect("own folder");
    let pod = scene.run_pod(scene.pod("damaged"));
    let container = scene.obedient(&pod, "lives");
    scene.kill9();
    fs_err::write(record(&scene, &pod.id), "{ \"half").expect("own folder");

    scene.resume();
    let gc = fs_err::read_to_string(scene.place().folder().join("gc")).expect("GC has been made");
    assert!(gc.contains(&pod.id), "{gc}");
    until("it is said what becomes of it", SOON, || {
        let of_it = |line: &str| line.contains("ERROR") && line.contains(&pod.id);
        scene.log().lines().any(of_it).then_some(())
    });
    let detached = format!("DEL {}", pod.id);
    assert!(!scene.cni_calls().contains(&detached), "{:?}", scene.cni_calls());
    assert_eq!(container.exec(&["true"]).expect("exec runs").exit_code, 0);

    container.remove().expect("it is removed");
    scene.restart();
    until("CNI DEL has been made", SOON, || scene.cni_calls().contains(&detached).then_some(()));
    scene.assert_nothing_is_left_soon();
}

#[test]
fn the_cgroup_and_process_of_a_container_without_a_record_go() {
    let mut scene = Scene::new();
    let pod = scene.host("pod");
    let container = scene.obedient(&pod, "lost");
    scene.kill9();
    fs_err::remove_file(record(&scene, &container.id)).expect("own folder");
    scene.resume();
    until("its monitor is gone", SOON, || monitors(scene.place()).is_empty().then_some(()));
    scene.assert_nothing_is_left_soon();
}

#[test]
fn an_oci_runtime_that_hangs_in_any_verb_is_named_with_its_time_and_leaves_nothing() {
    let hangs = "[ -e $NODE/hang-$VERB ] && exec sleep 100000";
    let config = "[runtime]\ncreate-timeout = '6s'\n";
    let mut scene = Scene::with(|setup| setup.oci_runtime(hangs).config(config));
    let pod = scene.host("hangs");
    let other = scene.obedient(&pod, "other");

    let create = hanging(&scene, "create", || pod.create(scene.container("create", &OBEDIENT)));
    assert_told(&refused(create, Code::Internal), "create", None);

    let container = pod.create(scene.container("start", &OBEDIENT)).expect("it is created");
    let start = hanging(&scene, "start", || container.start());
    assert_told(&refused(start, Code::Internal), "start", Some(&container));
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("start"), "{status:?}");

    let exec = hanging(&scene, "exec", || other.exec(&["true"]));
    assert_told(&refused(exec, Code::Internal), "exec", Some(&other));
    assert_eq!(other.exec(&["true"]).expect("exec runs").exit_code, 0, "and it runs again");

    let ending = scene.obedient(&pod, "delete");
    hanging(&scene, "delete", || {
        ending.stop(SOON).expect("its end does not wait for delete");
        assert_eq!(ending.status().exit_code, 0);
        assert_told(&refused(ending.remove(), Code::Internal), "delete", Some(&ending));
    });
    ending.remove().expect("once delete works again");
    scene.assert_nothing_left();
}

#[test]
fn a_monitor_that_dies_in_the_middle_of_a_start_leaves_no_process_of_an_exited_container() {
    let slow =
        "[ $VERB = start ] && [ -e $NODE/slow ] && { touch $NODE/starting; exec sleep 1000; }";
    let mut scene = Scene::with(|setup| setup.oci_runtime(slow));
    let pod = scene.host("middle");
    let container = pod.create(scene.container("middle", &OBEDIENT)).expect("it is created");
    let slow = scene.flag("slow");
    thread::scope(|scope| {
        let start = scope.spawn(|| container.start());
        until("it is being started", SOON, || scene.has_flag("starting").then_some(()));
        fs_err::remove_file(&slow).expect("own folder");
        kill_all(monitors(scene.place()));
        let message = refused(start.join().expect("no panic"), Code::Internal);
        assert!(message.contains("monitor"), "{message}");
    });
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    until("its process is gone", SOON, || inits(&scene).is_empty().then_some(()));
    scene.assert_nothing_is_left_soon();
}

#[test]
fn a_start_that_outlasts_the_daemons_own_is_noticed_when_it_is_done() {
    let slow = "[ $VERB = start ] && [ -e $NODE/slow ] && { touch $NODE/starting; while [ ! -e $NODE/go ]; do sleep 0.05; done; }";
    let mut scene = Scene::with(|setup| setup.oci_runtime(slow));
    let pod = scene.host("slow");
    let container = pod.create(scene.container("slow", &OBEDIENT)).expect("it is created");
    scene.flag("slow");
    thread::scope(|scope| {
        let start = scope.spawn(|| container.start());
        until("it is being started", SOON, || scene.node.has_flag("starting").then_some(()));
        scene.node.kill9();
        start.join().expect("no panic").expect_err("nobody answers");
    });
    scene.resume();
    assert_eq!(container.status().state(), ContainerState::ContainerCreated);
    scene.flag("go");
    until("it is shown as running", SOON, || {
        (container.status().state() == ContainerState::ContainerRunning).then_some(())
    });
    assert!(container.status().started_at > 0);
    container.stop(SOON).expect("it stops");
    assert_eq!(container.status().exit_code, 0);
    scene.assert_nothing_left();
}

#[test]
fn one_container_that_does_not_end_keeps_neither_other_removals_nor_pods_nor_images() {
    let mut scene = Scene::new();
    let (pod, other) = (scene.host("pod"), scene.host("other"));
    let stuck = scene.obedient(&pod, "stuck");
    let its_monitor = monitors(scene.place());
    let removed = ["one", "two", "three"].map(|name| scene.obedient(&pod, name));
    let layers = scene.root().join("layers");
    let count = || fs_err::read_dir(&layers).expect("cria made it").count();
    let before = count();
    let image = Image::new().layer(Layer::new().file("unused", 0o644, b"unused"));
    let unused = scene.registry.push("unused:1", &image);
    scene.cri().pull(&unused.reference);
    assert_eq!(count(), before + 1);

    scene.kill9();
    for id in removed.iter().chain([&stuck]).map(|container| &container.id).chain([&other.id]) {
        change_record(&record(&scene, id), |record| record["removing"] = true.into());
    }
    // Nobody says how it ends.
    signal_all(&its_monitor, Signal::SIGSTOP);
    scene.resume();
    until("the other containers are gone", SOON, || {
        let listed = scene.cri().list_containers(ListContainersRequest::default());
        let listed = listed.expect("containers are listed").containers;
        (listed.len() == 1 && listed[0].id == stuck.id).then_some(())
    });
    until("the other pod is gone", SOON, || {
        let pods = scene.cri().list_pod_sandbox(ListPodSandboxRequest::default());
        (pods.expect("pods are listed").items.len() == 1).then_some(())
    });
    let image = Some(image_spec(&unused.reference));
    scene.cri().remove_image(RemoveImageRequest { image }).expect("it is removed");
    until("its layer is gone", SOON, || (count() == before).then_some(()));

    signal_all(&its_monitor, Signal::SIGCONT);
    until("its removal goes on", SOON, || {
        let listed = scene.cri().list_containers(ListContainersRequest::default());
        listed.expect("containers are listed").containers.is_empty().then_some(())
    });
    scene.assert_nothing_is_left_soon();
}

#[test]
fn a_daemon_that_is_told_to_end_does_so_whatever_is_under_way_and_the_next_one_goes_on() {
    let mut scene = Scene::new();
    let pod = scene.host("ending");
    let container = scene.stubborn(&pod, "stubborn");
    let grace = Duration::from_secs(25);
    thread::scope(|scope| {
        let stop = scope.spawn(|| container.stop(grace));
        container.await_log("heard", SOON);
        let begun = Instant::now();
        assert!(scene.node.terminate().success());
        assert!(begun.elapsed() < grace - Duration::from_secs(5), "{:?}", begun.elapsed());
        stop.join().expect("no panic").expect_err("it was cut off");
    });
    scene.resume();
    assert_eq!(container.await_exit(SOON).exit_code, 137);
    scene.assert_nothing_left();
}

/// What `call` answers while the OCI runtime hangs in `verb`.
fn hanging<T>(scene: &Scene, verb: &str, call: impl FnOnce() -> T) -> T {
    let flag = scene.flag(&format!("hang-{verb}"));
    let answer = call();
    fs_err::remove_file(flag).expect("own folder");
    answer
}

/// The message names the runtime, its verb, the container if it is known, and the time.
#[track_caller]
fn assert_told(message: &str, verb: &str, container: Option<&Container>) {
    let id = container.map_or("container", |container| container.id.as_str());
    for part in ["oci-runtime", verb, id, "6s"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

/// Everything of the node dies at once; the next daemon is told that it is another boot.
fn reboot(scene: &mut Scene) {
    scene.kill9();
    kill_all(monitors(scene.place()));
    kill_all(inits(scene));
    change_records(scene, |record| record["boot_id"] = "another boot".into());
    scene.resume();
}

fn change_records(scene: &Scene, change: impl Fn(&mut Value)) {
    for folder in ["sandboxes", "containers"] {
        for entry in fs_err::read_dir(scene.root().join(folder)).expect("cria made it") {
            let path = entry.expect("own folder").path().join("record.json");
            change_record(&path, &change);
        }
    }
}

/// In clock ticks since the boot: the 22nd field of proc_pid_stat(5), of a program with a plain name.
fn start_time(pid: u32) -> u64 {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    stat.split(' ').nth(21).and_then(|field| field.parse().ok()).expect("proc_pid_stat(5)")
}

fn change_record(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = fs_err::read(path).expect("each has a record");
    let mut record = serde_json::from_slice(&text).expect("it is JSON");
    change(&mut record);
    fs_err::write(path, record.to_string()).expect("own folder");
}

fn record(scene: &Scene, id: &str) -> PathBuf {
    let mut files = files_named_after(&scene.root(), id);
    files.retain(|file| file.ends_with("record.json"));
    files.pop().expect("it has a record")
}

/// The processes of the containers on this node; one that was not started is still runc's.
fn inits(scene: &Scene) -> Vec<u32> {
    ["sh", "sleep", "runc"].iter().flat_map(|name| processes_of(scene.place(), name)).collect()
}

#[track_caller]
fn kill_all(pids: Vec<u32>) {
    signal_all(&pids, Signal::SIGKILL);
}

#[track_caller]
fn signal_all(pids: &[u32], signal: Signal) {
    for pid in pids {
        // It may have gone with another one.
        let _ = kill(Pid::from_raw((*pid).try_into().expect("pids fit")), signal);
    }
}
