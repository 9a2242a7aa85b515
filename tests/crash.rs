//! Daemon and monitors die at any moment: containers go on, and what is said of them is true.

use std::thread;
use std::time::{Duration, SystemTime};

use cria_proto::*;
use harness::cri::{Container, Pod, among_its_pods_processes, with_shared_processes};
use harness::node::monitors;
use harness::scene::{OBEDIENT, SOON, Scene, refused};
use harness::tools::binary;
use harness::{Node, scripts, until, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::sockopt::socket_type;
use rustix::net::{Shutdown, SocketType, shutdown};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tempfile::TempDir;
use tonic::Code;

/// What a monitor gets to answer, and a while.
const SILENCE: Duration = Duration::from_secs(100);

/// Counts up, one line every few milliseconds.
const COUNTER: &str =
    r#"n=0; trap "exit 5" TERM; while :; do echo "line $n"; n=$((n+1)); usleep 5000; done"#;

#[test]
fn a_killed_daemon_comes_back_with_every_pod_and_container_in_its_true_state() {
    let mut scene = Scene::new();
    let (ready, ended) = (scene.run_pod(scene.pod("ready")), scene.host("ended"));
    ended.stop().expect("it stops");
    let runs = scene.obedient(&ready, "runs");
    let exited = ready.run(scene.script("exited", "exit 3"));
    exited.await_exit(SOON);
    let created = ready.create(scene.container("created", &OBEDIENT)).expect("it is created");
    let before =
        (ready.status(), ended.status(), [&runs, &exited, &created].map(Container::status));

    scene.kill9();
    scene.resume();
    let after = (ready.status(), ended.status(), [&runs, &exited, &created].map(Container::status));
    assert_eq!(before, after);

    // And all of them go on as if nothing had been.
    assert_eq!(runs.exec(&["true"]).expect("exec runs").exit_code, 0);
    created.start().expect("it starts");
    created.await_log("ready", SOON);
    runs.stop(SOON).expect("it stops");
    assert_eq!(runs.status().exit_code, 0);
    scene.assert_nothing_left();
}

#[test]
fn an_exit_while_the_daemon_is_away_is_reported_with_its_code_and_time() {
    let mut scene = Scene::new();
    let pod = scene.host("away");
    let script = "while [ ! -e /tmp/go ]; do usleep 10000; done; echo last; exit 42";
    let container = pod.run(scene.script("away", script));
    let file = container.log_file();
    container
        .exec(&["sh", "-c", "(sleep 2; touch /tmp/go) > /dev/null 2>&1 &"])
        .expect("exec runs");
    scene.kill9();
    until("it ends while nobody looks", SOON, || {
        fs_err::read_to_string(&file).ok()?.contains("last").then_some(())
    });
    let ended = nanoseconds(SystemTime::now());
    // The monitor alone takes note.
    until("five seconds pass", SOON, || {
        (nanoseconds(SystemTime::now()) > ended + 5_000_000_000).then_some(())
    });
    scene.resume();
    let status = container.await_exit(SOON);
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    let late = status.finished_at - ended;
    assert!(
        late < 4_000_000_000,
        "the time is the container's end, not the daemon's start: {late}"
    );
    scene.assert_nothing_left();
}

#[test]
fn a_container_and_its_log_do_not_notice_that_the_daemon_is_killed_again_and_again() {
    let mut scene = Scene::new();
    let container = counting(&scene, "again");
    for _ in 0..5 {
        scene.kill9();
        scene.resume();
        assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    }
    assert_stops_truly(&container);
    assert!(assert_counts(&container) > 10);
    scene.assert_nothing_left();
}

#[test]
fn a_killed_monitor_costs_neither_the_container_nor_a_torn_line_nor_its_exit_code() {
    let mut scene = Scene::new();
    let container = counting(&scene, "monitor");
    kill_monitors(&scene);
    let seen = container.log().lines().count();
    until("the log goes on", SOON, || (container.log().lines().count() > seen + 20).then_some(()));
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    assert_eq!(container.exec(&["true"]).expect("exec runs").exit_code, 0);
    assert_stops_truly(&container);
    assert_whole_lines(&container);
    scene.assert_nothing_left();
}

#[test]
fn a_container_whose_monitors_die_again_and_again_keeps_its_true_code() {
    let mut scene = Scene::new();
    let container = counting(&scene, "monitors");
    for _ in 0..6 {
        kill_monitors(&scene);
        until("another monitor is there", SOON, || {
            (monitors(scene.place()).len() == 1).then_some(())
        });
        assert_eq!(container.exec(&["true"]).expect("exec waits for it").exit_code, 0);
    }
    assert_stops_truly(&container);
    assert_whole_lines(&container);
    scene.assert_nothing_left();
}

#[test]
fn monitors_that_die_before_they_have_taken_over_cost_no_code_either() {
    let folder = TempDir::new().expect("a folder");
    let (deaths, monitor) = (folder.path().join("deaths"), folder.path().join("cria-monitor"));
    // As often as there are lines, it dies before it has said a word.
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = container ] && [ -s {deaths} ]; then sed -i 1d {deaths}; exit 1; fi\n\
         exec {} \"$@\"\n",
        binary("cria-monitor").display(),
        deaths = deaths.display(),
    );
    // The daemon tries its monitor at its start, in a container that has no shell.
    fs_err::copy(binary("cria-monitor"), &monitor).expect("own folder");
    let mut scene = Scene::with(|setup| setup.monitor(&monitor));
    let container = counting(&scene, "heirs");
    fs_err::write(&deaths, "once\nagain\n").expect("own folder");
    scripts::write(&folder.path().join("aside"), &script);
    fs_err::rename(folder.path().join("aside"), &monitor).expect("own folder");
    kill_monitors(&scene);
    assert_eq!(container.exec(&["true"]).expect("exec waits for the third").exit_code, 0);
    assert_eq!(fs_err::read_to_string(&deaths).expect("own folder"), "");
    assert_stops_truly(&container);
    assert_whole_lines(&container);
    scene.assert_nothing_left();
}

