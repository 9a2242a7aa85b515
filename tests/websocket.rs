//! WebSocket as old and new clients speak it: exec in each subprotocol, and port-forward in its old
//! form, with two channels for each port.

use cria_proto::{ExecRequest, PortForwardRequest};
use harness::cri::{Container, Pod};
use harness::scene::{SOON, Scene, refused};
use harness::websocket::{Message, WebSocket, upgrade};
use tonic::Code;

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

fn exec(scene: &Scene, container: &Container, script: &str, stdin: bool) -> String {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdin,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    scene.cri().exec(request).expect("the container runs").url
}

#[test]
fn the_status_follows_the_last_byte_and_precedes_the_goodbye() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("order"), "order");
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        for _ in 0..10 {
            let url = exec(&scene, &container, "head -c 3000000 /dev/zero; exit 3", false);
            let (stdout, status) = WebSocket::connect(&url, Some(protocol)).finish(1, 3);
            assert_eq!(stdout.len(), 3_000_000, "{protocol}");
            let cause = r#""causes":[{"reason":"ExitCode","message":"3"}]"#;
            assert!(status.contains(cause), "{protocol}: {status}");
        }
    }
    for protocol in [Some("channel.k8s.io"), None] {
        let url = exec(&scene, &container, "echo out; exit 3", false);
        let (stdout, status) = WebSocket::connect(&url, protocol).finish(1, 3);
        assert_eq!(stdout, b"out\n", "{protocol:?}");
        assert_eq!(status, "command terminated with non-zero exit code: exit code 3");
    }
}

#[test]
fn only_v5_has_a_word_for_the_end_of_stdin() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("stdin"), "stdin");
    let url = exec(&scene, &container, "wc -c", true);
    let mut client = WebSocket::connect(&url, Some("v5.channel.k8s.io"));
    for _ in 0..40 {
        client.say(0, &[b'x'; 50_000]);
    }
    // A message in three frames, with a ping between them.
    client.frame(0x02, &[0, b'e']);
    client.ping(b"well?");
    client.frame(0x00, b"n");
    client.frame(0x80, b"d");
    client.say(255, &[0]);
    let mut pongs = vec![];
    let mut stdout = vec![];
    let mut status = String::new();
    for message in client {
        match message {
            Message::Pong(bytes) => pongs.push(bytes),
            Message::Binary(bytes) if bytes[0] == 1 => stdout.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) => status += &String::from_utf8_lossy(&bytes[1..]),
            Message::Text(_) | Message::Close(_) => {}
        }
    }
    assert_eq!(String::from_utf8_lossy(&stdout).trim(), "2000003");
    assert_eq!((status.as_str(), pongs.concat()), (SUCCESS, b"well?".to_vec()));

    let url = exec(&scene, &container, "read line; echo got $line; wc -c", true);
    let mut client = WebSocket::connect(&url, Some("v4.channel.k8s.io"));
    client.say(255, &[0]);
    client.say(0, b"all\n");
    client.by_ref().find(|message| *message == Message::Binary(b"\x01got all\n".to_vec()));
    client.frame(0x88, &1000_u16.to_be_bytes());
    assert!(!client.any(|message| matches!(message, Message::Binary(_))), "wc saw an end");
}

#[test]
fn base64_is_spoken_with_clients_of_text() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("text"), "text");
    for protocol in ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"] {
        let url = exec(&scene, &container, "head -n 1; exit 0", true);
        let mut client = WebSocket::connect(&url, Some(protocol));
        client.text("0aGVsbG8gd29ybGQK");
        let messages: Vec<_> = client.collect();
        // Connected; the line; the status, where there is one for a success; goodbye.
        let text = |text: &str| Message::Text(text.to_owned());
        assert_eq!(messages[..2], [text("1"), text("1aGVsbG8gd29ybGQK")], "{protocol}");
        assert_eq!(messages.last(), Some(&Message::Close(1000)), "{protocol}");
        assert_eq!(messages.len(), if protocol.starts_with("v4") { 4 } else { 3 }, "{messages:?}");
    }
}

/// Port 9001 sends everything back, port 9002 a greeting before it closes.
const SERVERS: &str = "nc -ll -p 9001 -e cat & nc -ll -p 9002 -e echo greeting & \
    listens() { cat /proc/net/tcp /proc/net/tcp6 | grep -q :$1; }; \
    until listens 2329 && listens 232A; do sleep 0.1; done; echo ready; wait";

