//! Which namespaces a pod's containers share, and what is told of them.

use cria_proto::NamespaceMode::{Container as Own, Node, Pod as Shared, Target};
use cria_proto::*;
use harness::cri::{Container, Pod};
use harness::scene::{SOON, Scene, refused};
use tonic::Code;

const KINDS: [&str; 4] = ["net", "ipc", "uts", "pid"];

/// What /proc/self/ns/KIND is inside.
fn inside(container: &Container, kind: &str) -> String {
    let link = format!("/proc/self/ns/{kind}");
    let seen = container.exec(&["readlink", &link]).expect("exec runs");
    assert_eq!(seen.exit_code, 0, "{seen}");
    seen.stdout.trim().to_owned()
}

fn of_the_host(kind: &str) -> String {
    let link = fs_err::read_link(format!("/proc/self/ns/{kind}")).expect("/proc is mounted");
    link.to_string_lossy().into_owned()
}

/// A pod with these modes for network, pid and ipc.
fn pod(scene: &Scene, name: &str, options: &NamespaceOption) -> Pod {
    let mut config = scene.pod(name);
    if options.network() == Node {
        config.hostname.clear();
    }
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
    scene.run_pod(config)
}

/// A container that asks for the same, as the kubelet's do.
fn member(scene: &Scene, pod: &Pod, name: &str, options: &NamespaceOption) -> Container {
    let mut config = scene.container(name, &harness::scene::OBEDIENT);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
    let container = pod.run(config);
    container.await_log("ready", SOON);
    container
}

fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        ipc: ipc.into(),
        ..Default::default()
    }
}

#[test]
fn containers_share_with_pod_and_host_what_was_asked_and_nothing_else() {
    let scene = Scene::new();
    for (network, pid, ipc) in [
        (Shared, Own, Shared),
        (Shared, Shared, Shared),
        (Shared, Node, Shared),
        (Node, Own, Shared),
        (Node, Own, Node),
        (Shared, Own, Node),
        (Node, Node, Node),
    ] {
        let asked = options(network, pid, ipc);
        let name = format!("pod-{network:?}-{pid:?}-{ipc:?}").to_lowercase();
        let pod = pod(&scene, &name, &asked);
        let both = ["one", "two"].map(|name| member(&scene, &pod, name, &asked));
        // The host's UTS namespace comes with its network.
        for (kind, mode) in KINDS.into_iter().zip([network, ipc, network, pid]) {
            let [one, two] = both.each_ref().map(|container| inside(container, kind));
            let host = of_the_host(kind);
            assert_eq!(one == host, mode == Node, "{name}: {kind} of the host");
            assert_eq!(one == two, mode != Own, "{name}: {kind} shared");
        }
    }
}

#[test]
fn a_container_may_join_the_processes_of_another() {
    let scene = Scene::new();
    let asked = options(Shared, Own, Shared);
    let pod = pod(&scene, "target", &asked);
    let target = member(&scene, &pod, "target", &asked);
    let joins = NamespaceOption { pid: Target.into(), target_id: target.id.clone(), ..asked };
    let guest = member(&scene, &pod, "guest", &joins);
    assert_eq!(inside(&guest, "pid"), inside(&target, "pid"));
    target.stop(SOON).expect("it stops");
    // Its PID namespace ended with it.
    guest.await_exit(SOON);
}

#[test]
fn a_shared_pid_namespace_has_an_init_that_shows_nothing_of_the_host() {
    let scene = Scene::new();
    let asked = options(Shared, Shared, Shared);
    let pod = pod(&scene, "shared", &asked);
    let container = member(&scene, &pod, "one", &asked);
    let seen =
        container.exec(&["sh", "-c", "ls /proc/1/root/etc; ls /proc/1/fd"]).expect("exec runs");
    assert_eq!(seen.stdout, "", "nothing of /proc/1 is open");

    // A child that lost its parent is waited for.
    container.exec(&["sh", "-c", "(sleep 0.1 &) ; exit 0"]).expect("exec runs");
    harness::until("no zombie is left", SOON, || {
        let seen = container.exec(&["sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status"]).ok()?;
        seen.stdout.is_empty().then_some(())
    });
}

