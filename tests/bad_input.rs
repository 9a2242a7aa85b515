//! What comes wrong from outside: each case has its code and message, and leaves nothing behind.

use cria_proto::*;
use harness::cri::{container_config, image_spec};
use harness::node::monitors;
use harness::scene::{OBEDIENT, SOON, Scene, push_busybox, refused};
use harness::{Image, Layer, Node, Registry, until};
use tonic::{Code, Status};

/// What the message is to name, and how the request is spoilt.
type Spoil<T> = (&'static str, fn(&mut T));

fn run(node: &Node, config: PodSandboxConfig) -> Result<String, Status> {
    let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
    node.cri().run_pod_sandbox(request).map(|answer| answer.pod_sandbox_id)
}

fn pull(node: &Node, image: &str) -> Result<String, Status> {
    let request = PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
    node.cri().pull_image(request).map(|answer| answer.image_ref)
}

fn no_images(node: &Node) {
    let images = node.cri().list_images(ListImagesRequest::default()).expect("images are listed");
    assert!(images.images.is_empty(), "{:#?}", images.images);
}

#[test]
fn a_pod_without_metadata_is_refused() {
    let mut scene = Scene::new();
    let nothing = RunPodSandboxRequest::default();
    refused(scene.cri().run_pod_sandbox(nothing), Code::InvalidArgument);
    let spoil: [Spoil<PodSandboxMetadata>; 3] = [
        ("name", |metadata| metadata.name.clear()),
        ("namespace", |metadata| metadata.namespace.clear()),
        ("uid", |metadata| metadata.uid.clear()),
    ];
    for (field, spoil) in spoil {
        let mut config = scene.host_pod("bad");
        spoil(config.metadata.get_or_insert_default());
        let message = refused(run(&scene.node, config), Code::InvalidArgument);
        assert!(message.contains(field), "{field}: {message}");
    }
    let mut config = scene.host_pod("bad");
    config.metadata = None;
    let message = refused(run(&scene.node, config), Code::InvalidArgument);
    assert!(message.contains("metadata"), "{message}");
    scene.assert_clean();
}

#[test]
fn a_container_that_asks_for_nonsense_is_refused() {
    let mut scene = Scene::new();
    let pod = scene.host("nonsense");
    let spoil: [Spoil<ContainerConfig>; 6] = [
        ("metadata", |config| config.metadata = None),
        ("image", |config| config.image = None),
        ("log", |config| config.log_path = "../../escape.log".to_owned()),
        ("mount", |config| {
            let relative = Mount {
                container_path: "relative".to_owned(),
                host_path: "/tmp".to_owned(),
                ..Default::default()
            };
            config.mounts.push(relative);
        }),
        // The OCI runtime's spec is JSON, which has no place for it.
        ("envs[\"raw\"]", |config| {
            config.envs.push(KeyValue { key: "RAW".to_owned(), value: vec![b'a', 0xff] });
        }),
        ("capabilit", |config| {
            let linux = config.linux.get_or_insert_default();
            let security = linux.security_context.get_or_insert_default();
            let capabilities = security.capabilities.get_or_insert_default();
            capabilities.add_capabilities.push("NO_SUCH_THING".to_owned());
        }),
    ];
    for (field, spoil) in spoil {
        let mut config = scene.container("nonsense", &OBEDIENT);
        spoil(&mut config);
        let message = refused(pod.create(config), Code::InvalidArgument);
        assert!(message.to_lowercase().contains(field), "{field}: {message}");
    }
    let containers = scene.cri().list_containers(ListContainersRequest::default());
    assert!(containers.expect("containers are listed").containers.is_empty());
    scene.assert_nothing_left();
}

#[test]
fn a_mode_that_a_namespace_cannot_have_is_refused() {
    let mut scene = Scene::new();
    let pod = scene.host("modes");
    let spoil: [Spoil<NamespaceOption>; 4] = [
        ("network", |options| options.network = NamespaceMode::Container.into()),
        ("network", |options| options.network = NamespaceMode::Target.into()),
        ("ipc", |options| options.ipc = NamespaceMode::Container.into()),
        ("ipc", |options| options.ipc = NamespaceMode::Target.into()),
    ];
    for (field, spoil) in spoil {
        let mut of_pod = scene.host_pod("refused");
        let linux = of_pod.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        spoil(security.namespace_options.get_or_insert_default());
        let message = refused(run(&scene.node, of_pod), Code::InvalidArgument);
        assert!(message.contains(field), "{field}: {message}");

        let mut of_container = scene.container("refused", &OBEDIENT);
        let linux = of_container.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        spoil(security.namespace_options.get_or_insert_default());
        let message = refused(pod.create(of_container), Code::InvalidArgument);
        assert!(message.contains(field), "{field}: {message}");
    }
    scene.assert_nothing_left();
}

#[test]
fn a_container_in_a_pod_that_is_not_there_or_not_ready_is_refused() {
    let scene = Scene::new();
    let pod = scene.host("gone");
    pod.stop().expect("it stops");
    refused(pod.create(scene.container("late", &OBEDIENT)), Code::FailedPrecondition);
    pod.remove().expect("it is removed");
    refused(pod.create(scene.container("late", &OBEDIENT)), Code::NotFound);
}

#[test]
fn a_name_that_is_taken_gives_the_same_container_while_it_is_usable() {
    let scene = Scene::new();
    let pod = scene.host("names");
    let first = pod.create(scene.container("name", &OBEDIENT)).expect("it is created");
    let again = pod.create(scene.container("name", &OBEDIENT)).expect("the same is asked again");
    assert_eq!(first.id, again.id);
    first.start().expect("it starts");
    first.await_log("ready", SOON);
    let again = pod.create(scene.container("name", &OBEDIENT)).expect("the same is asked again");
    assert_eq!(first.id, again.id);
    first.stop(SOON).expect("it stops");
    let message = refused(pod.create(scene.container("name", &OBEDIENT)), Code::AlreadyExists);
    assert!(message.contains(&first.id), "{message}");
    let mut next = scene.container("name", &OBEDIENT);
    next.metadata.get_or_insert_default().attempt = 1;
    pod.create(next).expect("the next attempt is another name");
}

#[test]
fn an_image_that_does_not_exist_is_not_found() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "there:1");
    let mut node = Node::start(&registry);
    for missing in ["there:2", "not/there:1"] {
        let name = registry.reference(missing);
        let message = refused(pull(&node, &name), Code::NotFound);
        assert!(message.contains(&name), "{message}");
    }
    let digest = image.by_digest.replace(&image.digest[7..17], "0123456789");
    refused(pull(&node, &digest), Code::NotFound);
    for wrong in ["", "lower/UPPER", "a b", "x@sha256:12", "http://x/y"] {
        refused(pull(&node, wrong), Code::InvalidArgument);
    }
    no_images(&node);
    node.assert_clean();
}

