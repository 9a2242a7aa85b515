//! The pod network as cria drives it, with a CNI plugin that is a script: retries, failures, and
//! what is deleted when.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;

use cria_proto::*;
use harness::Cri;
use harness::scene::{SOON, Scene, refused};
use harness::scripts::CNI_RESULT;
use harness::{until, wait::within};
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

/// What an HTTP server at `address` answers, head and all.
fn fetch(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
