//! Exec, attach and port-forward: through crictl, which is client-go, and through a client of our
//! own that does what no real one would.

use std::process::{Command, Stdio};
use std::time::Duration;

use cria_proto::ExecRequest;
use harness::cri::Container;
use harness::scene::{SOON, Scene, refused};
use harness::spdy::{Frame, Session, Spdy, Told, request};
use harness::{tools, until, wait};
use tonic::Code;

fn crictl(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = Command::new(tools::tool("crictl"));
    let endpoint = format!("unix://{}", scene.socket().display());
    command.args(["--config=/dev/null", "--runtime-endpoint", &endpoint]).args(arguments);
    command
}

/// stdout, stderr, and whether it succeeded.
fn run(mut command: Command, stdin: &str) -> (String, String, bool) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("crictl starts");
    let mut pipe = child.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut pipe, stdin.as_bytes()).expect("crictl reads");
    drop(pipe);
    let output = child.wait_with_output().expect("crictl ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.success())
}

fn exec_request(container: &Container, command: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: container.id.clone(),
        cmd: command.iter().map(ToString::to_string).collect(),
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

fn url(scene: &Scene, request: ExecRequest) -> String {
    scene.cri().exec(request).expect("the container runs").url
}

/// A session of `script` with all of stdin, stdout and stderr.
fn shell(scene: &Scene, container: &Container, script: &str) -> Session {
    let request = ExecRequest { stdin: true, ..exec_request(container, &["sh", "-c", script]) };
    Session::connect(&url(scene, request), true, true, false)
}

/// The same with a terminal.
fn terminal(scene: &Scene, container: &Container, script: &str) -> Session {
    let request = ExecRequest {
        stdin: true,
        tty: true,
        stderr: false,
        ..exec_request(container, &["sh", "-c", script])
    };
    Session::connect(&url(scene, request), true, false, true)
}

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

#[test]
fn crictl_runs_commands_with_their_streams_and_codes() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("crictl"), "crictl");
    let exec = |options: &[&str], script: &str, stdin: &str| {
        let words = [&["exec"], options, &[&container.id, "sh", "-c", script]].concat();
        run(crictl(&scene, &words), stdin)
    };
    assert_eq!(exec(&[], "echo out; echo err >&2", ""), ("out\n".into(), "err\n".into(), true));
    assert_eq!(
        exec(&["-i"], "cat; echo end", "some\ninput"),
        ("some\ninputend\n".into(), String::new(), true)
    );
    let (stdout, stderr, success) = exec(&[], "echo before; exit 7", "");
    assert_eq!((stdout.as_str(), success), ("before\n", false), "{stderr}");
    assert!(stderr.contains("exit code 7"), "{stderr}");
    let (_, stderr, success) =
        run(crictl(&scene, &["exec", &container.id, "/no/such/program"]), "");
    assert!(!success && stderr.contains("/no/such/program"), "{stderr}");
}

#[test]
fn the_status_follows_the_last_byte_and_precedes_the_end() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("order"), "order");
    for round in 0..20 {
        let script = "head -c 3000000 /dev/zero; head -c 500000 /dev/zero >&2; exit 3";
        let Told { stdout, stderr, status } = shell(&scene, &container, script).finish();
        assert_eq!((stdout.len(), stderr.len()), (3_000_000, 500_000), "round {round}");
        assert!(status.contains(r#""causes":[{"reason":"ExitCode","message":"3"}]"#), "{status}");
    }
}

#[test]
fn stdin_is_passed_on_and_ended_where_the_client_ends_it() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("stdin"), "stdin");
    let mut session = shell(&scene, &container, "wc -c");
    let stdin = session.stdin.expect("asked for");
    for _ in 0..40 {
        session.spdy.data(stdin, &[b'x'; 50_000], false);
    }
    session.spdy.data(stdin, b"end", true);
    let told = session.finish();
    assert_eq!(
        (String::from_utf8_lossy(&told.stdout).trim(), told.status.as_str()),
        ("2000003", SUCCESS)
    );
}

