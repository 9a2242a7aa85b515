//! Exec, attach and port-forward through client-go, over every transport and subprotocol that it
//! knows: by a client made of it alone, and by crictl. And the same over TLS.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use cria_proto::{AttachRequest, ExecRequest, PortForwardRequest};
use harness::certificate::Certificate;
use harness::cri::{Container, Pod};
use harness::remote::{Forwarder, Outcome, Transport, outcome};
use harness::scene::{SOON, Scene};
use harness::{Node, tools, until};
use nix::pty::{Winsize, openpty};

const V1: &str = "channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";

/// What client-go ends with where there is no exit code.
const BROKEN: i32 = 125;

fn exec(scene: &Scene, container: &Container, script: &str, stdin: bool, tty: bool) -> String {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdin,
        tty,
        stdout: true,
        stderr: !tty,
    };
    scene.cri().exec(request).expect("the container runs").url
}

fn crictl(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = Command::new(tools::tool("crictl"));
    let endpoint = format!("unix://{}", scene.socket().display());
    command.args(["--config=/dev/null", "--runtime-endpoint", &endpoint]).args(arguments);
    command
}

#[test]
fn every_version_tells_how_the_command_ended() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("codes"), "codes");
    let words = "command terminated with non-zero exit code: exit code 3";
    let cases = [
        (Transport::spdy(V4), 3, ""),
        (Transport::spdy(V3), BROKEN, words),
        (Transport::spdy(V2), BROKEN, words),
        // It throws its error stream away.
        (Transport::spdy(V1), 0, ""),
        // What kubectl asks for: v5 is not spoken over SPDY.
        (Transport::spdy("v5.channel.k8s.io,v4.channel.k8s.io"), 3, ""),
        (Transport::websocket(V5), 3, ""),
        (Transport::websocket(V4), 3, ""),
    ];
    for (transport, code, message) in cases {
        let url = exec(&scene, &container, "echo out; echo err >&2; exit 3", false, false);
        let Outcome { stdout, stderr, code: found } = transport.stream(&[], &url, None);
        assert_eq!((stdout.as_str(), found), ("out\n", Some(code)), "{transport:?}: {stderr}");
        assert!(stderr.contains("err\n") && stderr.contains(message), "{transport:?}: {stderr}");
        let url = exec(&scene, &container, "true", false, false);
        assert_eq!(transport.stream(&[], &url, None).code, Some(0), "{transport:?}");
    }
}

#[test]
fn stdin_ends_where_the_client_ends_it() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("stdin"), "stdin");
    let stdin = "x".repeat(3_000_000);
    for transport in
        [Transport::spdy(V4), Transport::spdy(V3), Transport::spdy(V2), Transport::websocket(V5)]
    {
        let url = exec(&scene, &container, "wc -c; exit 7", true, false);
        let Outcome { stdout, stderr, .. } = transport.stream(&[], &url, Some(&stdin));
        assert_eq!(stdout.trim(), "3000000", "{transport:?}: {stderr}");
    }
    // These have no word for it.
    for transport in [Transport::spdy(V1), Transport::websocket(V4), Transport::websocket(V1)] {
        let url = exec(&scene, &container, "read a; read b; echo $b $a", true, false);
        let Outcome { stdout, stderr, .. } = transport.stream(&[], &url, Some("one\ntwo\n"));
        assert_eq!(stdout, "two one\n", "{transport:?}: {stderr}");
    }
}

#[test]
fn a_terminal_follows_the_clients_size() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("size"), "size");
    let script = "n=0; trap 'stty size; n=$((n + 1))' WINCH; echo ready; \
        until [ $n = 2 ]; do sleep 0.05; done; exit 4";
    for transport in [
        Transport::spdy(V4),
        Transport::spdy(V3),
        Transport::websocket(V5),
        Transport::websocket(V4),
    ] {
        let url = exec(&scene, &container, script, true, true);
        let flags = ["-tty", "-sizes", "80x24,132x43"];
        let Outcome { stdout, stderr, code } = transport.stream(&flags, &url, Some(""));
        assert_eq!(stdout, "ready\r\n24 80\r\n43 132\r\n", "{transport:?}: {stderr}");
        let has_codes = transport != Transport::spdy(V3);
        assert_eq!(code, Some(if has_codes { 4 } else { BROKEN }), "{transport:?}: {stderr}");
    }
}

#[test]
fn what_cannot_be_run_is_said_on_the_error_stream() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.host("broken"), "broken");
    for transport in [Transport::spdy(V4), Transport::spdy(V2), Transport::websocket(V5)] {
        let request = ExecRequest {
            container_id: container.id.clone(),
            cmd: vec!["/no/such/program".to_owned()],
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let url = scene.cri().exec(request).expect("the container runs").url;
        let Outcome { stderr, code, .. } = transport.stream(&[], &url, None);
        assert_eq!(code, Some(BROKEN), "{transport:?}: {stderr}");
        assert!(stderr.contains("/no/such/program"), "{transport:?}: {stderr}");
    }
}

