//! Attach: what a client sees and says, and that it never slows the container or its log.

use std::time::Duration;

use cria_proto::AttachRequest;
use harness::cri::{Container, Pod};
use harness::scene::{SOON, Scene, refused};
use harness::spdy::{Frame, Session};
use harness::until;
use tonic::Code;

#[derive(Clone, Copy, PartialEq)]
enum Stdin {
    None,
    Open,
    Once,
}

fn start(scene: &Scene, pod: &Pod, name: &str, script: &str, stdin: Stdin, tty: bool) -> Container {
    let mut config = scene.script(name, script);
    config.stdin = stdin != Stdin::None;
    config.stdin_once = stdin == Stdin::Once;
    config.tty = tty;
    pod.run(config)
}

fn attach(scene: &Scene, container: &Container, stdin: bool, tty: bool) -> Session {
    let request = AttachRequest {
        container_id: container.id.clone(),
        stdin,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let url = scene.cri().attach(request).expect("the container runs").url;
    Session::connect(&url, stdin, !tty, tty)
}

#[test]
fn clients_see_the_output_from_now_on_until_the_end() {
    let scene = Scene::new();
    let script = "echo early; until test -e /tmp/go; do sleep 0.05; done; \
        echo out; echo err >&2; seq 1 20000; exit 3";
    let container = start(&scene, &scene.host("see"), "see", script, Stdin::None, false);
    container.await_log("early", SOON);
    let mut clients: Vec<_> = (0..3).map(|_| attach(&scene, &container, false, false)).collect();
    // Being attached is not told; the sessions are when what they ask for is answered.
    until("all are attached", SOON, || {
        (scene.log().matches("cria_streaming::command: attached").count() == 3).then_some(())
    });
    container.exec(&["touch", "/tmp/go"]).expect("exec runs");
    let numbers: String = (1..=20000).map(|number| format!("{number}\n")).collect();
    for client in &mut clients {
        let told = client.finish();
        assert_eq!(String::from_utf8_lossy(&told.stdout), format!("out\n{numbers}"));
        assert_eq!(told.stderr, b"err\n");
        assert!(told.status.contains("Success"), "{}", told.status);
    }
    assert_eq!(container.written("stdout"), format!("early\nout\n{numbers}"));
}

#[test]
fn what_a_client_types_reaches_the_container() {
    let scene = Scene::new();
    let pod = scene.host("type");
    let script = "while read line; do echo got $line; done; echo end";
    let container = start(&scene, &pod, "open", script, Stdin::Open, false);
    for word in ["one", "two"] {
        // Its end is not the container's: another client may come.
        let mut client = attach(&scene, &container, true, false);
        client.spdy.data(client.stdin.expect("asked for"), format!("{word}\n").as_bytes(), true);
        client.await_output(&format!("got {word}\n"));
    }
    let once = start(&scene, &pod, "once", script, Stdin::Once, false);
    let mut client = attach(&scene, &once, true, false);
    client.spdy.data(client.stdin.expect("asked for"), b"last\n", true);
    assert_eq!(String::from_utf8_lossy(&client.finish().stdout), "got last\nend\n");
    assert_eq!(once.await_exit(SOON).exit_code, 0);
}

#[test]
fn a_stdin_that_serves_once_ends_with_a_client_that_vanishes_or_whose_daemon_dies() {
    let mut scene = Scene::new();
    let pod = scene.host("once");
    for (name, crash) in [("vanish", false), ("crash", true)] {
        let script = "cat > /dev/null; echo end";
        let container = start(&scene, &pod, name, script, Stdin::Once, false);
        let mut client = attach(&scene, &container, true, false);
        client.spdy.data(client.stdin.expect("asked for"), b"some", false);
        until("it is attached", SOON, || {
            scene.log().contains("cria_streaming::command: attached").then_some(())
        });
        if crash {
            until("it is attached", SOON, || {
                (scene.log().matches("cria_streaming::command: attached").count() == 2)
                    .then_some(())
            });
            scene.kill9();
            scene.resume();
        }
        drop(client);
        assert_eq!(container.await_exit(SOON).exit_code, 0);
        assert_eq!(container.written("stdout"), "end\n");
    }
}

#[test]
fn a_terminal_is_shared_and_takes_the_clients_size() {
    let scene = Scene::new();
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done";
    let container = start(&scene, &scene.host("tty"), "tty", script, Stdin::Open, true);
    container.await_log("ready", SOON);
    let mut client = attach(&scene, &container, true, true);
    let resize = client.resize.expect("a terminal has a size");
    client.spdy.data(resize, br#"{"Width":99,"Height":33}"#, false);
    client.await_output("33 99");
    drop(client);
    let mut again = attach(&scene, &container, true, true);
    again.spdy.data(again.stdin.expect("asked for"), b"\x03", false);
    container.stop(Duration::ZERO).expect("it stops");
    assert!(again.finish().status.contains("Success"));
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_nothing_is_lost() {
    let scene = Scene::new();
    let script = "until test -e /tmp/go; do sleep 0.05; done; seq 1 3000000; echo done; sleep 1000";
    let container = start(&scene, &scene.host("slow"), "slow", script, Stdin::None, false);
    let mut slow = attach(&scene, &container, false, false);
    until("it is attached", SOON, || {
        scene.log().contains("cria_streaming::command: attached").then_some(())
    });
    container.exec(&["touch", "/tmp/go"]).expect("exec runs");
    // 24 MB are more than any buffer on the way: it was held up, but not for ever.
    container.await_log("done", Duration::from_secs(60));
    let log = container.written("stdout");
    assert_eq!(log.lines().count(), 3_000_001);
    assert!(log.lines().zip(1_u32..).take(3_000_000).all(|(line, n)| line == n.to_string()));
    let dropped = slow.spdy.rest().into_iter().any(|frame| match frame {
        Frame::Data { bytes, .. } => String::from_utf8_lossy(&bytes).contains("did not keep up"),
        _ => false,
    });
    assert!(dropped, "it was not told why");
}

#[test]
fn refusals_have_their_codes() {
    let scene = Scene::new();
    let container = start(&scene, &scene.host("codes"), "codes", "exit 0", Stdin::None, false);
    let request = || AttachRequest {
        container_id: container.id.clone(),
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let none = AttachRequest { stdout: false, stderr: false, ..request() };
    refused(scene.cri().attach(none), Code::InvalidArgument);
    let both = AttachRequest { tty: true, ..request() };
    refused(scene.cri().attach(both), Code::InvalidArgument);
    let nobody = AttachRequest { container_id: "0".repeat(64), ..request() };
    refused(scene.cri().attach(nobody), Code::NotFound);
    container.await_exit(SOON);
    refused(scene.cri().attach(request()), Code::FailedPrecondition);
}