#[test]
fn what_a_client_types_before_all_its_streams_are_open_is_kept() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("early"), "early");
    let request =
        ExecRequest { stdin: true, ..exec_request(&container, &["sh", "-c", "cat; echo end"]) };
    let mut spdy = Spdy::connect(&url(&scene, request), "v4.channel.k8s.io");
    let stdin = spdy.open(&[("streamtype", "stdin")]);
    spdy.data(stdin, b"early", false);
    spdy.data(stdin, b" bird ", true);
    let [_, stdout, _] =
        ["error", "stdout", "stderr"].map(|kind| spdy.open(&[("streamtype", kind)]));
    let frames = spdy.rest().into_iter();
    let output = frames.filter_map(|frame| match frame {
        Frame::Data { stream, bytes, .. } if stream == stdout => Some(bytes),
        _ => None,
    });
    assert_eq!(output.collect::<Vec<_>>().concat(), b"early bird end\n");
}

#[test]
fn a_stream_that_the_client_resets_is_of_no_concern_to_the_others() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("reset"), "reset");
    let cancel = |session: &mut Session, stream: u32| {
        session.spdy.control(3, &[stream.to_be_bytes(), 5_u32.to_be_bytes()].concat());
    };
    let script = "echo ready >&2; cat; echo out; echo err >&2; exit 3";
    let mut deaf = shell(&scene, &container, script);
    deaf.await_output("ready");
    let stdout = deaf.stdout;
    cancel(&mut deaf, stdout);
    // One that cannot be written to any more has ended.
    let stdin = deaf.stdin.expect("asked for");
    cancel(&mut deaf, stdin);
    let told = deaf.finish();
    assert_eq!((told.stdout.as_slice(), told.stderr.as_slice()), (&b""[..], &b"err\n"[..]));
    assert!(told.status.contains(r#""message":"3""#), "{}", told.status);
}

#[test]
fn a_container_that_has_ended_before_the_client_comes_is_told_to_the_client() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("late"), "late");
    let url = url(&scene, ExecRequest { stdin: true, ..exec_request(&container, &["true"]) });
    container.stop(SOON).expect("it stops");
    let status = Session::connect(&url, true, true, false).finish().status;
    assert!(status.contains("Failure") && status.contains(&container.id), "{status}");
}

#[test]
fn a_terminal_has_the_clients_size_and_hangs_up_with_the_client() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("tty"), "tty");
    let script = "trap 'echo hup > /tmp/hup; exit' HUP; tty; trap 'stty size' WINCH; echo set; while :; do sleep 0.1; done";
    let mut session = terminal(&scene, &container, script);
    let seen = session.await_output("set\r\n");
    assert!(seen.starts_with("/dev/pts/"), "{seen:?}");
    let resize = session.resize.expect("a terminal has a size");
    session.spdy.data(resize, br#"{"Width":123,"Height":45}"#, false);
    session.await_output("45 123");
    drop(session);
    until("the shell hears of it", SOON, || {
        let there = container.exec(&["test", "-e", "/tmp/hup"]).ok()?;
        (there.exit_code == 0).then_some(())
    });
}

#[test]
fn a_terminals_last_words_and_code_arrive() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("words"), "words");
    for _ in 0..10 {
        let told = terminal(&scene, &container, "seq 1 2000; exit 5").finish();
        assert!(told.stdout.ends_with(b"\r\n2000\r\n"), "{:?}", told.stdout.len());
        assert!(told.status.contains(r#""message":"5""#), "{}", told.status);
    }
}

#[test]
fn a_command_outlives_its_client_and_sees_its_streams_end() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("gone"), "gone");
    let script = "echo ready; cat > /dev/null; echo > /tmp/eof; trap '' PIPE; \
        while echo more; do sleep 0.1; done 2> /dev/null; echo > /tmp/closed; \
        sleep 1; echo > /tmp/lives";
    let mut session = shell(&scene, &container, script);
    session.await_output("ready");
    drop(session);
    let seen = [
        ("stdin ends", "/tmp/eof"),
        ("the outputs close", "/tmp/closed"),
        ("and it goes on", "/tmp/lives"),
    ];
    for (what, file) in seen {
        until(what, SOON, || {
            let there = container.exec(&["test", "-e", file]).ok()?;
            (there.exit_code == 0).then_some(())
        });
    }
}

