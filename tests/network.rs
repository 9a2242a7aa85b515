//! The pod network as cria drives it, with a CNI plugin that is a script: retries, failures, and
//! what is deleted when.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::thread;

use cria_proto::*;
use harness::Cri;
use harness::cri::Container;
use harness::scene::{SOON, Scene, refused};
use harness::scripts::CNI_RESULT;
use harness::{until, wait::within};
use serde_json::json;
use tonic::{Code, Status};

/// Waits in ADD until the flag `go` is there.
const SLOW: &str = "[ $CNI_COMMAND = DEL ] && exit; touch $NODE/adding; while [ ! -e $NODE/go ]; do sleep 0.05; done";

fn run(cri: &Cri, config: &PodSandboxConfig) -> Result<String, Status> {
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    cri.run_pod_sandbox(request).map(|answer| answer.pod_sandbox_id)
}

fn pods(scene: &Scene) -> Vec<PodSandbox> {
    let answer = scene.cri().list_pod_sandbox(ListPodSandboxRequest::default());
    answer.expect("pods are listed").items
}

#[test]
fn a_retry_of_run_pod_sandbox_attaches_to_the_first_and_gets_the_same_pod() {
    let mut scene = Scene::new();
    scene.cni_script(&format!("{SLOW}\n{CNI_RESULT}"));
    let config = scene.pod("slow");
    thread::scope(|scope| {
        let call = || scope.spawn(|| run(scene.cri(), &config));
        let first = call();
        until("the plugin runs", SOON, || scene.has_flag("adding").then_some(()));
        let retries = [call(), call()];
        assert!(pods(&scene).is_empty(), "a pod is listed when it is complete");
        let calls = scene.cni_calls();
        let pod_sandbox_id = calls[0].strip_prefix("ADD ").expect("it is attached").to_owned();
        let status =
            PodSandboxStatusRequest { pod_sandbox_id: pod_sandbox_id.clone(), verbose: false };
        refused(scene.cri().pod_sandbox_status(status), Code::NotFound);
        let stats = PodSandboxStatsRequest { pod_sandbox_id };
        refused(scene.cri().pod_sandbox_stats(stats), Code::NotFound);
        let stats = scene.cri().list_pod_sandbox_stats(ListPodSandboxStatsRequest::default());
        assert!(stats.expect("stats are listed").stats.is_empty());
        scene.flag("go");
        let first = first.join().expect("no panic").expect("it runs");
        for retry in retries {
            assert_eq!(retry.join().expect("no panic").expect("it attaches"), first);
        }
        assert_eq!(run(scene.cri(), &config).expect("it is there"), first, "also when it is done");
    });
    assert_eq!(pods(&scene).len(), 1);
    assert_eq!(scene.cni_calls().iter().filter(|call| call.starts_with("ADD ")).count(), 1);
    scene.assert_nothing_left();
}

#[test]
fn a_pod_whose_caller_gave_up_is_made_nevertheless() {
    let mut scene = Scene::new();
    scene.cni_script(&format!("{SLOW}\n{CNI_RESULT}"));
    let config = scene.pod("patient");
    let mut client = scene.cri().runtime_service();
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let call =
        harness::blocking::runtime().spawn(async move { client.run_pod_sandbox(request).await });
    until("the plugin runs", SOON, || scene.has_flag("adding").then_some(()));
    call.abort();
    scene.flag("go");
    let pod = until("the pod is listed", SOON, || pods(&scene).pop());
    assert_eq!(run(scene.cri(), &config).expect("it is there"), pod.id);
    scene.assert_nothing_left();
}

#[test]
fn a_pod_that_has_ended_is_not_given_to_who_asks_for_the_same_name() {
    let scene = Scene::new();
    let config = scene.host_pod("name");
    let pod = scene.run_pod(config.clone());
    pod.stop().expect("it stops");
    let message = refused(run(scene.cri(), &config), Code::AlreadyExists);
    assert!(message.contains(&pod.id), "it names the one that has it: {message}");
    let mut next = config;
    next.metadata.get_or_insert_default().attempt = 1;
    run(scene.cri(), &next).expect("the next attempt is another name");
}