#[test]
fn a_registry_that_is_down_is_unavailable_by_the_name_the_kubelet_knows() {
    let mut registry = Registry::start();
    let image = push_busybox(&registry, "down:1");
    registry.stop();
    let mut node = Node::start(&registry);
    let message = refused(pull(&node, &image.reference), Code::Unknown);
    assert!(message.starts_with("RegistryUnavailable"), "{message}");
    assert!(message.contains(registry.address()), "{message}");
    node.assert_clean();
    registry.resume();
    assert_eq!(pull(&node, &image.reference).expect("it is up again"), image.id);
}

#[test]
fn bytes_that_do_not_match_their_digest_are_refused_and_not_kept() {
    let registry = Registry::start();
    let mut node = Node::start(&registry);
    let layer = Layer::new().file("content", 0o644, "as it was pushed");
    let packed = Image::new().layer(layer).pack();
    for (number, digest) in [packed.layers[0].digest.clone(), packed.id.clone()].iter().enumerate()
    {
        let image = registry.push_packed(&format!("spoilt{number}"), &packed, "1");
        let file = registry.blob_file(digest);
        let mut bytes = fs_err::read(&file).expect("the registry has it");
        let original = bytes.clone();
        // The same length: only the hash can tell.
        bytes[original.len() / 2] ^= 1;
        fs_err::write(&file, bytes).expect("own registry");
        let message = refused(pull(&node, &image.reference), Code::Internal);
        assert!(message.contains(digest), "it names what it wanted: {message}");
        no_images(&node);
        fs_err::write(&file, original).expect("own registry");
        pull(&node, &image.reference).expect("and takes the true bytes afterwards");
        let remove = RemoveImageRequest { image: Some(image_spec(&image.reference)) };
        node.cri().remove_image(remove).expect("it is removed");
    }
    node.assert_nothing_left(SOON);
}

