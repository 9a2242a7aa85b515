//! The daemon as a program: its configuration, its neighbours, its other commands.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output};

use harness::scene::{OBEDIENT, SOON, Scene, push_busybox};
use harness::{Node, Registry, tools, until};

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

#[test]
fn two_daemons_run_side_by_side() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "busybox:1");
    let mut nodes = [Node::start(&registry), Node::start(&registry)];
    for node in &nodes {
        node.cri().pull(&image.reference);
        let pod = node.run_pod(node.pod("neighbour"));
        let config = harness::cri::container_config("neighbour", &image.id, &OBEDIENT);
        pod.run(config).await_log("ready", SOON);
    }
    let [first, second] = &mut nodes;
    first.cri().remove_all_pods().expect("pods are listed");
    first.assert_clean();
    first.restart();
    let pods = second.cri().list_pod_sandbox(cria_proto::ListPodSandboxRequest::default());
    assert_eq!(pods.expect("pods are listed").items.len(), 1, "the other's pod lives");
    assert_eq!(monitors(second), 1, "and so does its monitor");
}

fn monitors(node: &Node) -> usize {
    harness::node::monitors(node.place()).len()
}

#[test]
fn a_second_daemon_on_the_same_run_directory_refuses_and_names_the_holder() {
    let registry = Registry::start();
    let node = Node::start(&registry);
    let output = run(&mut node.command());
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains(&node.pid().to_string()), "the holder's pid: {said}");
    assert!(said.contains("lock") || said.contains("run"), "what it holds: {said}");
    node.cri().version(cria_proto::VersionRequest::default()).expect("the first is not disturbed");
}

#[test]
fn a_wrong_value_stops_the_start_with_file_line_and_key() {
    for (config, line, key) in [
        ("\nlog-level = 'loud'\n", 2, "log-level"),
        ("[runtime]\ncgroup-driver = 'none'\n", 2, "cgroup-driver"),
        ("[network]\n\ncni-timeout = 'soon'\n", 3, "cni-timeout"),
        ("root = 5\n", 1, "root"),
    ] {
        let node = Node::setup().config(config).prepare();
        let output = run(&mut node.command());
        assert!(!output.status.success(), "{config}");
        let said = said(&output);
        assert!(said.contains(&format!("cria.toml:{line}")), "{config}: {said}");
        assert!(said.contains(key), "{config}: {said}");
    }
}

#[test]
fn an_unknown_key_is_a_warning_that_names_the_nearest() {
    let node = Node::setup().config("[network]\ncni-timeuot = '1m'\n").start();
    let log = node.log();
    let line = log.lines().find(|line| line.contains("cni-timeuot")).expect("it is said");
    assert!(line.contains("WARN") && line.contains("network.cni-timeout"), "{line}");
}

#[test]
fn a_log_for_machines_is_one_object_a_line() {
    let registry = Registry::start();
    let mut node =
        Node::setup().registry(&registry).argument("--log-format").argument("json").start();
    node.terminate();
    let log = node.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let serving = lines.iter().find(|line| line["message"] == "serving").expect("it serves");
    assert_eq!((&serving["level"], &serving["sandboxes"]), (&"INFO".into(), &0.into()));
    assert!(serving["timestamp"].is_string(), "{serving}");
}

#[test]
fn a_crun_that_does_not_work_is_passed_over_and_the_log_says_why() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let crun = "#!/bin/sh\n[ \"$1\" = --version ] && echo crun version 0\n\
                echo 'no luck today' >&2; exit 1\n";
    harness::scripts::write(&folder.path().join("crun"), crun);
    let path = std::env::var("PATH").expect("there is one");
    let registry = Registry::start();
    let node = Node::setup()
        .registry(&registry)
        .variable("PATH", format!("{}:{path}", folder.path().display()))
        .start();
    let log = node.log();
    let line = log.lines().find(|line| line.contains("node is prepared")).expect("it is said");
    for part in ["/runc", "it works; ", "/crun does not work here", "no luck today"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn sigterm_ends_the_daemon_and_no_container() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "busybox:1");
    let mut node = Node::start(&registry);
    node.cri().pull(&image.reference);
    let pod = node.run_pod(node.host_pod("stays"));
    let container = pod.run(harness::cri::container_config("stays", &image.id, &OBEDIENT));
    container.await_log("ready", SOON);
    let before = container.status();
    assert!(node.terminate().success(), "it ends well");
    assert_eq!(monitors(&node), 1);
    node.resume();
    assert_eq!(container.status(), before);
}

