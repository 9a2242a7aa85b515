//! Streaming clients that do what no real one would: each gets the answer that is due, within its
//! time, and leaves nothing behind.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use cria_proto::{AttachRequest, ExecRequest, PortForwardRequest};
use flate2::{Compression, write::ZlibEncoder};
use harness::certificate::Certificate;
use harness::cri::{Container, Pod};
use harness::scene::{SOON, Scene};
use harness::spdy::{Frame, Session, Spdy, parts, request};
use harness::until;
use harness::wait::{after, within};
use harness::websocket::{WebSocket, upgrade};

/// What a session gets to be gone after its client.
const FREED: Duration = Duration::from_secs(5);

const V4: &str = "v4.channel.k8s.io";

fn exec(scene: &Scene, container: &Container, script: &str) -> String {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    scene.cri().exec(request).expect("the container runs").url
}

fn attach(scene: &Scene, container: &Container) -> String {
    let request = AttachRequest {
        container_id: container.id.clone(),
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    scene.cri().attach(request).expect("the container runs").url
}

fn forward(scene: &Scene, pod: &Pod) -> String {
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![] };
    scene.cri().port_forward(request).expect("the pod is ready").url
}

/// A session of `script` over SPDY.
fn shell(scene: &Scene, container: &Container, script: &str) -> Session {
    Session::connect(&exec(scene, container, script), true, true, false)
}

/// The daemon's open files, by what they are.
fn descriptors(scene: &Scene) -> HashMap<String, usize> {
    let folder = format!("/proc/{}/fd", scene.pid());
    let entries = fs_err::read_dir(folder).expect("the daemon runs");
    let targets = entries.filter_map(|entry| fs_err::read_link(entry.ok()?.path()).ok());
    let mut counts = HashMap::new();
    for target in targets {
        let target = target.to_string_lossy();
        let kind = target.split([':', '[']).next().unwrap_or_default().to_owned();
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

fn open_files(scene: &Scene) -> usize {
    descriptors(scene).values().sum()
}

/// Waits until the daemon holds no more files than `before`.
#[track_caller]
fn await_freed(scene: &Scene, before: &HashMap<String, usize>) {
    let all = before.values().sum();
    let freed = within(FREED, || (open_files(scene) <= all).then_some(()));
    assert!(freed.is_some(), "before {before:?}, after {FREED:?} {:?}", descriptors(scene));
}

/// The daemon's own memory, in KiB.
fn memory(scene: &Scene) -> u64 {
    let status = fs_err::read_to_string(format!("/proc/{}/status", scene.pid()));
    let status = status.expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("the kernel counts")
}

/// Reads until the server closes; how long that took.
fn ended(stream: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes), Ok(1..)) {}
    begun.elapsed()
}

#[test]
fn many_that_say_nothing_do_not_keep_others_out() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("flood"), "flood");
    shell(&scene, &container, "true").finish();
    let before = descriptors(&scene);
    let url = exec(&scene, &container, "echo served");
    let (address, path) = parts(&url);
    let flood: Vec<_> = (0..400)
        .map(|number| {
            let mut stream = TcpStream::connect(address).expect("the server listens");
            // One half says nothing, the other the half of something.
            if number % 2 == 0 {
                let half = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnec");
                stream.write_all(half.as_bytes()).expect("the server reads");
            }
            stream
        })
        .collect();
    let begun = Instant::now();
    let told = Session::connect(&url, true, true, false).finish();
    assert_eq!(told.stdout, b"served\n");
    // In half a minute they would go by themselves.
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert!(open_files(&scene) < before.values().sum::<usize>() + 300, "all of them are held");
    drop(flood);
    await_freed(&scene, &before);
}

/// A connection to where `url` leads, whose end is awaited for longer than any takes.
fn connect(url: &str) -> TcpStream {
    let stream = TcpStream::connect(parts(url).0).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a socket has timeouts");
    stream
}