#[test]
fn attached_clients_of_every_version_see_and_say_the_same() {
    let scene = Scene::new();
    let pod = scene.host("attach");
    let transports = [
        Transport::spdy(V4),
        Transport::spdy(V3),
        Transport::spdy(V2),
        Transport::spdy(V1),
        Transport::websocket(V5),
        Transport::websocket(V4),
    ];
    for (number, transport) in transports.into_iter().enumerate() {
        let name = format!("attach{number}");
        // It does not wait for the end of its input, for which v4 over WebSocket has no word.
        let script = "for n in 1 2; do read line; echo got $line; done; exit 5";
        let mut config = scene.script(&name, script);
        config.stdin = true;
        config.stdin_once = true;
        let container = pod.run(config);
        let request = AttachRequest {
            container_id: container.id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = scene.cri().attach(request).expect("the container runs").url;
        let Outcome { stdout, stderr, code } = transport.stream(&[], &url, Some("one\ntwo\n"));
        assert_eq!(stdout, "got one\ngot two\n", "{transport:?}: {stderr}");
        // How the container ends is no failure of the attaching.
        assert_eq!(code, Some(0), "{transport:?}: {stderr}");
        assert_eq!(container.await_exit(SOON).exit_code, 5);
    }
}

/// Each connection is told how many bytes it sent before it ended its side.
fn counting(scene: &Scene) -> Pod {
    let pod = scene.node.run_pod(scene.node.pod("counting"));
    let script = "nc -ll -p 9000 -e wc -c & \
        until cat /proc/net/tcp /proc/net/tcp6 | grep -q :2328; do sleep 0.1; done; \
        echo ready; wait";
    pod.run(scene.script("server", script)).await_log("ready", SOON);
    pod
}

#[track_caller]
fn assert_counts(forwarder: &Forwarder) {
    for length in [1_usize, 100_000, 3] {
        let connect = || TcpStream::connect(&forwarder.address).ok();
        let mut stream = until("it listens", SOON, connect);
        stream.write_all(&vec![b'x'; length]).expect("the client reads");
        stream.shutdown(Shutdown::Write).expect("half-close");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the client writes");
        assert_eq!(answer.trim(), length.to_string());
    }
}

#[test]
fn ports_are_forwarded_over_both_transports() {
    let scene = Scene::new();
    let pod = counting(&scene);
    for name in ["spdy", "websocket"] {
        let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![] };
        let url = scene.cri().port_forward(request).expect("the pod is ready").url;
        let transport = Transport { name, protocols: "" };
        assert_counts(&transport.forward(&[], &url, 9000));
        let mut crictl = crictl(&scene, &["port-forward", "--transport", name, &pod.id, ":9000"]);
        assert_counts(&Forwarder::start(&mut crictl));
    }
}

/// Runs `command` on a terminal of 77 by 22, types `keys` once `prompt` is seen, and reads until
/// its end.
fn on_terminal(mut command: Command, prompt: &str, keys: &str) -> (String, Option<i32>) {
    let size = Winsize { ws_row: 22, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).expect("there are terminals");
    let slave = || -> Stdio { pty.slave.try_clone().expect("a file can be opened twice").into() };
    command.stdin(slave()).stdout(slave()).stderr(slave());
    let mut child = command.spawn().expect("crictl starts");
    drop((command, pty.slave));
    let (mut master, mut seen, mut typed) = (File::from(pty.master), vec![], false);
    let mut buffer = [0; 4096];
    // A terminal that nobody has open any more is an error to read from.
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
        if !typed && String::from_utf8_lossy(&seen).contains(prompt) {
            master.write_all(keys.as_bytes()).expect("the terminal is open");
            typed = true;
        }
    }
    let status = child.wait().expect("our own child can be waited for");
    (String::from_utf8_lossy(&seen).into_owned(), status.code())
}

#[test]
fn crictl_has_a_terminal_over_both_transports() {
    let scene = Scene::new();
    let pod = scene.host("terminal");
    for transport in ["spdy", "websocket"] {
        let container = scene.obedient(&pod, transport);
        let script = "echo up; read word; until stty size | grep 77; do sleep 0.05; done; \
            echo got-$word; tty; exit 6";
        let exec =
            ["exec", "--transport", transport, "-i", "-t", &container.id, "sh", "-c", script];
        let (seen, code) = on_terminal(crictl(&scene, &exec), "up", "hello\r");
        assert!(seen.contains("22 77") && seen.contains("got-hello"), "{transport}: {seen}");
        assert!(seen.contains("/dev/pts/") && code != Some(0), "{transport}: {code:?} {seen}");

        let script = "until echo here; read -t 1 word; do :; done; \
            until stty size | grep 77; do sleep 0.05; done; echo got-$word; exit 6";
        let mut config = scene.script(&format!("attach-{transport}"), script);
        (config.stdin, config.tty) = (true, true);
        let attached = pod.run(config);
        let attach = ["attach", "--transport", transport, "-i", "-t", &attached.id];
        let (seen, _) = on_terminal(crictl(&scene, &attach), "here", "hello\r");
        assert!(seen.contains("22 77") && seen.contains("got-hello"), "{transport}: {seen}");
        assert_eq!(attached.await_exit(SOON).exit_code, 6);
    }
}