/// The daemon's sockets, pipes and terminals.
fn descriptors(scene: &Scene) -> usize {
    let folder = format!("/proc/{}/fd", scene.pid());
    let entries = fs_err::read_dir(folder).expect("the daemon runs");
    let targets = entries.filter_map(|entry| fs_err::read_link(entry.ok()?.path()).ok());
    let kinds = ["socket:", "pipe:", "/dev/ptmx", "/dev/pts/"];
    targets
        .filter(|target| kinds.iter().any(|kind| target.to_string_lossy().starts_with(kind)))
        .count()
}

#[test]
fn clients_that_stall_or_vanish_leave_nothing_behind() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("stall"), "stall");
    shell(&scene, &container, "true").finish();
    let before = descriptors(&scene);
    // One that does not read, one whose command does not, and one that never says a word.
    let flood = shell(&scene, &container, "cat /dev/zero");
    let mut deaf = shell(&scene, &container, "sleep 2345");
    let stdin = deaf.stdin.expect("asked for");
    for _ in 0..20 {
        deaf.spdy.data(stdin, &[0; 32_000], false);
    }
    let quiet = shell(&scene, &container, "sleep 3456");
    let half =
        Spdy::connect(&url(&scene, exec_request(&container, &["true"])), "v4.channel.k8s.io");
    until("all are there", SOON, || (descriptors(&scene) >= before + 6).then_some(()));
    drop((flood, deaf, quiet, half));
    until("all is let go", Duration::from_secs(5), || {
        (descriptors(&scene) <= before).then_some(())
    });
    assert_eq!(container.exec(&["true"]).expect("exec runs").exit_code, 0);
}

#[test]
fn requests_that_are_none_get_the_answer_of_the_reference() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("bad"), "bad");
    let ask = || url(&scene, exec_request(&container, &["true"]));
    let upgrade = ["Connection: Upgrade", "Upgrade: SPDY/3.1"];
    let code = |url: &str, more: &[&str]| request(url, more).1;

    let used = ask();
    Session::connect(&used, false, true, false).finish();
    for url in [&used, &used.replace("/exec/", "/attach/"), &format!("{used}x")] {
        assert_eq!(code(url, &upgrade).code, 404, "{url}");
    }
    assert_eq!(code(&ask().replace("/exec/", "/portforward/"), &upgrade).code, 404);
    assert_eq!(code(&ask(), &upgrade).code, 400, "no subprotocol");
    let version = "X-Stream-Protocol-Version: v4.channel.k8s.io";
    assert_eq!(code(&ask(), &[version]).code, 400, "no upgrade");
    let strange = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v9"];
    let answer = code(&ask(), &strange);
    assert_eq!(answer.code, 403);
    for ours in ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        let line = format!("x-accepted-stream-protocol-versions: {ours}\r\n");
        assert!(answer.head.to_lowercase().contains(&line), "{}", answer.head);
    }
}

#[test]
fn frames_that_are_none_end_the_connection_and_no_more() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("frames"), "frames");
    shell(&scene, &container, "true").finish();
    let before = descriptors(&scene);
    let connect =
        || Spdy::connect(&url(&scene, exec_request(&container, &["true"])), "v4.channel.k8s.io");
    let garbage: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\nno frames at all, but enough of it",
        &[0x80, 2, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1],
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 0x9c],
    ];
    for bytes in &garbage[1..3] {
        let mut spdy = connect();
        spdy.raw(bytes);
        assert_eq!(spdy.rest(), [], "{bytes:?}");
    }
    for bytes in [garbage[0], garbage[3]] {
        // These may still become something: the client goes.
        let mut spdy = connect();
        spdy.raw(bytes);
    }
    let mut session = shell(&scene, &container, "cat");
    session.spdy.open(&[("streamtype", "stdin")]);
    assert_eq!(session.spdy.next(), Some(Frame::Reset(9)), "no more streams than were asked for");
    session.spdy.control(6, &[0, 0, 0, 7]);
    assert_eq!(session.spdy.next(), Some(Frame::Ping(7)), "and the session goes on");
    session.spdy.control(6, &[0, 0, 0, 8]);
    session.spdy.control(4, &[0; 4]);
    session.spdy.data(session.stdin.expect("asked for"), b"hello", true);
    let told = session.finish();
    assert_eq!((told.stdout.as_slice(), told.status.as_str()), (&b"hello"[..], SUCCESS));
    until("all is let go", SOON, || (descriptors(&scene) <= before).then_some(()));
}

