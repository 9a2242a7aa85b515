//! Lists with their filters, and statistics.

use std::path::Path;

use cria_proto::*;
use harness::cri::{Container, image_spec};
use harness::registry::Pushed;
use harness::scene::{SOON, Scene};
use harness::{Image, Layer, Node, Registry, until};

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn lists_filter_by_id_prefix_state_label_and_pod() {
    let scene = Scene::new();
    let (one, two) = (scene.host("one"), scene.host("two"));
    let labelled = |name: &str, command: &str, app: &str| {
        let mut config = scene.script(name, command);
        config.labels.insert("app".to_owned(), app.to_owned());
        config
    };
    let runs = one.run(labelled("runs", "sleep 1000", "a"));
    let exited = one.run(labelled("exited", "true", "b"));
    exited.await_exit(SOON);
    let created = two.create(labelled("created", "true", "a")).expect("it is created");

    let list = |filter: ContainerFilter| {
        let request = ListContainersRequest { filter: Some(filter.clone()) };
        let found = scene.cri().list_containers(request).expect("containers are listed").containers;
        let mut ids: Vec<_> = found.into_iter().map(|container| container.id).collect();
        ids.sort();
        let request = StreamContainersRequest { filter: Some(filter) };
        let streamed = scene.cri().stream_containers(request).expect("containers are streamed");
        let mut streamed: Vec<_> = streamed
            .into_iter()
            .flat_map(|part| part.containers)
            .map(|container| container.id)
            .collect();
        streamed.sort();
        assert_eq!(ids, streamed, "the stream says the same");
        ids
    };
    let sorted = |containers: &[&Container]| {
        let mut ids: Vec<_> = containers.iter().map(|container| container.id.clone()).collect();
        ids.sort();
        ids
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let app = |value: &str| [("app".to_owned(), value.to_owned())].into_iter().collect();
    for (filter, expected) in [
        (ContainerFilter::default(), sorted(&[&runs, &exited, &created])),
        (ContainerFilter { id: runs.id.clone(), ..Default::default() }, sorted(&[&runs])),
        (ContainerFilter { id: runs.id[..13].to_owned(), ..Default::default() }, sorted(&[&runs])),
        (ContainerFilter { id: UNKNOWN.to_owned(), ..Default::default() }, vec![]),
        (
            ContainerFilter {
                state: state(ContainerState::ContainerRunning),
                ..Default::default()
            },
            sorted(&[&runs]),
        ),
        (
            ContainerFilter {
                state: state(ContainerState::ContainerCreated),
                ..Default::default()
            },
            sorted(&[&created]),
        ),
        (
            ContainerFilter { label_selector: app("a"), ..Default::default() },
            sorted(&[&runs, &created]),
        ),
        (
            ContainerFilter { pod_sandbox_id: one.id.clone(), ..Default::default() },
            sorted(&[&runs, &exited]),
        ),
        (
            ContainerFilter {
                pod_sandbox_id: one.id.clone(),
                label_selector: app("a"),
                ..Default::default()
            },
            sorted(&[&runs]),
        ),
    ] {
        assert_eq!(list(filter.clone()), expected, "{filter:?}");
    }
}

#[test]
fn stats_carry_attributes_and_true_values() {
    let scene = Scene::new();
    let pod = scene.run_pod(scene.pod("stats"));
    let script = "dd if=/dev/zero of=/written bs=1M count=5; while :; do :; done";
    let container = pod.run(scene.script("stats", script));
    let stats = until("5 MiB are seen in the writable layer", SOON, || {
        let request = ContainerStatsRequest { container_id: container.id.clone() };
        let stats = scene.cri().container_stats(request).ok()?.stats?;
        let written = stats.writable_layer.as_ref()?.used_bytes.as_ref()?.value;
        (written >= 5 << 20).then_some(stats)
    });
    let attributes = stats.attributes.expect("attributes are always there");
    assert_eq!(attributes.metadata.expect("with metadata").name, "stats");
    let layer = stats.writable_layer.expect("seen above");
    let mountpoint = layer.fs_id.expect("it is on a file system").mountpoint;
    assert_eq!(Path::new(&mountpoint), scene.root(), "a path that never vanishes");
    assert!(stats.cpu.expect("it runs").usage_core_nano_seconds.expect("it is known").value > 0);
    assert!(stats.memory.expect("it runs").usage_bytes.expect("it is known").value > 0);

    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = scene.cri().pod_sandbox_stats(request).expect("stats are answered").stats;
    let stats = stats.expect("stats carry stats");
    assert_eq!(stats.attributes.expect("always there").id, pod.id);
    let linux = stats.linux.expect("always there");
    let network = linux.network.expect("a pod on the pod network");
    assert_eq!(network.default_interface.expect("the kubelet reads it").name, "eth0");
    assert!(linux.process.expect("it runs").process_count.expect("it is known").value >= 1);
}

#[test]
fn pods_are_filtered_by_state_and_label_also_their_statistics() {
    let scene = Scene::new();
    let labelled = |name: &str, app: &str| {
        let mut config = scene.host_pod(name);
        config.labels.insert("app".to_owned(), app.to_owned());
        scene.run_pod(config)
    };
    let (one, two, ended) = (labelled("one", "a"), labelled("two", "b"), labelled("ended", "a"));
    let running = scene.obedient(&one, "one");
    let mut config = scene.script("two", "sleep 1000");
    config.labels.insert("app".to_owned(), "b".to_owned());
    let second = two.run(config);
    ended.stop().expect("it stops");

    let app = |value: &str| [("app".to_owned(), value.to_owned())].into_iter().collect();
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let (ready, not_ready) = (PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready);
    for (state, label_selector, expected) in [
        (state(ready), app("a"), vec![&one.id]),
        (state(not_ready), app("a"), vec![&ended.id]),
        (state(not_ready), app("b"), vec![]),
        (None, app("b"), vec![&two.id]),
        (None, app("c"), vec![]),
    ] {
        let filter = PodSandboxFilter { state, label_selector, ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter.clone()) };
        let listed = scene.cri().list_pod_sandbox(request).expect("pods are listed").items;
        let listed: Vec<_> = listed.iter().map(|pod| &pod.id).collect();
        assert_eq!(listed, expected, "{filter:?}");
    }
    for (label_selector, expected) in [(app("a"), vec![&one.id]), (app("c"), vec![])] {
        let filter = PodSandboxStatsFilter { label_selector, ..Default::default() };
        let request = ListPodSandboxStatsRequest { filter: Some(filter) };
        let listed = scene.cri().list_pod_sandbox_stats(request).expect("stats are listed").stats;
        let listed = listed.into_iter().map(|stats| stats.attributes.expect("always there").id);
        assert_eq!(listed.collect::<Vec<_>>(), expected.into_iter().cloned().collect::<Vec<_>>());
    }
    let of_pod = ContainerStatsFilter { pod_sandbox_id: one.id.clone(), ..Default::default() };
    let of_label = ContainerStatsFilter { label_selector: app("b"), ..Default::default() };
    for (filter, expected) in [(of_pod, &running.id), (of_label, &second.id)] {
        let request = ListContainerStatsRequest { filter: Some(filter) };
        let listed = scene.cri().list_container_stats(request).expect("stats are listed").stats;
        let listed: Vec<_> = listed.into_iter().map(|stats| id(&stats.attributes)).collect();
        assert_eq!(listed, [expected.as_str()]);
    }
}

