//! Logs: when there is one, what is in it, and its rotation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cria_proto::*;
use fs_err as fs;
use harness::scene::{SOON, Scene, refused};
use harness::{until, wait};
use tonic::Code;

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
fn a_create_that_fails_leaves_no_file_in_the_log_directory() {
    let scene = Scene::new();
    let pod = scene.host("none");
    let missing = harness::cri::container_config("none", &scene.registry.reference("no:1"), &[]);
    refused(pod.create(missing).map(drop), Code::NotFound);
    assert_eq!(fs::read_dir(&pod.config.log_directory).expect("the kubelet made it").count(), 0);
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
fn a_containers_terminal_is_its_own_and_its_log_has_every_byte_that_it_wrote() {
    let mut scene = Scene::new();
    let pod = scene.host("terminal");
    let script = "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal; echo error >&2; \
                  : > /dev/tty && echo controlling; printf 'a\\rb\\033[1mc'; exit 3";
    let mut config = scene.script("terminal", script);
    config.tty = true;
    let container = pod.run(config);
    assert_eq!(container.await_exit(SOON).exit_code, 3);
    // One stream, with the line ends of a terminal; a terminal has no standard error.
    let written = container.written("stdout");
    assert_eq!(written, "/dev/pts/0\r\nterminal\r\nerror\r\ncontrolling\r\na\rb\u{1b}[1mc\n");
    assert_eq!(container.written("stderr"), "");
    assert!(container.log().ends_with(" stdout F a\rb\u{1b}[1mc\n"));
    scene.assert_nothing_left();
}

#[test]
fn a_container_with_a_terminal_survives_its_daemon_and_its_monitor_and_goes_on_logging() {
    let mut scene = Scene::new();
    let pod = scene.host("counts");
    let mut config = scene.script(
        "counts",
        "n=0; while [ ! -e /dev/shm/end ]; do echo line $n; n=$((n+1)); sleep 0.01; done; exit 6",
    );
    config.tty = true;
    let container = pod.run(config);
    container.await_log("line 5", SOON);
    scene.kill9();
    scene.resume();
    let lines = |container: &harness::cri::Container| container.log().lines().count();
    let before = lines(&container);
    until("it goes on after the daemon", SOON, || (lines(&container) > before + 5).then_some(()));
    for pid in harness::node::monitors(scene.place()) {
        let pid = nix::unistd::Pid::from_raw(pid.try_into().expect("pids fit"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    }
    let before = lines(&container);
    until("it goes on after the monitor", SOON, || (lines(&container) > before + 5).then_some(()));
    container.exec(&["touch", "/dev/shm/end"]).expect("exec runs");
    let status = container.await_exit(SOON);
    // The first monitor was not this daemon's child: only the kernel could tell, where it does.
    assert!([6, 255].contains(&status.exit_code), "{status:?}");
    let numbers: Vec<usize> = container
        .log()
        .lines()
        .map(|line| {
            let text = line.trim_end_matches('\r').rsplit_once("line ").map(|(_, number)| number);
            text.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("torn: {line:?}"))
        })
        .collect();
    assert!(numbers.is_sorted(), "no line comes twice or out of turn");
    scene.assert_nothing_is_left_soon();
}

/// A file system of its own, which can be told to stand still: whoever writes then waits, and no signal
/// ends that.
struct Disk {
    at: PathBuf,
    stands_still: bool,
}

impl Disk {
    fn mount(at: PathBuf, image: &Path) -> Self {
        fs::File::create(image).and_then(|file| file.set_len(16 << 20)).expect("own folder");
        run("mkfs.ext4", &["-q".as_ref(), image]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image, &at]);
        Self { at, stands_still: false }
    }

    fn stand_still(&mut self) {
        run("fsfreeze", &["--freeze".as_ref(), &self.at]);
        self.stands_still = true;
    }

    fn go_on(&mut self) {
        if std::mem::take(&mut self.stands_still) {
            run("fsfreeze", &["--unfreeze".as_ref(), &self.at]);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.go_on();
        run("umount", &["--lazy".as_ref(), &self.at]);
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().expect("it is installed");
    assert!(status.success(), "{program} {arguments:?}");
}

#[test]
fn a_container_whose_log_s_disk_stands_still_is_stopped_and_removed() {
    let mut scene = Scene::new();
    let config = scene.host_pod("still");
    let images = tempfile::tempdir().expect("a temporary folder");
    let mut disk = Disk::mount(config.log_directory.clone().into(), &images.path().join("image"));
    let pod = scene.run_pod(config);
    let script = "echo ready; while :; do echo more; sleep 0.01; done";
    let container = pod.run(scene.script("writer", script));
    container.await_log("ready", SOON);
    disk.stand_still();
    // Until there is a line that cannot be written.
    wait::after(Duration::from_millis(500));
    container.stop(Duration::ZERO).expect("it stops");
    let status = container.status();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    assert!(status.message.contains("could not be written"), "{}", status.message);
    container.remove().expect("it is removed");
    disk.go_on();
    drop(disk);
    // The monitor was stuck in its write.
    scene.assert_nothing_is_left_soon();
}
