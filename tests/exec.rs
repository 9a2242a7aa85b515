//! ExecSync: codes, limits of time and size, and what outlives the command.

use std::thread;
use std::time::{Duration, Instant};

use cria_proto::ExecSyncRequest;
use harness::scene::{SOON, Scene, refused};
use harness::{until, wait::within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

/// What the kubelet's client can take, framing included.
const LARGEST: usize = 16 << 20;

fn request(container: &harness::cri::Container, script: &str, timeout: i64) -> ExecSyncRequest {
    ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout,
    }
}

#[test]
fn a_command_answers_with_its_output_and_its_code() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("exec"), "exec");
    for (script, stdout, stderr, code) in [
        ("echo out; echo err >&2", "out\n", "err\n", 0),
        ("exit 200", "", "", 200),
        ("kill -9 $$", "", "", 137),
        ("printf 'a\\0b\\r'", "a\0b\r", "", 0),
        ("no-such-program", "", "sh: no-such-program: not found\n", 127),
    ] {
        let answer = scene.cri().exec_sync(request(&container, script, 60)).expect("it runs");
        assert_eq!(String::from_utf8_lossy(&answer.stdout), stdout, "{script}");
        assert_eq!(String::from_utf8_lossy(&answer.stderr), stderr, "{script}");
        assert_eq!(answer.exit_code, code, "{script}");
    }
}

#[test]
fn a_command_that_runs_out_of_its_time_is_killed_with_all_its_children() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("late"), "late");
    let script = "sleep 54321 & sleep 54321";
    refused(scene.cri().exec_sync(request(&container, script, 1)), Code::DeadlineExceeded);
    let gone = within(SOON, || {
        let left = container.exec(&["pgrep", "sleep"]).ok()?;
        let left = left.stdout.lines().count();
        // The container's own sleeps.
        (left <= 1).then_some(())
    });
    assert!(gone.is_some(), "its children run on");
    assert_eq!(container.exec(&["true"]).expect("exec runs").exit_code, 0);
}

#[test]
fn children_that_keep_the_pipe_full_do_not_hold_the_answer_nor_anybody_else() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("writers"), "writers");
    let begun = Instant::now();
    for _ in 0..3 {
        let script = "for i in 1 2 3 4; do yes & done; exit 7";
        let answer = scene.cri().exec_sync(request(&container, script, 60)).expect("it runs");
        assert_eq!(answer.exit_code, 7);
        assert!(answer.stdout.iter().all(|byte| b"y\n".contains(byte)));
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn a_background_child_that_holds_the_pipe_does_not_hold_the_answer() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("background"), "background");
    let begun = Instant::now();
    let answer = scene.cri().exec_sync(request(&container, "echo done; sleep 3000 &", 0));
    let answer = answer.expect("it runs");
    assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"done\n"[..], 0));
    assert!(begun.elapsed() < Duration::from_secs(1000), "it waited for the child");
}

#[test]
fn more_output_than_the_kubelet_can_take_is_cut() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("much"), "much");
    let script = "yes 0123456789abcdef | head -c 20000000; yes x | head -c 5000000 >&2; exit 4";
    let answer =
        scene.cri().exec_sync(request(&container, script, 60)).expect("it fits the client");
    let size = answer.stdout.len() + answer.stderr.len();
    assert!(size < LARGEST && size > LARGEST / 2, "{size} bytes");
    assert_eq!(answer.exit_code, 4);
    assert!(answer.stdout.starts_with(b"0123456789abcdef\n0123456789abcdef\n"));
}

#[test]
fn a_command_that_is_not_there_is_the_callers_mistake_and_a_stopped_container_is_refused() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("no"), "no");
    let missing = ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: vec!["/no/such/program".to_owned()],
        timeout: 60,
    };
    // Either way the name of what is missing is told.
    let told = match scene.cri().exec_sync(missing) {
        Ok(answer) => {
            assert!([126, 127].contains(&answer.exit_code));
            String::from_utf8_lossy(&answer.stderr).into_owned()
        }
        Err(status) => status.message().to_owned(),
    };
    assert!(told.contains("/no/such/program"), "{told}");

    let nothing = ExecSyncRequest { container_id: container.id.clone(), ..Default::default() };
    refused(scene.cri().exec_sync(nothing), Code::InvalidArgument);
    container.stop(SOON).expect("it stops");
    refused(scene.cri().exec_sync(request(&container, "true", 1)), Code::FailedPrecondition);
}