#[test]
fn images_are_filtered_by_name() {
    let scene = Scene::new();
    let other = push_other(&scene);
    for (name, expected) in [
        (scene.busybox.reference.as_str(), vec![&scene.busybox.id]),
        (&scene.busybox.id, vec![&scene.busybox.id]),
        (&other.by_digest, vec![&other.id]),
        ("example.com/no/such:1", vec![]),
    ] {
        let filter = Some(ImageFilter { image: Some(image_spec(name)) });
        let request = ListImagesRequest { filter };
        let listed = scene.cri().list_images(request).expect("images are listed").images;
        assert_eq!(listed.iter().map(|image| &image.id).collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn what_does_not_run_has_statistics_with_attributes_and_the_same_after_a_restart() {
    let mut scene = Scene::new();
    let (pod, stopped) = (scene.run_pod(scene.pod("pod")), scene.run_pod(scene.pod("stopped")));
    let created = pod.create(scene.script("created", "true")).expect("it is created");
    let exited = pod.run(scene.script("exited", "true"));
    exited.await_exit(SOON);
    let running = scene.obedient(&pod, "running");
    stopped.stop().expect("it stops");
    let check = |scene: &Scene| {
        for (container, name) in [(&created, "created"), (&exited, "exited"), (&running, "running")]
        {
            let request = ContainerStatsRequest { container_id: container.id.clone() };
            let stats = scene.cri().container_stats(request).expect("stats are answered").stats;
            let attributes = stats.expect("stats carry stats").attributes.expect("always there");
            assert_eq!(attributes.id, container.id);
            assert_eq!(attributes.metadata.expect("with metadata").name, name);
        }
        for (pod, name) in [(&pod, "pod"), (&stopped, "stopped")] {
            let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
            let stats = scene.cri().pod_sandbox_stats(request).expect("stats are answered").stats;
            let stats = stats.expect("stats carry stats");
            let attributes = stats.attributes.expect("always there");
            assert_eq!(attributes.metadata.expect("with metadata").name, name);
            let linux = stats.linux.expect("always there");
            let network = linux.network.map(|network| network.default_interface.is_some());
            assert_eq!(network, (name == "pod").then_some(true), "{name}");
        }
    };
    check(&scene);
    scene.kill9();
    scene.resume();
    check(&scene);
}

#[test]
fn the_kubelet_learns_the_handlers_and_the_cgroup_driver() {
    for driver in ["cgroupfs", "systemd"] {
        // Nothing is run, so systemd need not be there; a trial container would need it.
        let registry = Registry::start();
        let node = Node::setup().registry(&registry);
        let node = match driver {
            "systemd" if !systemd_runs() => continue,
            _ => node.argument("--cgroup-driver").argument(driver).start(),
        };
        let told = node.cri().runtime_config(RuntimeConfigRequest::default());
        let told = told.expect("it is answered").linux.expect("always set").cgroup_driver();
        assert_eq!(told.as_str_name().to_lowercase(), driver);
        let config = RuntimeConfig {
            network_config: Some(NetworkConfig { pod_cidr: "10.1.0.0/24".to_owned() }),
        };
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(config) };
        node.cri().update_runtime_config(request).expect("it has nothing to refuse");
        let status = node.cri().status(StatusRequest::default()).expect("it is answered");
        let handlers: Vec<_> = status.runtime_handlers;
        let (unnamed, named): (Vec<_>, Vec<_>) =
            handlers.into_iter().partition(|handler| handler.name.is_empty());
        assert_eq!((unnamed.len(), named.len()), (1, 1), "the default, and by its name");
        assert_eq!(unnamed[0].features, named[0].features);
    }
}

fn systemd_runs() -> bool {
    fs_err::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "systemd")
}

fn push_other(scene: &Scene) -> Pushed {
    let layer = Layer::new().file("other", 0o644, "other");
    let pushed = scene.registry.push("other:1", &Image::new().layer(layer));
    scene.cri().pull(&pushed.reference);
    pushed
}

#[test]
fn every_streamed_list_says_the_same_as_the_list() {
    let scene = Scene::new();
    let cri = scene.cri();
    let (one, two) = (scene.host("one"), scene.run_pod(scene.pod("two")));
    one.run(scene.script("exited", "exit 4")).await_exit(SOON);
    two.stop().expect("it stops");
    let ready = scene.run_pod(scene.pod("ready"));
    scene.obedient(&one, "runs");
    scene.obedient(&ready, "runs");

    let filter = |id: &str| Some(PodSandboxFilter { id: id.to_owned(), ..Default::default() });
    for (filter, count) in [(None, 3), (filter(&two.id[..10]), 1), (filter(UNKNOWN), 0)] {
        let request = ListPodSandboxRequest { filter: filter.clone() };
        let listed = cri.list_pod_sandbox(request).expect("pods are listed").items;
        let request = StreamPodSandboxesRequest { filter };
        let streamed = cri.stream_pod_sandboxes(request).expect("pods are streamed");
        let streamed = streamed.into_iter().flat_map(|part| part.pod_sandboxes).collect();
        assert_eq!(listed.len(), count);
        assert_eq!(by(listed, |pod| pod.id.clone()), by(streamed, |pod| pod.id.clone()));
    }

    let listed = cri.list_containers(ListContainersRequest::default());
    let listed = listed.expect("containers are listed").containers;
    let streamed = cri.stream_containers(StreamContainersRequest::default());
    let streamed = streamed.expect("they are streamed").into_iter();
    let streamed = streamed.flat_map(|part| part.containers).collect();
    assert_eq!(listed.len(), 3);
    assert_eq!(by(listed, |item| item.id.clone()), by(streamed, |item| item.id.clone()));

    let listed = cri.list_images(ListImagesRequest::default()).expect("images are listed").images;
    let streamed = cri.stream_images(StreamImagesRequest::default()).expect("they are streamed");
    let streamed = streamed.into_iter().flat_map(|part| part.images).collect();
    assert_eq!(listed.len(), 1);
    assert_eq!(by(listed, |item| item.id.clone()), by(streamed, |item| item.id.clone()));
}

#[test]
fn streamed_statistics_are_of_the_same_containers_and_pods_as_the_lists() {
    let scene = Scene::new();
    let cri = scene.cri();
    let (host, pod) = (scene.host("host"), scene.run_pod(scene.pod("pod")));
    let (first, second) = (scene.obedient(&host, "runs"), scene.obedient(&pod, "runs"));

    let filter = |container: &Container| {
        Some(ContainerStatsFilter { id: container.id.clone(), ..Default::default() })
    };
    for (filter, count) in [(None, 2), (filter(&first), 1), (filter(&second), 1)] {
        let request = ListContainerStatsRequest { filter: filter.clone() };
        let listed = cri.list_container_stats(request).expect("stats are listed").stats;
        let request = StreamContainerStatsRequest { filter };
        let streamed = cri.stream_container_stats(request).expect("stats are streamed");
        let streamed = streamed.into_iter().flat_map(|part| part.container_stats);
        let streamed: Vec<_> = streamed.collect();
        // The values go on while we look; what is told at all does not.
        assert_eq!(listed.len(), count);
        assert!(streamed.iter().all(|stats| stats.cpu.is_some() && stats.memory.is_some()));
        assert_eq!(
            by(listed.into_iter().map(|stats| stats.attributes).collect(), id),
            by(streamed.into_iter().map(|stats| stats.attributes).collect(), id),
        );
    }

    let listed = cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default());
    let listed = listed.expect("stats are listed").stats;
    let streamed = cri.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default());
    let streamed = streamed.expect("stats are streamed").into_iter();
    let streamed: Vec<_> = streamed.flat_map(|part| part.pod_sandbox_stats).collect();
    assert_eq!((listed.len(), streamed.len()), (2, 2));
    for stats in listed.iter().chain(&streamed) {
        let linux = stats.linux.as_ref().expect("always there");
        assert_eq!(linux.containers.len(), 1);
        let attributes = stats.attributes.as_ref().expect("always there");
        assert_eq!(linux.network.is_some(), attributes.id == pod.id);
    }
    let pod_id =
        |stats: &PodSandboxStats| stats.attributes.as_ref().expect("always there").id.clone();
    let ids =
        |stats: Vec<PodSandboxStats>| -> Vec<_> { by(stats, pod_id).iter().map(pod_id).collect() };
    assert_eq!(ids(listed), ids(streamed));
}

fn id(attributes: &Option<ContainerAttributes>) -> String {
    attributes.as_ref().expect("attributes are always there").id.clone()
}

/// In an order that both answers have.
fn by<T>(mut items: Vec<T>, key: impl Fn(&T) -> String) -> Vec<T> {
    items.sort_by_key(key);
    items
}
