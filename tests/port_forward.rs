//! PortForward: through crictl, and through a client of our own that has many connections at once.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use cria_proto::PortForwardRequest;
use harness::cri::Pod;
use harness::scene::{SOON, Scene, refused};
use harness::spdy::{Frame, Spdy};
use harness::{tools, until};
use tonic::Code;

/// Each connection to port 9000 is told how many bytes it sent before it ended its side; each to
/// port 9001 gets everything back.
const SERVERS: &str = "nc -ll -p 9000 -e wc -c & nc -ll -p 9001 -e cat & \
    listens() { cat /proc/net/tcp /proc/net/tcp6 | grep -q :$1; }; \
    until listens 2328 && listens 2329; do sleep 0.1; done; echo ready; wait";

fn serving(scene: &Scene, pod: &Pod) {
    pod.run(scene.script("server", SERVERS)).await_log("ready", SOON);
}

fn connect(scene: &Scene, pod: &Pod) -> Spdy {
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let url = scene.cri().port_forward(request).expect("the pod is ready").url;
    Spdy::connect(&url, "portforward.k8s.io")
}

/// Opens the streams of a connection: error and data.
fn open(spdy: &mut Spdy, request: &str, port: &str) -> (u32, u32) {
    let mut stream =
        |kind| spdy.open(&[("streamtype", kind), ("port", port), ("requestid", request)]);
    (stream("error"), stream("data"))
}

/// What comes on each stream until all of `streams` have ended.
fn collect(spdy: &mut Spdy, streams: &[u32]) -> HashMap<u32, Vec<u8>> {
    let mut seen: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut open = streams.to_vec();
    while !open.is_empty() {
        match spdy.next().expect("the connection stays") {
            Frame::Data { stream, bytes, fin } => {
                seen.entry(stream).or_default().extend(bytes);
                open.retain(|it| !(fin && *it == stream));
            }
            Frame::Reset(stream) => open.retain(|it| *it != stream),
            Frame::Reply(_) | Frame::Ping(_) | Frame::Settings => {}
            Frame::GoAway => panic!("the server says goodbye"),
        }
    }
    seen
}

#[test]
fn connections_reach_the_pod_and_each_direction_ends_by_itself() {
    let scene = Scene::new();
    for pod in [scene.node.run_pod(scene.node.pod("pod")), scene.host("host")] {
        // The host's ports are everybody's: the test of it is the refusal.
        if pod.config.hostname.is_empty() {
            let mut spdy = connect(&scene, &pod);
            let (error, data) = open(&mut spdy, "0", "1");
            let seen = collect(&mut spdy, &[error, data]);
            let text = String::from_utf8_lossy(&seen[&error]).into_owned();
            assert!(text.contains("127.0.0.1:1: ") && text.contains("[::1]:1: "), "{text}");
            continue;
        }
        serving(&scene, &pod);
        let mut spdy = connect(&scene, &pod);
        let (error, data) = open(&mut spdy, "0", "9000");
        for _ in 0..30 {
            spdy.data(data, &[b'x'; 30_000], false);
        }
        spdy.data(data, b"end", true);
        let seen = collect(&mut spdy, &[error, data]);
        assert_eq!(String::from_utf8_lossy(&seen[&data]).trim(), "900003");
        assert_eq!(seen.get(&error).map(Vec::as_slice).unwrap_or_default(), b"");
    }
}

#[test]
fn a_pod_on_the_hosts_network_has_the_hosts_ports() {
    let scene = Scene::new();
    let pod = scene.host("host");
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let port = listener.local_addr().expect("it is bound").port().to_string();
    let mut spdy = connect(&scene, &pod);
    let (error, data) = open(&mut spdy, "0", &port);
    let (mut server, _) = listener.accept().expect("cria connects");
    spdy.data(data, b"question", true);
    let mut heard = String::new();
    server.read_to_string(&mut heard).expect("cria writes");
    server.write_all(b"answer").expect("cria reads");
    drop(server);
    let seen = collect(&mut spdy, &[error, data]);
    assert_eq!((heard.as_str(), seen[&data].as_slice()), ("question", &b"answer"[..]));
}