/// A scene whose streams are served with the certificate in `folder`.
fn with_tls(folder: &Path) -> Scene {
    let Certificate { certificate, key } = Certificate::make(folder, "server");
    let (certificate, key) = (certificate.display(), key.display());
    Scene::with(|setup| {
        setup.config(&format!(
            "[streaming]\ntls-cert-file = \"{certificate}\"\ntls-key-file = \"{key}\"\n"
        ))
    })
}

#[test]
fn everything_is_served_over_tls_to_those_who_trust_the_certificate() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let scene = with_tls(folder.path());
    let authority = folder.path().join("server.crt").display().to_string();
    let container = scene.obedient(&scene.host("tls"), "tls");
    let trusting = ["-ca", authority.as_str()];
    for transport in [Transport::spdy(V4), Transport::websocket(V5)] {
        let script = "head -c 3000000 /dev/zero; wc -c; exit 3";
        let url = exec(&scene, &container, script, true, false);
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let stdin = "x".repeat(1_000_000);
        let Outcome { stdout, stderr, code } = transport.stream(&trusting, &url, Some(&stdin));
        assert_eq!((stdout.len(), code), (3_000_000 + 8, Some(3)), "{transport:?}: {stderr}");
        assert!(stdout.ends_with("1000000\n"), "{transport:?}");
    }
    // crictl takes any certificate, or checks it and shows one of its own.
    let key = folder.path().join("server.key").display().to_string();
    let other = Certificate::make(folder.path(), "other").certificate.display().to_string();
    let own = authority.as_str();
    let checking = |authority| ["--tls-ca", authority, "--tls-cert", own, "--tls-key", &key];
    let run = |options: &[&str]| {
        let command = [&["exec"], options, &[&container.id, "echo", "trusted"]].concat();
        outcome(crictl(&scene, &command), "")
    };
    for options in [&[][..], &checking(&authority)] {
        assert_eq!(run(options).stdout, "trusted\n", "{options:?}");
    }
    let Outcome { stdout, stderr, .. } = run(&checking(&other));
    assert!(stdout.is_empty() && stderr.contains("certificate"), "{stderr}");

    let pod = counting(&scene);
    for name in ["spdy", "websocket"] {
        let options = checking(&authority);
        let words = [&["port-forward", "--transport", name], &options[..], &[&pod.id, ":9000"]];
        assert_counts(&Forwarder::start(&mut crictl(&scene, &words.concat())));
    }
}

#[test]
fn a_renewed_certificate_is_shown_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let scene = with_tls(folder.path());
    let container = scene.obedient(&scene.host("renew"), "renew");
    let (old, new) = (folder.path().join("old.crt"), folder.path().join("new.crt"));
    let shown = folder.path().join("server.crt");
    fs_err::copy(&shown, &old).expect("own folder");
    let trusted = |authority: &Path| {
        let authority = authority.display().to_string();
        let url = exec(&scene, &container, "true", false, false);
        Transport::spdy(V4).stream(&["-ca", &authority], &url, None).code == Some(0)
    };
    assert!(trusted(&old));

    fs_err::write(&shown, "no certificate").expect("own folder");
    until("it is read", SOON, || scene.log().contains("certificate stays as it is").then_some(()));
    assert!(trusted(&old));

    // As who renews certificates does it: the key, then the certificate, each by rename.
    let renewed = Certificate::make(folder.path(), "new");
    let key = folder.path().join("server.key");
    fs_err::rename(&renewed.key, &key).expect("own folder");
    fs_err::copy(&renewed.certificate, folder.path().join("copy")).expect("own folder");
    fs_err::rename(folder.path().join("copy"), &shown).expect("own folder");
    until("the new one is shown", SOON, || trusted(&new).then_some(()));
    assert!(!trusted(&old));
}

#[test]
fn a_certificate_that_cannot_be_used_stops_the_start() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let made = Certificate::make(folder.path(), "made");
    let other = Certificate::make(folder.path(), "other");
    let cases = [
        (folder.path().join("none"), Some(&made.key), "none"),
        (made.certificate.clone(), None, "private key"),
        (made.certificate.clone(), Some(&other.key), "made.crt"),
    ];
    for (certificate, key, said) in cases {
        let mut text = format!("[streaming]\ntls-cert-file = \"{}\"\n", certificate.display());
        if let Some(key) = key {
            text += &format!("tls-key-file = \"{}\"\n", key.display());
        }
        assert_refused(&text, said);
    }
    let key = made.key.display();
    assert_refused(&format!("[streaming]\ntls-key-file = \"{key}\"\n"), "tls-cert-file is not set");
}

/// A daemon of this configuration ends at once, and says why.
#[track_caller]
fn assert_refused(config: &str, said: &str) {
    let node = Node::setup().config(config).prepare();
    let Outcome { stdout, stderr, code } = outcome(node.command(), "");
    assert!(code != Some(0), "it has ended well");
    let all = stdout + &stderr;
    assert!(all.contains(said), "{said}: {all}");
}