#[test]
fn a_layer_that_points_outside_its_root_writes_nothing_there() {
    let registry = Registry::start();
    let mut node = Node::start(&registry);
    let outside = node.place().folder().join("outside");
    let path = outside.display().to_string();
    let up = format!("../../../../../../../../..{path}");
    let header = || {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header
    };
    for (name, layer) in [
        ("dots", Layer::new().entry(header(), &up, "", b"escaped")),
        ("absolute", Layer::new().entry(header(), &path, "", b"escaped")),
        (
            "link",
            Layer::new().symlink("link", node.place().folder().to_str().expect("plain")).file(
                "link/outside",
                0o644,
                "escaped",
            ),
        ),
        ("hard-link", Layer::new().hard_link("hard", &up).file("hard", 0o644, "escaped")),
    ] {
        let image = registry.push(&format!("{name}:1"), &Image::new().layer(layer));
        // A path may be refused or taken to begin at the layer's root: what counts is outside.
        let answer = pull(&node, &image.reference);
        assert!(!outside.exists(), "{name} escaped: {answer:?}");
        if answer.is_err() {
            refused(answer, Code::Internal);
        }
    }
    node.assert_clean();
}

#[test]
fn an_oci_runtime_that_fails_is_quoted_and_leaves_nothing() {
    let fails = r#"[ "$VERB" = create ] && { echo "the runtime is out of luck" >&2; exit 1; }"#;
    let mut scene = Scene::with(|setup| setup.oci_runtime(fails));
    let pod = scene.host("unlucky");
    let created = pod.create(scene.container("unlucky", &OBEDIENT));
    let started = created.expect("that it is broken is the start's to tell").start();
    let message = refused(started, Code::Internal);
    assert!(message.contains("out of luck"), "{message}");
    scene.assert_nothing_left();
}

#[test]
fn an_oci_runtime_that_hangs_is_ended_when_its_time_is_over() {
    let hangs = r#"[ "$VERB" = create ] && [ ! -e $NODE/healed ] && exec sleep 100000"#;
    let config = "[runtime]\ncreate-timeout = '6s'\n";
    let mut scene = Scene::with(|setup| setup.oci_runtime(hangs).config(config));
    let pod = scene.host("hangs");
    let other = scene.host("other");
    let created = pod.create(scene.container("hangs", &OBEDIENT));
    assert!(created.and_then(|container| container.start()).is_err(), "it cannot start");
    scene.flag("healed");
    scene.obedient(&other, "other");
    scene.assert_nothing_left();
}

