//! What the other tests stand on, held against a runtime that is not ours: the images are ones
//! that containerd takes, the registry asks for passwords, and a node is gone when it is dropped.

use std::time::Duration;

use cria_proto::{AuthConfig, ImageStatusRequest, PullImageRequest};
use harness::busybox::{busybox, busybox_layer};
use harness::cri::{container_config, image_spec};
use harness::critest_images::push_pause;
use harness::image::this_platform;
use harness::registry::{ALICE, BOB};
use harness::{Compression, Containerd, Format, Image, Index, Layer, Registry, leftovers, tools};
use serde_json::json;

const SHORT: Duration = Duration::from_secs(30);

#[test]
fn images_of_every_format_and_compression_are_pulled_and_run() {
    let registry = Registry::start();
    push_pause(&registry);
    let node = Containerd::start(&tools::tool("runc"), &registry, &["registry.k8s.io"]);
    let pod = node.cri().run_pod(node.host_pod("formats"));

    for format in [Format::Oci, Format::Docker] {
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let name = format!("{format:?}-{compression:?}").to_lowercase();
            let top = Layer::new().file("told", 0o644, &name).whiteout("etc/group");
            let image = busybox().layer(top).compression(compression).format(format);
            let pushed = registry.push(&format!("formats/{name}:1"), &image);
            assert_eq!(node.cri().pull(&pushed.reference), pushed.id, "{name}");

            let command = ["sh", "-c", "cat /told; ls -di /bin/ls /bin/busybox; ls /etc"];
            let container = pod.run(container_config(&name, &pushed.id, &command));
            assert_eq!(container.await_exit(SHORT).exit_code, 0, "{name}");
            let written = container.written("stdout");
            let lines: Vec<_> = written.lines().collect();
            assert!(lines[0].starts_with(&name), "{written}");
            assert_eq!(inode(&lines[0][name.len()..]), inode(lines[1]), "hard links: {written}");
            assert!(written.contains("passwd") && !written.contains("group"), "{written}");
        }
    }
}

#[test]
fn an_index_leads_to_the_image_of_this_machine() {
    let registry = Registry::start();
    push_pause(&registry);
    let node = Containerd::start(&tools::tool("runc"), &registry, &["registry.k8s.io"]);
    for format in [Format::Oci, Format::Docker] {
        let ours = busybox().format(format);
        let other = ours.clone().platform("s390x", "linux");
        let index = Index::new()
            .format(format)
            .entry(other, json!({ "architecture": "s390x", "os": "linux" }))
            .entry(ours.clone(), this_platform());
        let name = format!("index/{format:?}:1").to_lowercase();
        let pushed = registry.push_index(&name, &index);
        assert_eq!(node.cri().pull(&pushed.reference), ours.pack().id, "{format:?}");
        assert_eq!(node.cri().pull(&pushed.by_digest), ours.pack().id, "{format:?}");
    }
}

#[test]
fn a_private_registry_lets_only_its_users_in() {
    let registry = Registry::start_private();
    let pushed = registry.push("secret:1", &busybox());
    // The pause image could not be pulled; no pod is run here.
    let node = Containerd::start(&tools::tool("runc"), &registry, &[]);
    let pull = |(username, password): (&str, &str)| {
        node.cri().pull_image(PullImageRequest {
            image: Some(image_spec(&pushed.reference)),
            auth: Some(AuthConfig {
                username: username.to_owned(),
                password: password.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    assert!(pull(("", "")).is_err());
    assert!(pull((ALICE.0, BOB.1)).is_err());
    for user in [ALICE, BOB] {
        assert_eq!(pull(user).expect("a user's password").image_ref, pushed.id);
    }
    let requests = registry.requests();
    assert!(
        requests.iter().any(|line| line.ends_with("/v2/secret/manifests/1 401")),
        "{requests:?}"
    );
}

#[test]
fn a_registry_that_was_down_comes_back_with_what_it_held() {
    let mut registry = Registry::start();
    let pushed = registry.push("again:1", &busybox());
    let address = registry.address().to_owned();
    let node = Containerd::start(&tools::tool("runc"), &registry, &[]);
    let pull = || {
        node.cri().pull_image(PullImageRequest {
            image: Some(image_spec(&pushed.reference)),
            ..Default::default()
        })
    };
    registry.stop();
    assert!(pull().is_err());
    registry.resume();
    assert_eq!(registry.address(), address);
    assert_eq!(pull().expect("the registry is back").image_ref, pushed.id);
}

#[test]
fn the_image_configuration_arrives() {
    let registry = Registry::start();
    push_pause(&registry);
    let image = Image::new()
        .layer(busybox_layer())
        .env(&["PATH=/bin", "TOLD=by image"])
        .entrypoint(&["sh", "-c", "echo $TOLD $0 $(id -u) $(pwd)"])
        .cmd(&["argument"])
        .user("default-user")
        .working_dir("/tmp")
        .label("of", "image");
    let pushed = registry.push("configured:1", &image);
    let node = Containerd::start(&tools::tool("runc"), &registry, &["registry.k8s.io"]);
    node.cri().pull(&pushed.reference);

    let request =
        ImageStatusRequest { image: Some(image_spec(&pushed.reference)), ..Default::default() };
    let status = node.cri().image_status(request).expect("it was pulled").image;
    assert_eq!(status.expect("it was pulled").username, "default-user");
    let pod = node.cri().run_pod(node.host_pod("configured"));
    let container = pod.run(container_config("main", &pushed.reference, &[]));
    container.await_exit(SHORT);
    assert_eq!(container.written("stdout"), "by image argument 1000 /tmp\n");
}

#[test]
fn a_node_on_the_pod_network_leaves_nothing() {
    let registry = Registry::start();
    push_pause(&registry);
    let pushed = registry.push("busybox:1", &busybox());
    let node = Containerd::start(&tools::tool("runc"), &registry, &["registry.k8s.io"]);
    node.cri().pull(&pushed.reference);
    let pod = node.cri().run_pod(node.pod("networked"));
    assert!(pod.ip().starts_with(&node.place().subnet()), "{}", pod.ip());
    let container = pod.run(container_config("main", &pushed.id, &["sleep", "1000"]));
    let output = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
    let output = output.expect("the container runs");
    assert_eq!(output.to_string(), r#"exit code 3, "out\n", "err\n""#);

    // While it runs, every kind of trace is seen ...
    let seen = leftovers::list(node.place(), Some(node.pid()), &[]);
    for kind in ["process", "mount", "cgroup", "address", "interface", "iptables"] {
        assert!(seen.iter().any(|line| line.starts_with(kind)), "no {kind} in {seen:#?}");
    }
    // ... and none once it is removed.
    pod.stop().expect("stop");
    pod.remove().expect("remove");
    let left =
        leftovers::await_none(SHORT, || leftovers::list(node.place(), Some(node.pid()), &[]));
    assert!(left.is_empty(), "{left:#?}");
}

/// The first number of a line of `ls -i`.
fn inode(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or("")
}