#[test]
fn the_pods_status_tells_the_options_exactly_also_after_a_restart() {
    let mut scene = Scene::new();
    let all = [
        options(Shared, Own, Shared),
        options(Shared, Shared, Shared),
        options(Node, Own, Shared),
        options(Node, Node, Node),
    ];
    let pods: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(number, options)| (pod(&scene, &format!("told-{number}"), options), options))
        .collect();
    let check = || {
        for (pod, options) in &pods {
            let status = pod.status();
            let linux = status.linux.expect("the kubelet reads it");
            let told = linux.namespaces.and_then(|namespaces| namespaces.options);
            assert_eq!(told.as_ref(), Some(*options));
            match options.network() {
                Node => assert_eq!(status.network, None),
                _ => {
                    let ip = status.network.expect("READY has an address").ip;
                    assert!(ip.parse::<std::net::IpAddr>().is_ok(), "bare: {ip}");
                }
            }
        }
    };
    check();
    scene.kill9();
    scene.resume();
    check();
}

#[test]
fn sysctls_of_the_pod_are_set_in_its_namespaces_and_nowhere_else() {
    let scene = Scene::new();
    let mut config = scene.pod("sysctls");
    let asked = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "20000\t30000"),
        ("kernel.msgmax", "4097"),
    ];
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = asked.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let container = scene.obedient(&scene.run_pod(config), "sysctls");
    for (name, value) in asked {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let seen = container.exec(&["cat", &file]).expect("exec runs");
        assert_eq!(seen.stdout.trim(), value, "{name}");
        assert_ne!(fs_err::read_to_string(file).expect("it is there").trim(), value, "{name}");
    }
}

#[test]
fn a_sysctl_that_no_pod_can_have_is_refused_before_anything_is_made() {
    let scene = Scene::new();
    for name in ["kernel.panic", "kernel.shm_next_id", "kernel.hostname", "net/../kernel/panic"] {
        let mut config = scene.pod("refused");
        let linux = config.linux.get_or_insert_default();
        linux.sysctls = [(name.to_owned(), "1".to_owned())].into();
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let message = refused(scene.cri().run_pod_sandbox(request), Code::InvalidArgument);
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn hostname_name_servers_and_shared_memory_are_the_pods() {
    let scene = Scene::new();
    let mut config = scene.pod("its-own-name");
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.0.0.10".to_owned()],
        searches: vec!["svc.example".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let pod = scene.run_pod(config);
    let (one, two) = (scene.obedient(&pod, "one"), scene.obedient(&pod, "two"));
    let seen = one.exec(&["sh", "-c", "hostname; cat /etc/hostname"]).expect("exec runs");
    assert_eq!(seen.stdout, "its-own-name\nits-own-name\n");
    let seen = one.exec(&["cat", "/etc/resolv.conf"]).expect("exec runs");
    for line in ["nameserver 10.0.0.10", "search svc.example", "options ndots:5"] {
        assert!(seen.stdout.lines().any(|found| found == line), "{line} in {seen}");
    }
    one.exec(&["sh", "-c", "echo shared > /dev/shm/file"]).expect("exec runs");
    assert_eq!(two.exec(&["cat", "/dev/shm/file"]).expect("exec runs").stdout, "shared\n");
}

#[test]
fn a_containers_hostname_is_the_same_by_the_kernel_by_file_and_by_variable() {
    let scene = Scene::new();
    let node = fs_err::read_to_string("/proc/sys/kernel/hostname").expect("/proc is mounted");
    for (pod, expected) in
        [(scene.host("host"), node.trim()), (scene.run_pod(scene.pod("own")), "own")]
    {
        let container = scene.obedient(&pod, "named");
        let seen = container.exec(&["sh", "-c", "hostname; cat /etc/hostname; echo $HOSTNAME"]);
        assert_eq!(seen.expect("exec runs").stdout, format!("{expected}\n").repeat(3));
    }
}

#[test]
fn the_loopback_interface_of_a_pod_is_up() {
    let scene = Scene::new();
    let container = scene.obedient(&scene.run_pod(scene.pod("loopback")), "loopback");
    let seen = container.exec(&["ip", "-o", "address", "show", "lo"]).expect("exec runs");
    assert!(seen.stdout.contains("127.0.0.1/8"), "{seen}");
    let seen = container.exec(&["ip", "-o", "link", "show", "lo"]).expect("exec runs");
    assert!(seen.stdout.contains("LOOPBACK,UP"), "{seen}");
}
