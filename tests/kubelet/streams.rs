//! Exec, attach and port-forward through the kubelet's own port, over every transport that clients
//! come with. Some of them the kubelet translates, the others it passes through to the runtime.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use cria_proto::ExecRequest;
use harness::remote::{Outcome, Transport};
use harness::until;
use harness::websocket::{Message, WebSocket};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use super::{Case, case};
use crate::process::NODE_NAME;
use crate::site::{LIMIT, Site, container_id, status, terminated, with};

pub(crate) const CASES: &[Case] = &[
    case("exec by SPDY v4, WebSocket v5 and v4: streams, codes, sizes", exec),
    case("attach by SPDY v4, WebSocket v5 and v4: both directions", attach),
    case("port-forward by SPDY, and by SPDY within WebSocket", port_forward),
    case("port-forward by WebSocket v4, two channels for each port", old_port_forward),
];

pub(crate) const CROWDED: &str = "more sessions asked for than fit: 429 from the kubelet";

const TRANSPORTS: [Transport; 3] = [
    Transport::spdy("v4.channel.k8s.io"),
    Transport::websocket("v5.channel.k8s.io"),
    Transport::websocket("v4.channel.k8s.io"),
];

/// Where the kubelet serves `verb` for a pod, or for one of its containers.
fn url(site: &Site, verb: &str, pod: &str, rest: &str) -> String {
    format!("{}/{verb}/default/{pod}-{NODE_NAME}{rest}", site.api.address())
}

fn exec(site: &Site) -> Result<()> {
    site.apply("streams-exec", json!({ "containers": [site.sh("main", "sleep 10000")] }));
    site.ready("streams-exec")?;
    let url = |options: &str, script: &str| {
        let words = ["sh", "-c", script].map(|word| format!("&command={}", escaped(word)));
        let rest = format!("/main?output=1{options}{}", words.concat());
        url(site, "exec", "streams-exec", &rest)
    };
    for transport in TRANSPORTS {
        let with_errors = url("&error=1", "head -c 2000000 /dev/zero; echo err >&2; exit 3");
        let Outcome { stdout, stderr, code } = transport.stream(&[], &with_errors, None);
        ensure!((stdout.len(), code) == (2_000_000, Some(3)), "{transport:?}: {code:?} {stderr}");
        ensure!(stderr.starts_with("err\n"), "{transport:?}: {stderr}");

        // v4 over WebSocket has no word for the end of stdin.
        let script = "head -c 1000000 | wc -c";
        let stdin = "x".repeat(1_000_000);
        let Outcome { stdout, stderr, code } =
            transport.stream(&["-stderr=false"], &url("&input=1", script), Some(&stdin));
        ensure!((stdout.trim(), code) == ("1000000", Some(0)), "{transport:?}: {stderr}");

        let script = "n=0; trap 'stty size; n=$((n + 1))' WINCH; echo ready; \
            until [ $n = 2 ]; do sleep 0.05; done; exit 4";
        let flags = ["-tty", "-sizes", "80x24,132x43"];
        let Outcome { stdout, stderr, code } =
            transport.stream(&flags, &url("&input=1&tty=1", script), Some(""));
        let sizes = "ready\r\n24 80\r\n43 132\r\n";
        ensure!((stdout.as_str(), code) == (sizes, Some(4)), "{transport:?}: {stdout:?} {stderr}");
    }
    Ok(())
}

fn attach(site: &Site) -> Result<()> {
    for (number, transport) in TRANSPORTS.into_iter().enumerate() {
        let name = format!("streams-attach{number}");
        let script = "read line; echo got $line; read line; echo and $line; exit 5";
        let stdin = json!({ "stdin": true, "stdinOnce": true });
        let main = with(site.sh("main", script), stdin);
        site.apply(&name, json!({ "restartPolicy": "Never", "containers": [main] }));
        let running = |pod: &serde_json::Value| {
            pod["status"]["containerStatuses"][0]["state"]["running"].is_object().then_some(())
        };
        site.pod(&name, "running", running)?;
        let url = url(site, "attach", &name, "/main?input=1&output=1&error=1");
        let Outcome { stdout, stderr, code } = transport.stream(&[], &url, Some("one\ntwo\n"));
        ensure!(stdout == "got one\nand two\n", "{transport:?}: {stdout:?} {stderr}");
        ensure!(code == Some(0), "{transport:?}: {code:?} {stderr}");
        let code = site.pod(&name, "terminated", |pod| {
            terminated(pod, "main").and_then(|ended| ended["exitCode"].as_i64())
        })?;
        ensure!(code == 5, "{transport:?}: it ended with {code}");
    }
    Ok(())
}