#[test]
fn a_slow_oci_runtime_holds_up_no_other_container_and_a_retry_attaches() {
    let slow = r#"case $VERB in create) case "$*" in *) [ -e $NODE/slow ] && { touch $NODE/creating; while [ -e $NODE/slow ]; do sleep 0.05; done; } ;; esac ;; esac"#;
    let mut scene = Scene::with(|setup| setup.oci_runtime(slow));
    let pod = scene.host("slow");
    let other = scene.obedient(&pod, "other");
    let slow = scene.flag("slow");
    std::thread::scope(|scope| {
        let call = || scope.spawn(|| pod.create(scene.container("slow", &OBEDIENT)));
        let first = call();
        until("it is being created", SOON, || scene.has_flag("creating").then_some(()));
        let retry = call();
        assert_eq!(other.exec(&["true"]).expect("exec runs").exit_code, 0);
        let listed = scene.cri().list_containers(ListContainersRequest::default());
        assert_eq!(listed.expect("containers are listed").containers.len(), 1, "not yet");
        assert_unknown(&scene.node, &other.id);
        fs_err::remove_file(&slow).expect("own folder");
        let first = first.join().expect("no panic").expect("it is created");
        assert_eq!(retry.join().expect("no panic").expect("it attaches").id, first.id);
    });
    scene.assert_nothing_left();
}

/// Of the two containers there are on the disk, the one that is not `known` is not told of.
fn assert_unknown(node: &Node, known: &str) {
    let folders = fs_err::read_dir(node.root().join("containers")).expect("cria made it");
    let ids = folders.map(|entry| entry.expect("own folder").file_name().into_string());
    let mut ids: Vec<_> = ids.map(|name| name.expect("ids are ASCII")).collect();
    ids.retain(|id| id != known);
    let container_id = ids.pop().expect("it is being created");
    let status = ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
    refused(node.cri().container_status(status), Code::NotFound);
    refused(node.cri().container_stats(ContainerStatsRequest { container_id }), Code::NotFound);
    let listed = node.cri().list_container_stats(ListContainerStatsRequest::default());
    assert_eq!(listed.expect("stats are listed").stats.len(), 1);
}

#[test]
fn a_full_disk_is_told_as_such_and_running_containers_go_on() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "small:1");
    let large = (0..20).fold(Layer::new(), |layer, number| {
        layer.file(&format!("file{number}"), 0o644, vec![number; 1 << 20])
    });
    let large = registry.push("large:1", &Image::new().layer(large));
    let mut node = Node::setup().registry(&registry).root_size("16m").start();
    pull(&node, &image.reference).expect("it fits");
    let pod = node.run_pod(node.host_pod("goes-on"));
    let container = pod.run(container_config("goes-on", &image.id, &OBEDIENT));
    container.await_log("ready", SOON);

    let message = refused(pull(&node, &large.reference), Code::ResourceExhausted);
    assert!(message.contains("space"), "{message}");
    let images = node.cri().list_images(ListImagesRequest::default()).expect("images are listed");
    assert_eq!(images.images.len(), 1);
    container.exec(&["sh", "-c", "dd if=/dev/zero of=/fill bs=64k 2>&1"]).expect("exec runs");
    refused(run(&node, node.host_pod("no-room")), Code::ResourceExhausted);
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    container.stop(SOON).expect("a full disk stops no stop");
    assert_eq!(container.status().exit_code, 0, "nor the truth of its exit");
    pod.remove().expect("nor a removal");
    node.assert_clean();
}

#[test]
fn a_creation_whose_last_record_finds_no_room_leaves_neither_process_nor_monitor() {
    let fills = r#"if [ $VERB = create ] && [ -e $NODE/fill ]; then
    runc "$@" || exit
    cat /dev/zero > $NODE/root/full 2> /dev/null
    exit 0
fi"#;
    let registry = Registry::start();
    let image = push_busybox(&registry, "small:1");
    let mut node = Node::setup().registry(&registry).root_size("16m").oci_runtime(fills).start();
    pull(&node, &image.reference).expect("it fits");
    let pod = node.run_pod(node.host_pod("full"));
    let fill = node.flag("fill");
    let config = container_config("does-not-fit", &image.id, &OBEDIENT);
    let message = refused(pod.create(config), Code::ResourceExhausted);
    assert!(message.contains("record"), "{message}");
    until("its monitor is gone", SOON, || monitors(node.place()).is_empty().then_some(()));
    fs_err::remove_file(fill).expect("own folder");
    fs_err::remove_file(node.root().join("full")).expect("own folder");
    let container = pod.run(container_config("fits", &image.id, &OBEDIENT));
    container.await_log("ready", SOON);
    pod.stop().expect("it stops");
    pod.remove().expect("it is removed");
    node.assert_nothing_left(SOON);
}

