//! What a daemon was born with stays with it: limits, umask, signals, descriptors are a container's
//! own, whoever started the daemon and how.

use cria_proto::*;
use harness::cri::Pod;
use harness::scene::{SOON, Scene};
use harness::{Node, Registry};

/// As no service manager would start a program. Soft limits alone: without CAP_SYS_RESOURCE nobody
/// could raise a hard one again.
const ODD: &str = "umask 077; trap '' INT PIPE HUP USR1; echo 100 > /proc/self/oom_score_adj
    ulimit -S -c 100; ulimit -S -n 300; ulimit -S -l 32; ulimit -S -s 1024; exec 7</etc/hostname";

/// Runs `script` to its end; what it wrote.
fn written(scene: &Scene, pod: &Pod, name: &str, script: &str) -> String {
    let mut config = scene.script(name, script);
    let resources = LinuxContainerResources { oom_score_adj: 321, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    let container = pod.run(config);
    container.await_exit(SOON);
    container.written("stdout")
}

#[test]
fn a_container_inherits_nothing_of_the_daemons_however_that_was_started() {
    for scene in [Scene::new(), Scene::with(|setup| setup.shell(ODD))] {
        let pod = scene.host("clean");
        // `ls` itself has the folder open besides its three.
        let script = "umask; cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l
            grep -E '^(NoNewPrivs|SigBlk|SigIgn):' /proc/self/status; cat /proc/self/limits";
        let written = written(&scene, &pod, "clean", script);
        let (attributes, limits) = written.split_once("Limit ").expect("the table has a heading");
        let attributes: Vec<_> = attributes.split_whitespace().collect();
        let none = "0000000000000000";
        let expected = ["0022", "321", "4", "SigBlk:", none, "SigIgn:", none, "NoNewPrivs:", "0"];
        assert_eq!(attributes, expected, "{written}");
        for (name, soft, hard) in [
            ("Max core file size", "0", "unlimited"),
            ("Max open files", "1024", "524288"),
            ("Max locked memory", "8388608", "8388608"),
            ("Max stack size", "8388608", "unlimited"),
            ("Max processes", "unlimited", "unlimited"),
            ("Max address space", "unlimited", "unlimited"),
        ] {
            let (own_soft, own_hard) = limit(limits, name);
            let hard = lowered(hard, &limit(&of_this_process(), name).1);
            assert_eq!((own_soft, own_hard), (lowered(soft, &hard), hard), "{name}: {written}");
        }
    }
}

#[test]
fn what_the_daemon_makes_for_others_can_be_read_by_them_whatever_its_umask() {
    let scene = Scene::with(|setup| setup.shell("umask 077"));
    let mut config = scene.pod("others");
    config.dns_config =
        Some(DnsConfig { servers: vec!["10.0.0.10".to_owned()], ..Default::default() });
    let pod = scene.run_pod(config);
    let mut config = scene.script("others", "cat /etc/resolv.conf /etc/hostname; ls -d /bin/sh");
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.run_as_user = Some(Int64Value { value: 1000 });
    let container = pod.run(config);
    container.await_exit(SOON);
    let written = container.written("stdout");
    assert_eq!(written, "nameserver 10.0.0.10\nothers\n/bin/sh\n", "{}", container.log());
}

#[test]
fn the_limit_of_open_files_is_the_configured_one() {
    let config = "[runtime.rlimits]\nnofile = '300:600'\n";
    let scene = Scene::with(|setup| setup.config(config));
    let pod = scene.host("configured");
    let written = written(&scene, &pod, "configured", "ulimit -n; ulimit -Hn");
    assert_eq!(written, "300\n600\n");
}

#[test]
fn what_the_daemon_lacks_itself_is_said_once_at_its_start() {
    let poor = "set -- setpriv --no-new-privs --bounding-set=-syslog,-sys_resource \"$@\"";
    let registry = Registry::start();
    let mut node = Node::setup().registry(&registry).shell(poor).start();
    let mut privileged = node.host_pod("privileged");
    let linux = privileged.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    node.run_pod(privileged);
    node.terminate();
    let log = node.log();
    for (message, detail) in [
        ("this process lacks capabilities", "CAP_SYSLOG"),
        ("oom_score_adj of containers is clamped", "floor="),
        ("this process has no_new_privs", "every container has it"),
    ] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(message)).collect();
        assert_eq!(lines.len(), 1, "{message}: {lines:#?}");
        assert!(lines[0].contains("WARN") && lines[0].contains(detail), "{lines:?}");
    }
}

/// Soft and hard limit in the text of a `limits` file (proc_pid_limits(5)).
fn limit(limits: &str, name: &str) -> (String, String) {
    let values = limits.lines().find_map(|line| line.strip_prefix(name));
    let mut values = values.unwrap_or_else(|| panic!("{name} in {limits}")).split_whitespace();
    let mut next = || values.next().unwrap_or_default().to_owned();
    (next(), next())
}

fn of_this_process() -> String {
    fs_err::read_to_string("/proc/self/limits").expect("/proc is mounted")
}

/// Without CAP_SYS_RESOURCE a limit cannot be raised above `hard`.
fn lowered(wanted: &str, hard: &str) -> String {
    let number = |text: &str| text.parse().unwrap_or(u64::MAX);
    if number(hard) < number(wanted) { hard.to_owned() } else { wanted.to_owned() }
}