#[test]
fn a_connection_that_is_cut_is_made_again_to_the_same_monitor() {
    let mut scene = Scene::new();
    let container = counting(&scene, "cut");
    let before = monitors(scene.place());
    for _ in 0..3 {
        assert!(cut_connections(scene.pid()) > 0, "the daemon is connected to the monitor");
        until("exec runs again", SOON, || container.exec(&["true"]).ok());
        assert_eq!(monitors(scene.place()), before);
    }
    assert_stops_truly(&container);
    assert!(assert_counts(&container) > 10);
    scene.assert_nothing_left();
}

#[test]
fn a_start_whose_connection_is_cut_leaves_neither_process_nor_monitor() {
    let slow = "[ $VERB = start ] && [ -e $NODE/slow ] && { touch $NODE/starting; while [ ! -e $NODE/go ]; do sleep 0.05; done; }";
    let mut scene = Scene::with(|setup| setup.oci_runtime(slow));
    let pod = scene.host("cut");
    let container = pod.create(scene.container("cut", &OBEDIENT)).expect("it is created");
    scene.flag("slow");
    thread::scope(|scope| {
        let start = scope.spawn(|| container.start());
        until("it is being started", SOON, || scene.has_flag("starting").then_some(()));
        assert!(cut_connections(scene.pid()) > 0, "the daemon is connected to the monitor");
        scene.flag("go");
        refused(start.join().expect("no panic"), Code::Internal);
    });
    assert_eq!(container.status().state(), ContainerState::ContainerExited);
    until("its monitor is gone", SOON, || monitors(scene.place()).is_empty().then_some(()));
    scene.assert_nothing_left();
}

