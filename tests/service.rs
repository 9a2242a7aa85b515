//! What a service manager does to the daemon and hears of it: reloads, messages, the end.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::cri::{Container, with_shared_processes};
use harness::leftovers::processes_of;
use harness::node::files_named_after;
use harness::scene::{SOON, Scene};
use harness::{Node, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How often the daemon has said `phrase`.
fn times_said(node: &Node, phrase: &str) -> usize {
    node.log().lines().filter(|line| line.contains(phrase)).count()
}

/// The daemon is a service, and its systemctl says that all is being stopped. The third word of its
/// command line is a file in the node's folder.
const ON_A_NODE_GOING_DOWN: &str = r#"
tree=/sys/fs/cgroup
[ ! -d $tree/systemd ] || tree=$tree/systemd
unit=$tree$(sed -n 's/^[0-9]*:\(name=systemd\)\?://p' /proc/self/cgroup | head -n 1)/cria.service
mkdir -p $unit
echo $$ > $unit/cgroup.procs
mkdir -p ${3%/*}/bin
printf '#!/bin/sh\necho stopping\n' > ${3%/*}/bin/systemctl
chmod +x ${3%/*}/bin/systemctl
export PATH=${3%/*}/bin:$PATH"#;

/// Not what is said when the files of registries alone were seen to change.
const RELOADED: &str = "configuration, networks and registries are read again";
const REFUSED: &str = "nothing is reloaded";

/// Sends SIGHUP and waits for `answer`, one of the two.
#[track_caller]
fn reload(node: &mut Node, answer: &str) {
    let before = times_said(node, answer);
    node.daemon().signal(Signal::SIGHUP);
    until(answer, SOON, || (times_said(node, answer) > before).then_some(()));
}

fn write(node: &Node, file: &str, text: &str) {
    fs_err::write(node.place().folder().join(file), text).expect("own folder");
}

fn pids_limit(node: &Node, container: &Container) -> Value {
    let bundle = node.run_dir().join("containers").join(&container.id).join("config.json");
    let spec: Value = serde_json::from_slice(&fs_err::read(bundle).expect("a spec")).expect("JSON");
    spec["linux"]["resources"]["pids"]["limit"].clone()
}

#[test]
fn a_reload_changes_what_can_be_changed_and_names_by_key_what_cannot() {
    let mut scene = Scene::with(|setup| setup.config("[runtime]\npids-limit = 100\n"));
    let pod = scene.host("pod");
    let before = scene.obedient(&pod, "before");
    assert_eq!(pids_limit(&scene, &before), 100);

    let text =
        "[runtime]\npids-limit = 200\ncreate-timeout = '5m'\n[network]\ncni-timeuot = '1s'\n";
    write(&scene, "cria.toml", text);
    reload(&mut scene, RELOADED);
    let after = scene.obedient(&pod, "after");
    assert_eq!(pids_limit(&scene, &after), 200);
    let log = scene.log();
    let told = |key: &str| {
        log.lines().any(|line| line.contains("WARN") && line.contains(&format!("key=\"{key}\"")))
    };
    assert!(told("runtime.create-timeout") && told("network.cni-timeuot"), "{log}");
    assert!(!told("runtime.pids-limit"));

    // What is in effect is what is shown.
    let info = scene.cri().status(cria_proto::StatusRequest { verbose: true }).expect("a status");
    let config: Value = serde_json::from_str(&info.info["config"]).expect("JSON");
    assert_eq!(config["runtime"]["pids-limit"], 200);
    assert_eq!(config["runtime"]["create-timeout"], "4m");
    scene.assert_nothing_left();
}

#[test]
fn a_mistake_in_any_file_reloads_nothing() {
    let mut scene = Scene::with(|setup| setup.config("[runtime]\npids-limit = 100\n"));
    let right = "[runtime]\npids-limit = 200\n";
    let folder = scene.place().folder().to_owned();
    let registries = fs_err::read_to_string(folder.join("registries.conf")).expect("own file");
    let broken_cni = scene.cni_conf_dir().join("00-broken.conflist");
    let pod = scene.host("pod");
    for (number, (file, text)) in [
        ("cria.toml", "[runtime]\npids-limit = 0\n"),
        ("cria.toml", "[runtime]\npids-limit = 200\nseccomp-profile = '/no/such/profile'\n"),
        ("registries.conf", "[[registry]]\nprefix = 5\n"),
        (broken_cni.to_str().expect("a plain path"), "{"),
    ]
    .into_iter()
    .enumerate()
    {
        write(&scene, "cria.toml", right);
        write(&scene, file, text);
        reload(&mut scene, REFUSED);
        let container = scene.obedient(&pod, &format!("c{number}"));
        assert_eq!(pids_limit(&scene, &container), 100, "{file}: {text}");
        write(&scene, "registries.conf", &registries);
        if broken_cni.exists() {
            fs_err::remove_file(&broken_cni).expect("own file");
        }
    }
    write(&scene, "cria.toml", right);
    reload(&mut scene, RELOADED);
    assert_eq!(pids_limit(&scene, &scene.obedient(&pod, "last")), 200);
    scene.assert_nothing_left();
}

/// What systemd would hear.
struct Manager {
    socket: UnixDatagram,
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
        Self { socket, _folder: folder, path }
    }

    /// The next message of which `wanted` is a line.
    #[track_caller]
    fn await_line(&self, wanted: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length = self.socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted}: {e}"));
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.lines().any(|line| line == wanted) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_hears_of_the_start_reloads_counts_the_watchdog_and_the_end() {
    let manager = Manager::new();
    let mut scene = Scene::with(|setup| {
        setup.variable("NOTIFY_SOCKET", &manager.path).variable("WATCHDOG_USEC", "2000000")
    });
    let ready = manager.await_line("READY=1");
    assert!(ready.contains("STATUS=0 pods, 0 of them ready; 0 containers, 0 running"), "{ready}");
    manager.await_line("WATCHDOG=1");

    scene.obedient(&scene.host("pod"), "container");
    manager.await_line("STATUS=1 pods, 1 of them ready; 1 containers, 1 running");

    reload(&mut scene, RELOADED);
    let reloading = manager.await_line("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.await_line("READY=1");

    scene.terminate();
    manager.await_line("STOPPING=1");
    scene.resume();
    scene.assert_nothing_left();
}

/// A shutdown of the node: the container ends, and at once the daemon is told to.
#[test]
fn an_end_just_before_the_daemons_is_in_the_record() {
    let mut scene = Scene::new();
    let pod = scene.host("pod");
    for number in 0..5 {
        // Much output is still to be written when init is dead.
        let script = "echo ready; yes | head -c 3000000; sleep 1000";
        let container = pod.run(scene.script(&format!("c{number}"), script));
        let record = record(&scene, &container.id);
        let pid =
            Pid::from_raw(record["init_pid"].as_i64().expect("a pid").try_into().expect("small"));
        kill(pid, Signal::SIGKILL).expect("it lives");
        until("its death", SOON, || is_dead(pid).then_some(()));
        scene.terminate();
        let state = self::record(&scene, &container.id)["state"].clone();
        assert_eq!(state["exited"]["code"], 137, "{state}");
        scene.resume();
    }
    scene.assert_nothing_left();
}

/// The node is going down, and a process in the pod that nobody waits for holds its init up.
#[test]
fn an_init_that_does_not_end_holds_up_neither_the_daemons_end_nor_the_records() {
    let mut scene = Scene::with(|setup| setup.shell(ON_A_NODE_GOING_DOWN));
    let pod = scene.run_pod(with_shared_processes(scene.host_pod("stuck")));
    let inits = processes_of(scene.place(), "pod-init");
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &inits[0].to_string(), "--pid", "sleep", "300"]);
    let mut guest = nsenter.spawn().expect("util-linux is installed");
    let children = format!("/proc/{0}/task/{0}/children", guest.id());
    until("a process of the pod", SOON, || {
        (!fs_err::read_to_string(&children).ok()?.is_empty()).then_some(())
    });
    let parent = Pid::from_raw(guest.id().try_into().expect("pids fit"));
    kill(parent, Signal::SIGSTOP).expect("it lives");
    until("its parent is stopped", SOON, || (state_of(parent) == "T").then_some(()));

    let begun = Instant::now();
    assert!(scene.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(scene.log().contains("the pod's init stays"));
    assert_eq!(record(&scene, &pod.id)["state"], "not-ready");

    kill(parent, Signal::SIGCONT).expect("it lives");
    guest.wait().expect("it is our child");
    scene.resume();
    scene.assert_nothing_left();
}

fn record(node: &Node, id: &str) -> Value {
    let files = files_named_after(&node.root(), id);
    let file = files.into_iter().find(|file| file.ends_with("record.json"));
    let text = fs_err::read(file.expect("a record")).expect("it can be read");
    serde_json::from_slice(&text).expect("JSON")
}

fn is_dead(pid: Pid) -> bool {
    matches!(state_of(pid).as_str(), "" | "Z")
}

/// The letter of proc_pid_stat(5); none if there is no such process.
fn state_of(pid: Pid) -> String {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').next());
    state.unwrap_or_default().to_owned()
}