/// Leaves no room for sessions until the runtime starts anew, or a minute has passed.
pub(crate) fn crowded(site: &Site) -> Result<()> {
    site.apply("streams-crowded", json!({ "containers": [site.sh("main", "sleep 10000")] }));
    let pod = site.ready("streams-crowded")?;
    let request = ExecRequest {
        container_id: container_id(status(&pod, "main")),
        cmd: vec!["true".to_owned()],
        stdout: true,
        ..Default::default()
    };
    // Nobody comes for these.
    let is_full = (0..=1000).any(|_| site.cri.exec(request.clone()).is_err());
    ensure!(is_full, "the runtime takes any number");
    let path = format!("/exec/default/streams-crowded-{NODE_NAME}/main?output=1&command=true");
    let refusal = site.api.text(&path).err().context("there was room for one more")?;
    let said = format!("{refusal:#}");
    ensure!(said.contains("429 Too Many Requests"), "{said}");
    Ok(())
}

/// Each connection to port 9000 is told how many bytes it sent before it ended its side; each to
/// port 9001 gets everything back.
const SERVERS: &str = "nc -ll -p 9000 -e wc -c & nc -ll -p 9001 -e cat & \
    listens() { cat /proc/net/tcp /proc/net/tcp6 | grep -q :$1; }; \
    until listens 2328 && listens 2329; do sleep 0.1; done; echo end; wait";

fn serving(site: &Site, name: &str) -> Result<()> {
    site.apply(name, json!({ "containers": [site.sh("main", SERVERS)] }));
    site.await_log(name, "main", "end\n").map(drop)
}

fn port_forward(site: &Site) -> Result<()> {
    serving(site, "streams-forward")?;
    for name in ["spdy", "websocket"] {
        let url = url(site, "portForward", "streams-forward", "");
        let forwarder = Transport { name, protocols: "" }.forward(&[], &url, 9000);
        for length in [1_usize, 300_000, 3] {
            let connect = || TcpStream::connect(&forwarder.address).ok();
            let mut stream = until("it listens", LIMIT, connect);
            stream.write_all(&vec![b'x'; length])?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.trim() == length.to_string(), "{name}: {answer} of {length}");
        }
    }
    Ok(())
}

fn old_port_forward(site: &Site) -> Result<()> {
    serving(site, "streams-channels")?;
    let url = url(site, "portForward", "streams-channels", "?port=9001&port=4");
    let (host, path) = url
        .strip_prefix("https://")
        .and_then(|rest| rest.find('/').map(|slash| rest.split_at(slash)))
        .context("the kubelet's address")?;
    let mut client = WebSocket::over(secured(site, host)?, host, path, "v4.channel.k8s.io");
    for (channel, port) in [(0, 9001_u16), (1, 9001), (2, 4), (3, 4)] {
        let beginning = [&[channel][..], &port.to_le_bytes()].concat();
        ensure!(client.next() == Some(Message::Binary(beginning)), "the beginning of {channel}");
    }
    client.say(0, b"there and back");
    let (mut echo, mut error) = (vec![], String::new());
    while echo != b"there and back" || error.is_empty() {
        match client.next().with_context(|| format!("it ends after {echo:?} and {error}"))? {
            Message::Binary(bytes) if bytes[0] == 0 => echo.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == 3 => {
                error += &String::from_utf8_lossy(&bytes[1..]);
            }
            Message::Binary(_) | Message::Text(_) | Message::Pong(_) | Message::Close(_) => {}
        }
    }
    ensure!(error.contains("error forwarding port 4 to pod"), "{error}");
    Ok(())
}

/// A connection to the kubelet, whose certificate is its own.
fn secured(site: &Site, host: &str) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(site.files.certificate())? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NODE_NAME)?;
    let connection = ClientConnection::new(Arc::new(config), name)?;
    let socket = TcpStream::connect(host)?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(StreamOwned::new(connection, socket))
}

/// `text` as a value in a query.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