#[test]
fn a_caller_that_goes_away_takes_its_command_along() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("away"), "away");
    let mut client = scene.cri().runtime_service();
    let endless = request(&container, "echo > /tmp/runs; exec sleep 98765", 0);
    let call = harness::blocking::runtime().spawn(async move { client.exec_sync(endless).await });
    let runs =
        || container.exec(&["sh", "-c", "grep -l 98765 /proc/[0-9]*/cmdline | grep -v self"]);
    until("it runs", SOON, || {
        let there = container.exec(&["test", "-e", "/tmp/runs"]).ok()?;
        (there.exit_code == 0).then_some(())
    });
    call.abort();
    until("it ends", SOON, || {
        let seen = runs().ok()?.stdout;
        // The shell that looks has the number in its own arguments.
        (seen.lines().count() <= 2).then_some(())
    });
}

#[test]
fn many_commands_at_once_each_get_their_own_output() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("many"), "many");
    thread::scope(|scope| {
        for number in 0..40 {
            let (scene, container) = (&scene, &container);
            scope.spawn(move || {
                let script = format!("echo {number}; exit {number}");
                let answer = scene.cri().exec_sync(request(container, &script, 60));
                let answer = answer.expect("it runs");
                assert_eq!(String::from_utf8_lossy(&answer.stdout), format!("{number}\n"));
                assert_eq!(answer.exit_code, number);
            });
        }
    });
}

#[test]
fn a_command_s_time_is_over_though_its_monitor_stands_still() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("still"), "still");
    let monitors = || {
        let pids = harness::node::monitors(scene.place()).into_iter();
        pids.map(|pid| Pid::from_raw(pid.try_into().expect("pids fit")))
    };
    thread::scope(|scope| {
        let late = request(&container, "echo > /tmp/runs; exec sleep 76543", 4);
        let call = scope.spawn(|| scene.cri().exec_sync(late));
        until("it runs", SOON, || {
            let there = container.exec(&["test", "-e", "/tmp/runs"]).ok()?;
            (there.exit_code == 0).then_some(())
        });
        monitors().for_each(|pid| kill(pid, Signal::SIGSTOP).expect("it runs"));
        let begun = Instant::now();
        let answer = call.join().expect("no panic");
        monitors().for_each(|pid| kill(pid, Signal::SIGCONT).expect("it runs"));
        refused(answer, Code::DeadlineExceeded);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    });
    assert_eq!(container.exec(&["true"]).expect("the monitor serves").exit_code, 0);
}

#[test]
fn a_command_ends_with_its_monitor_and_the_caller_is_told_at_once() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("forsaken"), "forsaken");
    thread::scope(|scope| {
        let endless = request(&container, "echo > /tmp/runs; exec sleep 87654", 1000);
        let call = scope.spawn(|| scene.cri().exec_sync(endless));
        until("it runs", SOON, || {
            let there = container.exec(&["test", "-e", "/tmp/runs"]).ok()?;
            (there.exit_code == 0).then_some(())
        });
        for pid in harness::node::monitors(scene.place()) {
            let pid = Pid::from_raw(pid.try_into().expect("pids fit"));
            kill(pid, Signal::SIGKILL).expect("it runs");
        }
        refused(call.join().expect("no panic"), Code::Internal);
    });
    until("it ends", SOON, || {
        let script = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done";
        let seen = container.exec(&["sh", "-c", script]).ok()?.stdout;
        (!seen.contains("sleep 87654")).then_some(())
    });
    assert_eq!(container.exec(&["true"]).expect("the next monitor serves").exit_code, 0);
}