#[test]
fn a_socket_left_by_a_crash_is_no_obstacle() {
    let registry = Registry::start();
    let mut node = Node::start(&registry);
    node.kill9();
    assert!(node.socket().exists());
    node.resume();
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs_err::metadata(node.socket()).expect("it serves").permissions(),
    );
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn cria_version_tells_the_kubernetes_release() {
    let output = run(Command::new(tools::binary("cria")).arg("version"));
    assert!(output.status.success());
    assert!(said(&output).contains("1.37."), "{}", said(&output));
}

#[test]
fn cria_config_prints_what_is_in_effect() {
    let node = Node::setup().config("[network]\ncni-timeout = '42s'\n").prepare();
    let output = run(command_of(&mut node.command(), "config"));
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("cni-timeout = \"42s\""), "{text}");
    assert!(text.contains(&node.root().display().to_string()), "{text}");
}

#[test]
fn cria_check_says_in_words_what_the_node_has() {
    let node = Node::setup().prepare();
    let text = said(&run(command_of(&mut node.command(), "check")));
    for word in ["overlay", "cgroup", "runc", "CNI", "kubelet"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn cria_status_asks_the_running_daemon_and_fails_without_one() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "busybox:1");
    let mut node = Node::start(&registry);
    node.cri().pull(&image.reference);
    let output = run(command_of(&mut node.command(), "status"));
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for line in ["RuntimeReady    yes", "pulls           1 succeeded, 0 failed", "1 layers fetched"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    let output = run(command_of(&mut node.command(), "status").arg("--json"));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(told["images"]["counts"]["succeeded"], 1);
    assert_eq!(told["images"]["pulls"], serde_json::json!([]));
    // `crictl info` shows the same.
    let asked = node.cri().status(cria_proto::StatusRequest { verbose: true });
    let info = asked.expect("it is answered").info;
    let images: serde_json::Value = serde_json::from_str(&info["images"]).expect("it is JSON");
    assert_eq!(images["counts"], told["images"]["counts"]);

    node.terminate();
    let output = run(command_of(&mut node.command(), "status"));
    assert!(!output.status.success());
    assert!(said(&output).contains("no answer from"), "{}", said(&output));
}

#[test]
fn a_daemon_whose_monitor_is_missing_does_not_start() {
    let node = Node::setup().prepare();
    let mut command = Command::new(tools::binary("cria"));
    let arguments: Vec<_> = node.command().get_args().map(ToOwned::to_owned).collect();
    let from = arguments.iter().position(|word| word == "--config").expect("the flags begin here");
    let flags = arguments[from..].iter().map(|word| {
        if word.to_string_lossy().ends_with("cria-monitor") {
            "/no/monitor".into()
        } else {
            word.clone()
        }
    });
    let mut child =
        command.args(flags).stderr(std::process::Stdio::piped()).spawn().expect("it runs");
    let status = until("it ends", SOON, || child.try_wait().ok().flatten());
    assert!(!status.success());
}

/// The node's command with `subcommand` in the place where the daemon's flags begin.
fn command_of<'a>(command: &'a mut Command, subcommand: &str) -> &'a mut Command {
    command.arg(subcommand)
}

#[test]
fn counters_are_served_where_the_configuration_says_and_nowhere_else() {
    // An address of loopback that is this test's alone.
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = format!("127.77.{high}.{low}:9091");
    let config = format!("[metrics]\nlisten = \"{address}\"\n");
    let scene = Scene::with(|setup| setup.config(&config));
    scene.host("counted");
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(&address).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers and closes");
        answer
    };
    let answer = ask("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for line in ["cria_pod_sandboxes 1", "cria_image_pulls_total{result=\"succeeded\"} 1"] {
        assert!(answer.lines().any(|found| found == line), "{line} in {answer}");
    }
    assert!(ask("/").starts_with("HTTP/1.1 404 "));
}