#[test]
fn a_pod_that_ends_its_side_first_still_hears_the_client() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let port = listener.local_addr().expect("it is bound").port().to_string();
    let mut spdy = connect(&scene, &scene.host("host"));
    let (error, data) = open(&mut spdy, "0", &port);
    let (mut server, _) = listener.accept().expect("cria connects");
    server.write_all(b"all there is").expect("cria reads");
    server.shutdown(Shutdown::Write).expect("it is connected");
    assert_eq!(collect(&mut spdy, &[data])[&data], b"all there is");
    spdy.data(data, b"thanks", true);
    let mut heard = String::new();
    server.read_to_string(&mut heard).expect("cria writes");
    assert_eq!(heard, "thanks");
    collect(&mut spdy, &[error]);
}

#[test]
fn a_server_on_ipv6_alone_is_reached() {
    let scene = Scene::new();
    let pod = scene.node.run_pod(scene.node.pod("six"));
    let script = "mkdir /tmp/www; echo six > /tmp/www/six; httpd -p [::1]:9006 -h /tmp/www; \
        until grep -q :232E /proc/net/tcp6; do sleep 0.1; done; echo ready; sleep 1000";
    pod.run(scene.script("server", script)).await_log("ready", SOON);
    let mut spdy = connect(&scene, &pod);
    let (error, data) = open(&mut spdy, "0", "9006");
    spdy.data(data, b"GET /six HTTP/1.0\r\n\r\n", false);
    let answer = collect(&mut spdy, &[data]).remove(&data).unwrap_or_default();
    assert!(answer.ends_with(b"\r\nsix\n"), "{}", String::from_utf8_lossy(&answer));
    spdy.data(data, b"", true);
    assert_eq!(collect(&mut spdy, &[error])[&error], b"");
}

#[test]
fn many_connections_share_one_session_and_a_refused_one_ends_alone() {
    let scene = Scene::new();
    let pod = scene.node.run_pod(scene.node.pod("many"));
    serving(&scene, &pod);
    let mut spdy = connect(&scene, &pod);
    let (error, refused) = open(&mut spdy, "refused", "4");
    let seen = collect(&mut spdy, &[error, refused]);
    let text = String::from_utf8_lossy(&seen[&error]).into_owned();
    assert!(text.starts_with("error forwarding port 4 to pod"), "{text}");

    // One after the other, for nc loses those that come at once; but all are open in the end.
    let mut pairs = vec![];
    for number in 0..30 {
        let (error, data) = open(&mut spdy, &number.to_string(), "9001");
        let said = number.to_string().into_bytes();
        spdy.data(data, &said, false);
        let mut heard = vec![];
        while heard != said {
            match spdy.next().expect("the connection stays") {
                Frame::Data { stream, bytes, fin: false } if stream == data => heard.extend(bytes),
                Frame::Reply(_) => {}
                frame => panic!("{frame:?} instead of {number}"),
            }
        }
        pairs.push((error, data));
    }
    for (_, data) in &pairs {
        spdy.data(*data, b"!", true);
    }
    let streams: Vec<u32> = pairs.iter().flat_map(|(error, data)| [*error, *data]).collect();
    let seen = collect(&mut spdy, &streams);
    for (error, data) in &pairs {
        assert_eq!((seen[data].as_slice(), seen[error].as_slice()), (&b"!"[..], &b""[..]));
    }
}