#[test]
fn a_monitor_that_is_stopped_while_the_daemon_comes_back_stays_the_only_one() {
    let mut scene = Scene::new();
    let container = counting(&scene, "stopped");
    let before = monitors(scene.place());
    scene.kill9();
    signal_all(&before, Signal::SIGSTOP);
    scene.resume();
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    assert_eq!(monitors(scene.place()), before);
    signal_all(&before, Signal::SIGCONT);
    until("exec runs", SOON, || container.exec(&["true"]).ok());
    assert_eq!(monitors(scene.place()), before);
    assert_stops_truly(&container);
    assert!(assert_counts(&container) > 10);
    scene.assert_nothing_left();
}

#[test]
fn a_monitor_that_stays_silent_is_killed_before_another_takes_its_place() {
    let mut scene = Scene::new();
    let pod = scene.host("silent");
    let container = pod.run(scene.script("silent", "sleep 1000; exit 5"));
    let before = monitors(scene.place());
    scene.kill9();
    signal_all(&before, Signal::SIGSTOP);
    scene.resume();
    until("another monitor is there", SILENCE, || {
        let now = monitors(scene.place());
        assert!(now.len() <= 1, "two at the same time: {now:?}");
        (now.len() == 1 && now != before).then_some(())
    });
    assert_eq!(container.exec(&["true"]).expect("exec waits for it").exit_code, 0);
    container.stop(Duration::ZERO).expect("it stops");
    let status = container.status();
    assert!([137, 255].contains(&status.exit_code), "the truth or unknown: {status:?}");
    scene.assert_nothing_left();
}

#[test]
fn with_daemon_and_monitor_killed_the_container_runs_until_it_ends_and_nothing_is_left() {
    let mut scene = Scene::new();
    let pod = scene.host("both");
    let container =
        pod.run(scene.script("both", "while [ ! -e /tmp/go ]; do usleep 10000; done; exit 6"));
    let exited_alone = pod.run(scene.script("alone", "usleep 500000; exit 7"));
    scene.kill9();
    kill_monitors(&scene);
    scene.resume();
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    let status = exited_alone.await_exit(SOON);
    assert!([7, 255].contains(&status.exit_code), "the truth or unknown: {status:?}");
    container.exec(&["touch", "/tmp/go"]).expect("exec runs");
    let status = container.await_exit(SOON);
    assert!([6, 255].contains(&status.exit_code), "the truth or unknown: {status:?}");
    scene.assert_nothing_left();
}

#[test]
fn a_daemon_killed_at_any_moment_of_a_pods_life_loses_and_leaks_nothing() {
    let mut scene = Scene::new();
    // From the first intent to the last removal: a life takes some hundred milliseconds.
    for moment in (0..24_u64).map(|step| Duration::from_millis(step * 25)) {
        thread::scope(|scope| {
            let lives: Vec<_> = (0..4)
                .map(|number| {
                    let mut config = scene.node.pod("victim");
                    let mut container = scene.script("victim", "exit 9");
                    if number % 2 == 1 {
                        config = with_shared_processes(config);
                        container = among_its_pods_processes(container);
                    }
                    let cri = scene.cri().clone();
                    // Its calls fail when the daemon dies: that is the point.
                    scope.spawn(move || live(&cri, config, container))
                })
                .collect();
            wait::after(moment);
            scene.node.kill9();
            for life in lives {
                life.join().expect("no panic");
            }
        });
        scene.node.resume();
        assert_listed_truly(&scene);
        // What was half made is undone beside what is served.
        scene.assert_nothing_is_left_soon();
    }
}

#[test]
fn what_was_half_made_is_finished_or_undone_and_its_name_is_free_again() {
    let mut scene = Scene::new();
    scene.cni_script(&format!(
        "[ $CNI_COMMAND = DEL ] && exit; touch $NODE/adding; while [ ! -e $NODE/go ]; do sleep 0.05; done\n{}",
        scripts::CNI_RESULT
    ));
    let config = with_shared_processes(scene.pod("half"));
    thread::scope(|scope| {
        let cri = scene.node.cri().clone();
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let call = scope.spawn(move || cri.run_pod_sandbox(request));
        until("the plugin runs", SOON, || scene.node.has_flag("adding").then_some(()));
        until("the pod's init runs", SOON, || has_pod_init(&mut scene.node).then_some(()));
        scene.node.kill9();
        call.join().expect("no panic").expect_err("nobody answers");
    });
    scene.flag("go");
    scene.resume();
    until("the half pod is undone", SOON, || scene.leftovers().is_empty().then_some(()));
    let pods = scene.cri().list_pod_sandbox(ListPodSandboxRequest::default());
    assert!(pods.expect("pods are listed").items.is_empty());
    assert!(
        scene.cni_calls().iter().any(|call| call.starts_with("DEL ")),
        "ADD is answered by DEL"
    );

    // The kubelet's next try has the same name.
    let pod = scene.run_pod(config);
    assert_eq!(pod.status().state(), PodSandboxState::SandboxReady);
    scene.assert_nothing_left();
}