#[test]
fn on_a_full_disk_nothing_is_made_and_every_end_is_told_truly_also_after_a_restart() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "small:1");
    let mut node = Node::setup().registry(&registry).root_size("16m").start();
    pull(&node, &image.reference).expect("it fits");
    let pod = node.run_pod(node.host_pod("full"));
    let run = |name: &str, script: &str| {
        pod.run(container_config(name, &image.id, &["sh", "-c", script]))
    };
    let await_flag = "while [ ! -e /dev/shm/$0 ]; do usleep 10000; done; exit";
    let [now, later] = ["now", "later"].map(|name| {
        let script = await_flag.replace("$0", name);
        run(name, &format!("{script} {}", name.len()))
    });
    let filler = run("filler", "sleep 1000");
    filler.exec(&["sh", "-c", "dd if=/dev/zero of=/fill bs=64k 2>&1"]).expect("exec runs");

    for attempt in ["first", "second"] {
        let config = container_config(attempt, &image.id, &OBEDIENT);
        let message = refused(pod.create(config), Code::ResourceExhausted);
        assert!(message.contains("space"), "{message}");
    }
    let listed = node.cri().list_containers(ListContainersRequest::default());
    assert_eq!(listed.expect("containers are listed").containers.len(), 3);
    filler.exec(&["touch", "/dev/shm/now"]).expect("exec runs");
    assert_eq!(now.await_exit(SOON).exit_code, 3);

    node.kill9();
    node.resume();
    assert_eq!(now.status().exit_code, 3, "no record could hold it, but it is known");
    assert_eq!(later.status().state(), ContainerState::ContainerRunning);
    filler.exec(&["touch", "/dev/shm/later"]).expect("exec runs");
    assert_eq!(later.await_exit(SOON).exit_code, 5);
    now.remove().expect("a full disk stops no removal");
    pod.stop().expect("nor a stop");
    pod.remove().expect("nor the pod's removal");
    node.assert_clean();
}

#[test]
fn rpcs_of_later_releases_are_unimplemented() {
    let scene = Scene::new();
    let cri = scene.cri();
    let code = Code::Unimplemented;
    refused(cri.checkpoint_container(CheckpointContainerRequest::default()), code);
    refused(cri.checkpoint_pod(CheckpointPodRequest::default()), code);
    refused(cri.restore_pod(RestorePodRequest::default()), code);
    refused(cri.get_container_events(GetEventsRequest::default()), code);
    refused(cri.list_metric_descriptors(ListMetricDescriptorsRequest::default()), code);
    refused(cri.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default()), code);
    refused(cri.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest::default()), code);
}

#[test]
fn what_this_release_does_not_serve_is_refused_by_its_name_and_not_as_a_mistake() {
    let mut scene = Scene::new();
    let pod = scene.host("later");
    let later: [Spoil<ContainerConfig>; 1] = [("cdi device", |config| {
        config.cdi_devices.push(CdiDevice { name: "example.com/gpu=0".to_owned() });
    })];
    for (what, spoil) in later {
        let mut config = scene.container("later", &OBEDIENT);
        spoil(&mut config);
        let message = refused(pod.create(config), Code::FailedPrecondition);
        assert!(message.to_lowercase().contains(what), "{what}: {message}");
    }

    let mut config = scene.pod("user");
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    let mapping = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
    security.namespace_options.get_or_insert_default().userns_options = Some(UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![mapping],
        gids: vec![mapping],
    });
    let message = refused(run(&scene.node, config), Code::Unimplemented);
    assert!(message.contains("user namespace"), "{message}");
    scene.assert_nothing_left();
}