#[test]
fn streams_that_never_come_and_idle_sessions_are_given_up() {
    let scene = Scene::with(|setup| {
        setup.config("[streaming]\nidle-timeout = \"6s\"\ncreation-timeout = \"3s\"\n")
    });
    let container = scene.obedient(&scene.host("late"), "late");
    let mut half =
        Spdy::connect(&url(&scene, exec_request(&container, &["true"])), "v4.channel.k8s.io");
    half.open(&[("streamtype", "error")]);
    assert_eq!(half.rest(), [Frame::Reply(1)]);
    let mut idle = shell(&scene, &container, "sleep 4321");
    // One that pings is there.
    for _ in 0..14 {
        idle.spdy.control(6, &1_u32.to_be_bytes());
        assert_eq!(idle.spdy.next(), Some(Frame::Ping(1)));
        wait::after(Duration::from_millis(500));
    }
    assert_eq!(idle.spdy.rest(), []);
}

#[test]
fn the_server_listens_where_it_is_told_to() {
    let scene = Scene::with(|setup| setup.config("[streaming]\naddress = \"::1\"\n"));
    let container = scene.obedient(&scene.host("six"), "six");
    let url = url(&scene, ExecRequest { stdin: true, ..exec_request(&container, &["true"]) });
    assert!(url.starts_with("http://[::1]:"), "{url}");
    assert_eq!(Session::connect(&url, true, true, false).finish().status, SUCCESS);
}

#[test]
fn refusals_have_their_codes() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("codes"), "codes");
    let request = || exec_request(&container, &["true"]);
    let none = ExecRequest { stdout: false, stderr: false, ..request() };
    refused(scene.cri().exec(none), Code::InvalidArgument);
    let both = ExecRequest { tty: true, ..request() };
    refused(scene.cri().exec(both), Code::InvalidArgument);
    refused(scene.cri().exec(ExecRequest { cmd: vec![], ..request() }), Code::InvalidArgument);
    let gone = ExecRequest { container_id: "0".repeat(64), ..request() };
    refused(scene.cri().exec(gone), Code::NotFound);
    for _ in 0..1000 {
        url(&scene, request());
    }
    refused(scene.cri().exec(request()), Code::ResourceExhausted);
    container.stop(SOON).expect("it stops");
    refused(scene.cri().exec(request()), Code::FailedPrecondition);
}

#[test]
fn old_clients_are_understood() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("old"), "old");
    for (version, told) in [
        ("v3.channel.k8s.io", "command terminated with non-zero exit code: exit code 3"),
        ("v2.channel.k8s.io", "command terminated with non-zero exit code: exit code 3"),
        ("channel.k8s.io", ""),
    ] {
        let url = url(&scene, exec_request(&container, &["sh", "-c", "echo hi; exit 3"]));
        let mut spdy = Spdy::connect(&url, version);
        let streams: Vec<u32> = ["error", "stdout", "stderr"]
            .iter()
            .map(|kind| spdy.open(&[("streamtype", kind)]))
            .collect();
        let frames = spdy.rest();
        let said = |stream: u32| -> String {
            let bytes = frames.iter().filter_map(|frame| match frame {
                Frame::Data { stream: of, bytes, .. } if *of == stream => Some(bytes.clone()),
                _ => None,
            });
            String::from_utf8(bytes.flatten().collect()).expect("text")
        };
        assert_eq!(
            (said(streams[0]).as_str(), said(streams[1]).as_str()),
            (told, "hi\n"),
            "{version}"
        );
    }
}