#[test]
fn a_stop_under_way_goes_on_after_the_daemon_is_back() {
    let mut scene = Scene::new();
    let pod = scene.host("stopping");
    let container = scene.stubborn(&pod, "stopping");
    thread::scope(|scope| {
        let stop = scope.spawn(|| container.stop(Duration::from_secs(10)));
        container.await_log("heard", SOON);
        scene.node.kill9();
        stop.join().expect("no panic").expect_err("nobody answers");
    });
    scene.resume();
    assert_eq!(container.await_exit(SOON).exit_code, 137);
    scene.assert_nothing_left();
}

#[test]
fn a_record_that_cannot_be_read_stops_neither_the_start_nor_the_other_pods() {
    let mut scene = Scene::new();
    let good = scene.host("good");
    let bad = scene.run_pod(with_shared_processes(scene.host_pod("bad")));
    let container = scene.obedient(&good, "good");
    scene.kill9();
    let mut spoilt = 0;
    for file in harness::node::files_named_after(&scene.root(), &bad.id) {
        fs_err::write(file, "{ \"half").expect("own folder");
        spoilt += 1;
    }
    assert!(spoilt > 0, "the pod has a record");
    scene.resume();
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    assert_eq!(good.status().state(), PodSandboxState::SandboxReady);
    assert!(scene.log().contains("WARN"), "it is said");
    // What is left of the bad one goes, processes that no record names among it.
    until("its init is gone", SOON, || (!has_pod_init(&mut scene)).then_some(()));
    scene.assert_nothing_is_left_soon();
}

#[test]
fn a_pod_that_cannot_be_attached_leaves_no_init() {
    let mut scene = Scene::new();
    scene.cni_script(
        r#"[ $CNI_COMMAND = DEL ] || { echo '{"code": 11, "msg": "later"}'; exit 1; }"#,
    );
    let config = with_shared_processes(scene.pod("unattached"));
    let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
    let message = refused(scene.cri().run_pod_sandbox(request), Code::Internal);
    assert!(message.contains("later"), "{message}");
    scene.assert_nothing_left();
}

/// The life of a pod for as long as somebody answers.
fn live(cri: &harness::Cri, config: PodSandboxConfig, container: ContainerConfig) -> Option<()> {
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let id = cri.run_pod_sandbox(request).ok()?.pod_sandbox_id;
    let pod = Pod { cri: cri.clone(), id, config };
    let container = pod.create(container).ok()?;
    container.start().ok()?;
    container.stop(SOON).ok()?;
    container.remove().ok()?;
    pod.stop().ok()?;
    pod.remove().ok()
}

/// What is listed has a status until its removal is through, and no exit code but the program's own
/// or the one of a kill.
fn assert_listed_truly(scene: &Scene) {
    let cri = scene.cri();
    for pod in listed_pods(cri) {
        let request =
            PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let Some(answer) = unless_removed(cri.pod_sandbox_status(request)) else {
            // The removal that the kill interrupted has been continued meanwhile.
            assert!(listed_pods(cri).iter().all(|other| other.id != pod.id), "{}", pod.id);
            continue;
        };
        assert_eq!(answer.status.expect("a status").state, pod.state);
    }
    for container in listed_containers(cri) {
        let request =
            ContainerStatusRequest { container_id: container.id.clone(), ..Default::default() };
        let Some(answer) = unless_removed(cri.container_status(request)) else {
            let still = listed_containers(cri);
            assert!(still.iter().all(|other| other.id != container.id), "{}", container.id);
            continue;
        };
        let status = answer.status.expect("a status");
        if status.state() == ContainerState::ContainerExited && status.started_at > 0 {
            // 137 and 143: the stop came first. 128: the start was undone.
            assert!([9, 128, 137, 143].contains(&status.exit_code), "{status:?}");
        }
    }
}