#[test]
fn a_handshake_of_tls_that_never_ends_is_given_up() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let Certificate { certificate, key } = Certificate::make(folder.path(), "server");
    let (certificate, key) = (certificate.display(), key.display());
    let scene = Scene::with(|setup| {
        setup.config(&format!(
            "[streaming]\ntls-cert-file = \"{certificate}\"\ntls-key-file = \"{key}\"\n"
        ))
    });
    let container = scene.obedient(&scene.host("tls"), "tls");
    let before = descriptors(&scene);
    let url = exec(&scene, &container, "true").replace("https:", "http:");
    let (mut silent, mut half) = (connect(&url), connect(&url));
    // The head of a record, and no record.
    half.write_all(&[22, 3, 1, 1, 0]).expect("it reads");
    let took = ended(&mut silent) + ended(&mut half);
    assert!((50..90).contains(&took.as_secs()), "{took:?}");
    // What is no handshake at all ends at once.
    let mut plain = connect(&url);
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it reads");
    assert!(ended(&mut plain) < Duration::from_secs(20));
    drop((silent, half, plain));
    await_freed(&scene, &before);
}

#[test]
fn a_request_that_never_ends_is_given_up() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("half"), "half");
    let url = exec(&scene, &container, "true");
    let mut long = connect(&url);
    // More than any head here has.
    long.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n", "x".repeat(20_000)).as_bytes())
        .expect("it reads");
    assert!(ended(&mut long) < Duration::from_secs(20), "it waits for the rest");

    let (_, path) = parts(&url);
    let mut stream = connect(&url);
    stream.write_all(format!("POST {path} HTTP/1.1\r\nHost:").as_bytes()).expect("it reads");
    let took = ended(&mut stream);
    assert!((25..40).contains(&took.as_secs()), "{took:?}");
    // The token was not taken.
    assert_eq!(Session::connect(&url, true, true, false).finish().stdout, b"");
}

#[test]
fn a_token_is_worth_nothing_after_a_minute() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("late"), "late");
    let url = exec(&scene, &container, "true");
    after(Duration::from_secs(61));
    let protocol = format!("X-Stream-Protocol-Version: {V4}");
    let head = ["Connection: Upgrade", "Upgrade: SPDY/3.1", &protocol];
    assert_eq!(request(&url, &head).1.code, 404);
}