#[test]
fn a_plugin_that_fails_is_quoted_and_leaves_nothing() {
    let mut scene = Scene::new();
    scene.cni_script(
        r#"[ $CNI_COMMAND = DEL ] && exit; echo '{"cniVersion": "1.0.0", "code": 107, "msg": "no addresses left"}'; exit 1"#,
    );
    let message = refused(run(scene.cri(), &scene.pod("fails")), Code::Internal);
    assert!(message.contains("no addresses left"), "{message}");
    assert!(pods(&scene).is_empty());
    scene.assert_clean();
    assert_eq!(scene.cni_calls().len(), 2, "a failed ADD is followed by DEL");
}

#[test]
fn a_plugin_that_prints_garbage_is_refused_and_leaves_nothing() {
    let mut scene = Scene::new();
    for garbage in ["echo '<html>'", "echo '{\"ips\": 5}'", "true", "head -c 100000000 /dev/zero"] {
        scene.cni_script(&format!("[ $CNI_COMMAND = DEL ] && exit; {garbage}"));
        let message = refused(run(scene.cri(), &scene.pod("garbage")), Code::Internal);
        assert!(message.contains("scripted"), "it names the plugin or network: {message}");
        assert!(message.len() < 8192, "and does not repeat all of it");
        scene.assert_clean();
    }
}

#[test]
fn a_failing_delete_is_returned_each_time_until_it_succeeds() {
    let mut scene = Scene::new();
    scene.cni_script(&format!(
        r#"if [ $CNI_COMMAND = DEL ]; then
    [ -e $NODE/healed ] && exit
    echo '{{"cniVersion": "1.0.0", "code": 11, "msg": "agent is down"}}'; exit 1
fi
{CNI_RESULT}"#
    ));
    let pod = scene.run_pod(scene.pod("stuck"));
    for _ in 0..2 {
        let message = refused(pod.stop(), Code::Internal);
        assert!(message.contains("agent is down"), "{message}");
        assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready, "from the first call");
    }
    scene.kill9();
    scene.resume();
    refused(pod.stop(), Code::Internal);
    scene.flag("healed");
    pod.stop().expect("it succeeds at last");
    pod.remove().expect("it is removed");
    scene.assert_clean();
}

#[test]
fn a_plugin_that_hangs_is_ended_when_its_time_is_over() {
    let mut scene = Scene::with(|setup| setup.config("[network]\ncni-timeout = '2s'\n"));
    scene.cni_script("[ $CNI_COMMAND = DEL ] && exit; exec sleep 100000");
    let message = refused(run(scene.cri(), &scene.pod("hangs")), Code::Internal);
    assert!(message.contains("scripted"), "{message}");
    scene.assert_clean();
}

#[test]
fn the_network_is_ready_when_there_is_a_configuration() {
    let scene = Scene::new();
    let ready = || {
        let status = scene.cri().status(StatusRequest::default()).expect("status is answered");
        let conditions = status.status.expect("a status").conditions;
        let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
        network.expect("the kubelet reads it")
    };
    assert!(ready().status);
    let file = scene.cni_conf_dir().join("10-test.conflist");
    let text = fs_err::read(&file).expect("own folder");
    fs_err::remove_file(&file).expect("own folder");
    until("it is seen that it is gone", SOON, || (!ready().status).then_some(()));
    assert!(!ready().message.is_empty(), "it says why");
    fs_err::write(&file, text).expect("own folder");
    assert!(within(SOON, || ready().status.then_some(())).is_some(), "it is seen that it is back");
}

#[test]
fn a_port_mapping_reaches_the_pod_and_goes_with_it() {
    let mut scene = Scene::new();
    let mut config = scene.pod("port");
    let port = PortMapping { container_port: 8080, host_port: 48080, ..Default::default() };
    config.port_mappings.push(port);
    let pod = scene.run_pod(config);
    let script = "mkdir /www; echo here > /www/index.html; httpd -f -p 8080 -h /www";
    pod.run(scene.script("web", script));
    // From the host's side, where the kubelet's users are. Port mappings are for other addresses
    // than 127.0.0.1, which needs route_localnet.
    let address = format!("{}.1:48080", scene.place().subnet());
    until("the page is there", SOON, || {
        fetch(&address).is_ok_and(|page| page.ends_with("\r\n\r\nhere\n")).then_some(())
    });
    scene.assert_nothing_left();
}