fn unless_removed<T>(answer: harness::cri::Answer<T>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => panic!("what is listed has a status: {status}"),
    }
}

fn listed_pods(cri: &harness::Cri) -> Vec<PodSandbox> {
    cri.list_pod_sandbox(ListPodSandboxRequest::default()).expect("pods are listed").items
}

fn listed_containers(cri: &harness::Cri) -> Vec<cria_proto::Container> {
    let containers = cri.list_containers(ListContainersRequest::default());
    containers.expect("containers are listed").containers
}

/// Whether the init of a pod with shared processes runs on this node.
fn has_pod_init(node: &mut Node) -> bool {
    node.leftovers().iter().any(|left| left.contains("pod-init"))
}

/// Kills every monitor of the node, and waits until they are gone.
/// A container of [`COUNTER`] in a pod of its own, at work.
#[track_caller]
fn counting(scene: &Scene, name: &str) -> Container {
    let container = scene.host(name).run(scene.script("counter", COUNTER));
    container.await_log("line 10", SOON);
    container
}

/// One of [`COUNTER`].
#[track_caller]
fn assert_stops_truly(container: &Container) {
    container.stop(SOON).expect("it stops");
    assert_eq!(container.status().exit_code, 5);
}

fn kill_monitors(scene: &Scene) {
    let monitors = monitors(scene.place());
    assert!(!monitors.is_empty(), "every container has a monitor");
    for pid in monitors {
        let process = Pid::from_raw(pid.try_into().expect("pids fit"));
        kill(process, Signal::SIGKILL).expect("it runs");
        until("the monitor is gone", SOON, || (!runs(pid)).then_some(()));
    }
}

/// Ends every connection of the daemon with a monitor, on both sides, as if it had broken. Returns how
/// many there were: nothing else speaks in such packets.
fn cut_connections(daemon: u32) -> usize {
    let daemon_pid = rustix::process::Pid::from_raw(daemon.try_into().expect("pids fit"));
    let process = pidfd_open(daemon_pid.expect("not 0"), PidfdFlags::empty()).expect("it runs");
    let entries = fs_err::read_dir(format!("/proc/{daemon}/fd")).expect("it runs");
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let sockets = numbers.filter_map(|number| {
        let fd = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
        (socket_type(&fd) == Ok(SocketType::SEQPACKET)).then_some(fd)
    });
    sockets.map(|socket| shutdown(socket, Shutdown::Both).expect("it is connected")).count()
}

fn signal_all(pids: &[u32], signal: Signal) {
    for pid in pids {
        kill(Pid::from_raw((*pid).try_into().expect("pids fit")), signal).expect("it runs");
    }
}

fn runs(pid: u32) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// The counter's log has every line, in order. Returns how many.
fn assert_counts(container: &Container) -> usize {
    let log = container.log();
    for (number, line) in log.lines().enumerate() {
        assert!(line.ends_with(&format!(" stdout F line {number}")), "line {number}: {line:?}");
    }
    log.lines().count()
}

/// No line of the counter's is torn; a few may be missing where the monitor died.
fn assert_whole_lines(container: &Container) {
    let log = container.log();
    let mut last = -1;
    for line in log.lines() {
        let number = line.split_once(" stdout F line ").and_then(|(_, number)| number.parse().ok());
        let number: i64 = number.unwrap_or_else(|| panic!("torn: {line:?}"));
        assert!(number > last, "{number} after {last}");
        last = number;
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("the clock is right");
    i64::try_from(since.as_nanos()).expect("not for centuries")
}