#[test]
fn what_is_no_request_for_a_session_has_its_code() {
    let scene = Scene::new();
    let pod = scene.host("codes");
    let container = scene.obedient(&pod, "codes");
    let before = descriptors(&scene);
    let exec = || exec(&scene, &container, "true");
    let attach = || attach(&scene, &container);
    let forward = || forward(&scene, &pod);
    let spdy = ["Connection: Upgrade", "Upgrade: SPDY/3.1"];
    let with = |url: String, protocol: &str| {
        let protocol = format!("X-Stream-Protocol-Version: {protocol}");
        request(&url, &[spdy[0], spdy[1], &protocol]).1
    };
    for url in [exec(), attach(), forward()] {
        assert_eq!(request(&url, &spdy).1.code, 400, "no subprotocol");
    }
    let accepted = |answer: harness::spdy::Answer| {
        assert_eq!(answer.code, 403, "{}", answer.head);
        let lines = answer.head.lines().map(str::to_lowercase);
        let name = "x-accepted-stream-protocol-versions: ";
        lines.filter_map(|line| line.strip_prefix(name).map(str::to_owned)).collect::<Vec<_>>()
    };
    let channels = [V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
    assert_eq!(accepted(with(exec(), "v5.channel.k8s.io")), channels);
    assert_eq!(accepted(with(attach(), "portforward.k8s.io")), channels);
    assert_eq!(accepted(with(forward(), V4)), ["portforward.k8s.io"]);
    for url in [exec(), attach()] {
        assert_eq!(upgrade(&url, Some("v3.channel.k8s.io")).1.code, 403);
    }
    assert_eq!(upgrade(&forward(), Some("SPDY/3.1+channel.k8s.io")).1.code, 403);
    let half = ["Connection: Upgrade", "Upgrade: websocket"];
    for url in [exec(), forward()] {
        assert_eq!(request(&url, &half).1.code, 400, "no key");
    }
    let put = |path: &str, url: &str| {
        let mut stream = connect(url);
        write!(stream, "PUT {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
        harness::spdy::answer(&mut stream).expect("it answers").code
    };
    let url = exec();
    assert_eq!(put(parts(&url).1, &url), 405);
    for (from, to) in [("/exec/", "/attach/"), ("/exec/", "/"), ("/exec/", "/exec/x/")] {
        assert_eq!(with(exec().replace(from, to), V4).code, 404, "{to}");
    }
    await_freed(&scene, &before);
}

/// What is compressed, as the first stream's headers.
fn headers(text: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(vec![], Compression::best());
    encoder.write_all(text).expect("memory takes all");
    encoder.flush().expect("memory takes all");
    let mut body = [&1_u32.to_be_bytes()[..], &[0; 6]].concat();
    body.extend(encoder.get_ref());
    body
}

#[test]
fn headers_that_are_bombs_or_nonsense_end_the_connection() {
    let scene = Scene::new();
    let pod = scene.host("bomb");
    let container = scene.obedient(&pod, "bomb");
    shell(&scene, &container, "true").finish();
    let before = descriptors(&scene);
    let bomb = headers(&vec![0; 12 << 20]);
    assert!(bomb.len() < 16 << 10, "it would be refused for its size alone: {}", bomb.len());
    let pairs = headers(&u32::MAX.to_be_bytes());
    let long = headers(&[&1_u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat());
    let used = memory(&scene);
    for body in [bomb, pairs, long] {
        for (url, protocol) in
            [(exec(&scene, &container, "true"), V4), (forward(&scene, &pod), "portforward.k8s.io")]
        {
            let mut spdy = Spdy::connect(&url, protocol);
            spdy.control(1, &body);
            let rest = spdy.rest();
            assert!(rest.iter().all(|frame| *frame == Frame::GoAway), "{protocol}: {rest:?}");
        }
    }
    assert!(memory(&scene) < used + 4096, "{} KiB, and {used} before", memory(&scene));
    await_freed(&scene, &before);
}

#[test]
fn frames_that_are_no_websockets_end_the_connection() {
    let scene = Scene::new();
    let pod = scene.host("frames");
    let container = scene.obedient(&pod, "frames");
    shell(&scene, &container, "true").finish();
    let before = descriptors(&scene);
    let garbage: [(&str, &[u8]); 6] = [
        ("not masked", &[0x82, 1, 0]),
        ("of an extension", &[0xc2, 0x81, 0, 0, 0, 0, 0]),
        ("of an unknown kind", &[0x83, 0x81, 0, 0, 0, 0, 0]),
        ("a long ping", &[0x89, 0xfe, 0xff, 0xff]),
        ("a ping in pieces", &[0x09, 0x80, 0, 0, 0, 0]),
        ("the rest of nothing", &[0x80, 0x81, 0, 0, 0, 0, 0]),
    ];
    for (what, bytes) in garbage {
        for protocol in [V4, "v5.channel.k8s.io"] {
            let mut client =
                WebSocket::connect(&exec(&scene, &container, "sleep 1234"), Some(protocol));
            client.raw(bytes);
            assert!(client.count() <= 1, "{what}: more than the greeting comes");
        }
        let url = forward(&scene, &pod);
        let mut client = WebSocket::connect(&url, Some("SPDY/3.1+portforward.k8s.io"));
        client.raw(bytes);
        assert!(client.count() <= 1, "{what}: more than a goodbye comes");
    }
    let url = exec(&scene, &container, "sleep 1234");
    let mut client = WebSocket::connect(&url, Some("v4.base64.channel.k8s.io"));
    client.text("0no base64 at all!");
    assert!(client.count() <= 1);
    await_freed(&scene, &before);
}

#[test]
fn streams_that_never_come_are_given_up_in_time() {
    let scene = Scene::with(|setup| setup.config("[streaming]\ncreation-timeout = \"3s\"\n"));
    let container = scene.obedient(&scene.host("never"), "never");
    let before = descriptors(&scene);
    for opened in [&[][..], &["error"], &["error", "stdin", "stdout"], &["video", "error"]] {
        let mut spdy = Spdy::connect(&exec(&scene, &container, "true"), V4);
        for kind in opened {
            spdy.open(&[("streamtype", kind)]);
        }
        let begun = Instant::now();
        let replies = spdy.rest();
        assert_eq!(replies.len(), opened.len(), "{replies:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{opened:?}: {:?}", begun.elapsed());
    }
    await_freed(&scene, &before);
}

/// Clients that have a lot under way in every direction, and stall.
fn stalled(scene: &Scene, pod: &Pod, container: &Container) -> Vec<TcpStream> {
    let mut clients = vec![];
    let keep = |spdy: &Spdy| spdy.socket().try_clone().expect("a socket can be opened twice");
    for _ in 0..8 {
        clients.push(keep(&shell(scene, container, "cat /dev/zero").spdy));
        let mut deaf = shell(scene, container, "exec sleep 20");
        let stdin = deaf.stdin.expect("asked for");
        deaf.spdy.socket().set_nonblocking(true).expect("a socket");
        (0..200).for_each(|_| deaf.spdy.data(stdin, &[0; 32_000], false));
        clients.push(keep(&deaf.spdy));
        clients.push(keep(&Session::connect(&attach(scene, container), false, true, false).spdy));

        let mut spdy = Spdy::connect(&forward(scene, pod), "portforward.k8s.io");
        let headers = |kind| [("streamtype", kind), ("port", "9003"), ("requestid", "0")];
        spdy.open(&headers("error"));
        let data = spdy.open(&headers("data"));
        spdy.socket().set_nonblocking(true).expect("a socket");
        (0..200).for_each(|_| spdy.data(data, &[0; 32_000], false));
        clients.push(keep(&spdy));
        clients.extend(flooded(scene, pod, container));
    }
    clients
}

/// Clients that do not read what comes without an end, over all other protocols.
fn flooded(scene: &Scene, pod: &Pod, container: &Container) -> Vec<TcpStream> {
    let mut clients = vec![];
    for protocol in ["v5.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let (stream, answer) = upgrade(&exec(scene, container, "cat /dev/zero"), Some(protocol));
        assert_eq!(answer.code, 101, "{}", answer.head);
        clients.push(stream);
    }
    let named = forward(scene, pod) + "?port=9004";
    clients.push(upgrade(&named, Some("v4.channel.k8s.io")).0);
    let mut spdy = Spdy::connect(&forward(scene, pod), "portforward.k8s.io");
    for kind in ["error", "data"] {
        spdy.open(&[("streamtype", kind), ("port", "9004"), ("requestid", "0")]);
    }
    // It is to be answered, too.
    spdy.control(6, &1_u32.to_be_bytes());
    clients.push(spdy.socket().try_clone().expect("a socket can be opened twice"));
    clients
}

/// In a pod of the network: port 9003 takes connections and never reads from them, port 9004 sends
/// without an end.
fn strange_servers(scene: &Scene, pod: &Pod) {
    let script = "nc -ll -p 9003 -e sleep 1000 & nc -ll -p 9004 -e cat /dev/zero & \
        listens() { cat /proc/net/tcp /proc/net/tcp6 | grep -q :$1; }; \
        until listens 232B && listens 232C; do sleep 0.1; done; echo ready; wait";
    pod.run(scene.script("strange", script)).await_log("ready", SOON);
}

#[test]
fn clients_that_stall_and_stay_are_given_up_after_the_idle_time() {
    let scene = Scene::with(|setup| setup.config("[streaming]\nidle-timeout = \"2s\"\n"));
    let pod = scene.node.run_pod(scene.node.pod("stay"));
    let container = scene.obedient(&pod, "stay");
    strange_servers(&scene, &pod);
    shell(&scene, &container, "true").finish();
    let before = descriptors(&scene);
    let all = before.values().sum::<usize>();
    let clients = stalled(&scene, &pod, &container);
    let freed = within(SOON, || (open_files(&scene) <= all).then_some(()));
    assert!(freed.is_some(), "before {before:?}, now {:?}", descriptors(&scene));
    drop(clients);
}

#[test]
fn sessions_that_are_cut_while_they_stall_are_freed_with_all_they_held() {
    let scene = Scene::new();
    let pod = scene.node.run_pod(scene.node.pod("cut"));
    let container = scene.obedient(&pod, "cut");
    strange_servers(&scene, &pod);
    shell(&scene, &container, "true").finish();
    let before = descriptors(&scene);
    // How much the allocator keeps for later depends on which sessions met, and goes up to some bound. What
    // leaks grows each time, by the mebibytes that wait for a client.
    let (mut most, mut without_growth) = (0, 0);
    for _ in 0..12 {
        let clients = stalled(&scene, &pod, &container);
        until("all are there", SOON, || {
            (open_files(&scene) > before.values().sum::<usize>() + 2 * clients.len()).then_some(())
        });
        // Some say goodbye to the kernel, some do not.
        for client in clients.iter().step_by(2) {
            client.shutdown(Shutdown::Both).expect("it is connected");
        }
        drop(clients);
        await_freed(&scene, &before);
        let used = memory(&scene);
        without_growth += usize::from(used < most + 512);
        most = most.max(used);
        if without_growth == 3 {
            break;
        }
    }
    assert_eq!(without_growth, 3, "{most} KiB at last");
    assert_eq!(container.exec(&["true"]).expect("exec runs").exit_code, 0);
}

#[test]
fn a_daemon_that_dies_hangs_terminals_up_and_ends_pipes() {
    let mut scene = Scene::new();
    let container = scene.obedient(&scene.host("dies"), "dies");
    let script = "trap 'echo > /tmp/hup; exit' HUP; echo ready; while :; do sleep 0.1; done";
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdin: true,
        stdout: true,
        tty: true,
        ..Default::default()
    };
    let url = scene.cri().exec(request).expect("the container runs").url;
    let mut terminal = Session::connect(&url, true, false, true);
    terminal.await_output("ready");
    let script = "trap '' PIPE; echo ready; cat > /dev/null; echo > /tmp/eof; \
        echo lost || echo > /tmp/closed; sleep 0.2; echo > /tmp/lives";
    let mut piped = shell(&scene, &container, script);
    piped.await_output("ready");
    scene.kill9();
    scene.resume();
    for file in ["/tmp/hup", "/tmp/eof", "/tmp/closed", "/tmp/lives"] {
        until(file, SOON, || {
            let there = container.exec(&["test", "-e", file]).ok()?;
            (there.exit_code == 0).then_some(())
        });
    }
}

#[test]
fn commands_run_in_a_container_that_is_being_stopped_and_end_with_it() {
    let scene = Scene::new();
    let container = scene.stubborn(&scene.host("stopping"), "stopping");
    std::thread::scope(|scope| {
        scope.spawn(|| container.stop(Duration::from_secs(15)).expect("it stops"));
        container.await_log("heard", SOON);
        let told = shell(&scene, &container, "echo still; exit 3").finish();
        assert_eq!(told.stdout, b"still\n");
        assert!(told.status.contains(r#""message":"3""#), "{}", told.status);
        // It dies with the container, which is an end like any other.
        let told = shell(&scene, &container, "echo up; exec sleep 1000").finish();
        assert_eq!(told.stdout, b"up\n");
        assert!(told.status.contains(r#""message":"137""#), "{}", told.status);
    });
}