#[test]
fn port_mappings_differ_by_protocol_and_by_the_hosts_address() {
    let mut scene = Scene::new();
    let mut config = scene.pod("ports");
    let gateway = format!("{}.1", scene.place().subnet());
    let mapping = |protocol: Protocol, container_port, host_ip: &str| PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port: 48081,
        host_ip: host_ip.to_owned(),
    };
    config.port_mappings = vec![
        mapping(Protocol::Udp, 5353, ""),
        mapping(Protocol::Tcp, 8081, &gateway),
        // Without a port of the host there is nothing to map.
        PortMapping { container_port: 9090, ..Default::default() },
    ];
    let pod = scene.run_pod(config);
    let member = scene.obedient(&pod, "member");
    pod.run(scene.script("tcp", "mkdir /www; echo > /www/index.html; httpd -f -p 8081 -h /www"));
    let address = format!("{gateway}:48081");
    until("the page is there", SOON, || fetch(&address).is_ok().then_some(()));
    let socket = UdpSocket::bind((gateway.as_str(), 0)).expect("the bridge has this address");
    let before = strays(&member);
    until("a datagram arrives", SOON, || {
        socket.send_to(b"here", &address).expect("it is sent");
        (strays(&member) > before).then_some(())
    });
    let elsewhere = fetch(&format!("{}:48081", pod.ip()));
    assert!(elsewhere.is_err(), "the port is the host's, at that address");
    scene.assert_nothing_left();
}

#[test]
fn a_pods_traffic_is_limited_as_its_annotations_say_and_the_limits_go_with_it() {
    let mut scene = Scene::new();
    let file = scene.cni_conf_dir().join("10-test.conflist");
    let text = fs_err::read(&file).expect("own folder");
    let mut list: serde_json::Value = serde_json::from_slice(&text).expect("our own JSON");
    let plugins = list["plugins"].as_array_mut().expect("a list");
    plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
    fs_err::write(&file, list.to_string()).expect("own folder");

    let before = interfaces();
    let pod = scene.run_pod(scene.pod("unlimited"));
    assert!(!limits(&before).contains("tbf"), "nothing was asked for");
    pod.remove().expect("it is removed");

    let before = interfaces();
    let mut config = scene.pod("limited");
    for (key, rate) in [("ingress", "8M"), ("egress", "16M")] {
        config.annotations.insert(format!("kubernetes.io/{key}-bandwidth"), rate.to_owned());
    }
    scene.run_pod(config);
    let limits = limits(&before);
    // Into the pod on its end of the bridge; out of it on a device that its packets come through.
    for expected in ["tbf 1: root", "rate 8Mbit", "rate 16Mbit", "ingress"] {
        assert!(limits.contains(expected), "{expected} in {limits}");
    }
    scene.assert_nothing_left();
    let left: Vec<_> = interfaces().difference(&before).cloned().collect();
    assert!(left.iter().all(|name| !name.starts_with("bwp")), "{left:?}");
}

#[test]
fn an_annotation_that_is_no_bandwidth_is_refused_by_its_name() {
    let mut scene = Scene::new();
    let mut config = scene.pod("fast");
    let key = "kubernetes.io/egress-bandwidth";
    config.annotations.insert(key.to_owned(), "very fast".to_owned());
    let message = refused(run(scene.cri(), &config), Code::InvalidArgument);
    assert!(message.contains(key), "{message}");
    scene.assert_clean();
}

/// How many datagrams have come to ports of the pod where nobody listens.
fn strays(member: &Container) -> u64 {
    let table = member.exec(&["grep", "^Udp:", "/proc/net/snmp"]).expect("exec runs").stdout;
    let mut rows = table.lines().map(|line| line.split_whitespace());
    let (Some(names), Some(values)) = (rows.next(), rows.next()) else { panic!("{table}") };
    let mut all = names.zip(values);
    let (_, count) = all.find(|(name, _)| *name == "NoPorts").expect("the kernel counts them");
    count.parse().expect("a number")
}

fn interfaces() -> BTreeSet<String> {
    let all = fs_err::read_dir("/sys/class/net").expect("sysfs is mounted").flatten();
    all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The queueing disciplines of the interfaces that are new since `before`.
fn limits(before: &BTreeSet<String>) -> String {
    let new = interfaces();
    let new = new
        .difference(before)
        .filter(|name| ["veth", "bwp"].iter().any(|prefix| name.starts_with(prefix)));
    let show = |name: &String| {
        let output = Command::new("tc").args(["qdisc", "show", "dev", name]).output();
        let output = output.expect("iproute2 is installed (make setup)");
        format!("{name}: {}\n", String::from_utf8_lossy(&output.stdout))
    };
    new.map(show).collect()
}

/// What an HTTP server at `address` answers, head and all.
fn fetch(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