fn serving(scene: &Scene) -> Pod {
    let pod = scene.node.run_pod(scene.node.pod("server"));
    pod.run(scene.script("server", SERVERS)).await_log("ready", SOON);
    pod
}

fn forward(scene: &Scene, pod: &Pod, ports: &[i32]) -> String {
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: ports.to_vec() };
    scene.cri().port_forward(request).expect("the pod is ready").url
}

/// Reads what comes on `channel` until it is `wanted`.
#[track_caller]
fn await_heard(client: &mut WebSocket, channel: u8, wanted: &[u8]) {
    let mut heard: Vec<u8> = vec![];
    while heard != wanted {
        match client.next() {
            Some(Message::Binary(bytes)) if bytes[0] == channel => heard.extend(&bytes[1..]),
            Some(_) => {}
            None => panic!("the connection ended after {heard:?}"),
        }
    }
}

#[test]
fn ports_are_forwarded_on_two_channels_each() {
    let scene = Scene::new();
    let pod = serving(&scene);
    // The ports come with the client's query, or with the kubelet's request.
    let named = forward(&scene, &pod, &[9001, 4]);
    let asked = forward(&scene, &pod, &[]) + "?port=9001,4";
    for (url, protocol) in [(named, Some("v4.channel.k8s.io")), (asked, None)] {
        let mut client = WebSocket::connect(&url, protocol);
        let port = |port: u16| port.to_le_bytes();
        let beginnings = [(0, port(9001)), (1, port(9001)), (2, port(4)), (3, port(4))];
        for (channel, port) in beginnings {
            let beginning = [&[channel][..], &port].concat();
            assert_eq!(client.next(), Some(Message::Binary(beginning)), "{url}");
        }
        // Nothing listens on port 4, which the other connection does not notice.
        let error = client.find_map(|message| match message {
            Message::Binary(bytes) if bytes[0] == 3 => Some(bytes),
            _ => None,
        });
        let error = String::from_utf8_lossy(&error.expect("it is told")[1..]).into_owned();
        assert!(error.starts_with("error forwarding port 4 to pod"), "{error}");
        let large = vec![b'x'; 300_000];
        for bytes in [b"hello", large.as_slice()] {
            client.say(0, bytes);
            await_heard(&mut client, 0, bytes);
        }
        // Channels that are nobody's are passed over.
        client.say(1, b"no");
        client.say(4, b"no");
        client.say(200, b"no");
        client.say(0, b"still there");
        await_heard(&mut client, 0, b"still there");
    }
}

#[test]
fn the_pods_end_of_the_last_connection_ends_the_session() {
    let scene = Scene::new();
    let pod = serving(&scene);
    let url = forward(&scene, &pod, &[9002]);
    let messages: Vec<_> = WebSocket::connect(&url, Some("v4.channel.k8s.io")).collect();
    let binary = |bytes: &[u8]| Message::Binary(bytes.to_vec());
    let ports = [binary(b"\x00*#"), binary(b"\x01*#")];
    assert_eq!(messages[..2], ports, "9002, the low byte first");
    assert_eq!(messages[2..], [binary(b"\x00greeting\n"), Message::Close(1000)]);

    let url = forward(&scene, &pod, &[9002]);
    let texts: Vec<_> = WebSocket::connect(&url, Some("v4.base64.channel.k8s.io")).collect();
    let text = |text: &str| Message::Text(text.to_owned());
    let expected = [text("0KiM="), text("1KiM="), text("0Z3JlZXRpbmcK"), Message::Close(1000)];
    assert_eq!(texts, expected);
}

#[test]
fn requests_without_ports_or_with_strange_ones_are_refused() {
    let scene = Scene::new();
    let pod = scene.node.run_pod(scene.node.pod("ports"));
    let code = |query: &str, protocol: &str| {
        upgrade(&(forward(&scene, &pod, &[]) + query), Some(protocol)).1.code
    };
    for query in ["", "?port=", "?port=0", "?port=65536", "?port=http", "?port=80,"] {
        assert_eq!(code(query, "v4.channel.k8s.io"), 400, "{query}");
    }
    let many = format!("?port={}", vec!["80"; 33].join(","));
    assert_eq!(code(&many, "v4.channel.k8s.io"), 400);
    assert_eq!(code("?port=80", "v5.channel.k8s.io"), 403);
    for port in [0, -1, 65536] {
        let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port] };
        refused(scene.cri().port_forward(request), Code::InvalidArgument);
    }
}