#[test]
fn streams_that_say_nothing_of_use_are_refused() {
    let scene = Scene::with(|setup| setup.config("[streaming]\ncreation-timeout = \"3s\"\n"));
    let pod = scene.node.run_pod(scene.node.pod("strange"));
    let mut spdy = connect(&scene, &pod);
    let strange: [&[(&str, &str)]; 5] = [
        &[],
        &[("port", "80")],
        &[("streamtype", "data")],
        &[("port", "0"), ("streamtype", "data")],
        &[("port", "80"), ("streamtype", "video")],
    ];
    for headers in strange {
        let stream = spdy.open(headers);
        assert_eq!(spdy.next(), Some(Frame::Reset(stream)), "{headers:?}");
    }
    let alone = spdy.open(&[("port", "80"), ("streamtype", "error"), ("requestid", "7")]);
    let seen = collect(&mut spdy, &[alone]);
    assert!(String::from_utf8_lossy(&seen[&alone]).contains("timed out waiting for streams"));
    let data = |request| [("port", "80"), ("streamtype", "data"), ("requestid", request)];
    let alone = spdy.open(&data("8"));
    assert_eq!(spdy.next(), Some(Frame::Reply(alone)));
    let twin = spdy.open(&data("8"));
    assert_eq!(spdy.next(), Some(Frame::Reset(twin)), "it has a data stream");
    assert_eq!(spdy.next(), Some(Frame::Reset(alone)), "nobody opened an error stream");
    // More than waits for one.
    let flooded = spdy.open(&data("9"));
    assert_eq!(spdy.next(), Some(Frame::Reply(flooded)));
    (0..20).for_each(|_| spdy.data(flooded, &[0; 32 << 10], false));
    assert_eq!(spdy.next(), Some(Frame::Reset(flooded)));
    pod.stop().expect("it stops");
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    refused(scene.cri().port_forward(request), Code::FailedPrecondition);
    let nobody = PortForwardRequest { pod_sandbox_id: "0".repeat(64), ..Default::default() };
    refused(scene.cri().port_forward(nobody), Code::NotFound);
    // It was ready when the client asked for this one.
    let (error, late) = open(&mut spdy, "late", "80");
    let seen = collect(&mut spdy, &[error, late]);
    assert!(!seen[&error].is_empty(), "a pod that has stopped is forwarded to");
}

#[test]
fn clients_of_old_name_no_request_and_open_the_error_stream_first() {
    let scene = Scene::new();
    let pod = scene.node.run_pod(scene.node.pod("old"));
    serving(&scene, &pod);
    let mut spdy = connect(&scene, &pod);
    let mut stream = |kind| spdy.open(&[("streamtype", kind), ("port", "9000")]);
    let (error, data) = (stream("error"), stream("data"));
    spdy.data(data, b"12345", true);
    let seen = collect(&mut spdy, &[error, data]);
    assert_eq!(String::from_utf8_lossy(&seen[&data]).trim(), "5");
}

#[test]
fn crictl_forwards_ports() {
    let scene = Scene::new();
    let pod = scene.node.run_pod(scene.node.pod("crictl"));
    serving(&scene, &pod);
    let endpoint = format!("unix://{}", scene.socket().display());
    let mut crictl = Command::new(tools::tool("crictl"))
        .args(["--config=/dev/null", "--runtime-endpoint", &endpoint])
        .args(["port-forward", &pod.id, ":9000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("crictl starts");
    let mut lines = BufReader::new(crictl.stdout.take().expect("it is piped")).lines();
    let line = lines.next().expect("it says where it listens").expect("text");
    let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:"));
    let address = address.unwrap_or_else(|| panic!("no address in {line:?}"));
    for length in [1_usize, 100_000, 3] {
        let mut stream = until("it listens", SOON, || TcpStream::connect(address).ok());
        stream.write_all(&vec![b'x'; length]).expect("crictl reads");
        stream.shutdown(Shutdown::Write).expect("half-close");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("crictl writes");
        assert_eq!(answer.trim(), length.to_string());
    }
    crictl.kill().expect("it runs");
    crictl.wait().expect("it was killed");
}
