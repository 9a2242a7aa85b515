//! Images as the kubelet knows them: names, ids, sizes, users; and whose credentials open them.

use cria_proto::*;
use harness::busybox::busybox;
use harness::cri::{container_config, image_spec};
use harness::registry::{ALICE, BOB, Pushed};
use harness::scene::{SOON, Scene, push_busybox, refused};
use harness::wait::until;
use harness::{Compression, Format, Image, Index, Layer, Node, Registry};
use tonic::Code;

fn pull_as(node: &Node, image: &str, who: Option<(&str, &str)>) -> Result<String, tonic::Status> {
    let auth = who.map(|(username, password)| AuthConfig {
        username: username.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    });
    let request = PullImageRequest { image: Some(image_spec(image)), auth, ..Default::default() };
    node.cri().pull_image(request).map(|answer| answer.image_ref)
}

fn status(node: &Node, image: &str) -> Option<cria_proto::Image> {
    let request = ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
    node.cri().image_status(request).expect("an unknown image is an empty answer").image
}

fn remove(node: &Node, image: &str) {
    let request = RemoveImageRequest { image: Some(image_spec(image)) };
    node.cri().remove_image(request).expect("remove is idempotent");
}

#[test]
fn an_image_has_one_id_everywhere() {
    let scene = Scene::new();
    let Pushed { reference, by_digest, id, .. } = scene.busybox.clone();
    assert_eq!(scene.cri().pull(&reference), id, "PullImage answers with the id");
    for name in [&reference, &by_digest, &id, &id[..20].replace("sha256:", "")] {
        let image = status(&scene.node, name).unwrap_or_else(|| panic!("{name} is known"));
        assert_eq!(image.id, id);
        assert_eq!(image.repo_tags, std::slice::from_ref(&reference));
        assert_eq!(image.repo_digests, std::slice::from_ref(&by_digest));
        assert!(image.size > 0);
    }
    let pod = scene.host("identity");
    let mut config = scene.script("one", "sleep 1000");
    config.image.get_or_insert_default().user_specified_image = "as/written".to_owned();
    let one = pod.run(config).status();
    assert_eq!(one.image.expect("it has one").image, "as/written");
    assert_eq!((one.image_id, one.image_ref), (id.clone(), by_digest.clone()));
    let two = pod.run(scene.script("two", "sleep 1000")).status();
    assert_eq!(two.image.expect("it has one").image, reference, "a tag where nothing was written");

    let other = push_busybox(&scene.registry, "another/name:2");
    scene.cri().pull(&other.reference);
    for (name, of) in [("three", &scene.busybox), ("four", &other)] {
        let mut config = scene.script(name, "sleep 1000");
        config.image.get_or_insert_default().user_specified_image.clone_from(&of.reference);
        assert_eq!(pod.run(config).status().image_ref, of.by_digest, "of the asked repository");
    }

    let listed = scene.cri().list_containers(ListContainersRequest::default());
    for container in listed.expect("containers are listed").containers {
        assert_eq!(container.image_id, id);
    }
}

#[test]
fn an_image_without_a_tag_is_told_as_it_was_asked_for() {
    let scene = Scene::new();
    remove(&scene.node, &scene.busybox.id);
    scene.cri().pull(&scene.busybox.by_digest);
    let pod = scene.host("tagless");
    for (name, asked) in [("digest", &scene.busybox.by_digest), ("id", &scene.busybox.id)] {
        let status = pod.run(container_config(name, asked, &["true"])).status();
        assert_eq!(status.image.expect("it has one").image, *asked);
        assert_eq!(status.image_ref, scene.busybox.by_digest);
    }
}

#[test]
fn an_unknown_image_is_an_empty_status_and_its_removal_succeeds() {
    let scene = Scene::new();
    assert_eq!(status(&scene.node, "no.example/such:image"), None);
    remove(&scene.node, "no.example/such:image");
}

#[test]
fn removing_by_any_name_removes_all_names() {
    let scene = Scene::new();
    let second = push_busybox(&scene.registry, "other/name:2");
    scene.cri().pull(&second.reference);
    for by in [&second.by_digest, &second.reference, &second.id] {
        scene.cri().pull(&scene.busybox.reference);
        scene.cri().pull(&second.reference);
        let image = status(&scene.node, &scene.busybox.id).expect("it is there");
        assert_eq!(image.repo_tags.len(), 2);
        remove(&scene.node, by);
        for name in [&scene.busybox.reference, &second.reference, &scene.busybox.id] {
            assert_eq!(status(&scene.node, name), None, "{name} after the removal by {by}");
        }
    }
}

#[test]
fn pinned_images_are_those_that_the_configuration_names() {
    let registry = Registry::start();
    let [base, tool, other] = ["base/one:1", "a/tool:2", "other:1"].map(|name| {
        let image = Image::new().layer(Layer::new().file("name", 0o644, name));
        registry.push(name, &image)
    });
    let address = registry.address();
    let config = format!("[images]\npinned = [\"{address}/base/*\", \"{}\"]\n", tool.reference);
    let node = Node::setup().registry(&registry).config(&config).start();
    for (image, pinned) in [(&base, true), (&tool, true), (&other, false)] {
        node.cri().pull(&image.reference);
        assert_eq!(status(&node, &image.id).expect("it is there").pinned, pinned, "{image:?}");
    }
}

#[test]
fn an_image_is_pulled_for_a_runtime_handler_that_there_is() {
    let scene = Scene::new();
    let pull_for = |handler: &str| {
        let image = ImageSpec {
            runtime_handler: handler.to_owned(),
            ..image_spec(&scene.busybox.reference)
        };
        scene.cri().pull_image(PullImageRequest { image: Some(image), ..Default::default() })
    };
    let handlers = scene.cri().status(StatusRequest::default()).expect("it is answered");
    for handler in handlers.runtime_handlers {
        let pulled = pull_for(&handler.name).expect("all handlers share the images");
        assert_eq!(pulled.image_ref, scene.busybox.id, "{}", handler.name);
    }
    let message = refused(pull_for("no-such-handler"), Code::InvalidArgument);
    assert!(message.contains("no-such-handler"), "{message}");
}

#[test]
fn an_image_in_use_is_not_removed_by_any_of_its_names_until_its_last_container_has_gone() {
    let scene = Scene::new();
    let Pushed { reference, by_digest, id, .. } = scene.busybox.clone();
    let container = scene.obedient(&scene.host("uses"), "uses");
    let assert_refused = |name: &str, why: &str| {
        let request = RemoveImageRequest { image: Some(image_spec(name)) };
        let message = refused(scene.cri().remove_image(request), Code::FailedPrecondition);
        assert!(message.contains(name) && message.contains(&container.id), "{why}: {message}");
        assert!(status(&scene.node, &id).is_some(), "{why}");
    };
    for name in [&reference, &by_digest, &id] {
        assert_refused(name, "it runs");
    }
    assert_eq!(container.exec(&["ls", "/bin/busybox"]).expect("exec runs").exit_code, 0);
    container.stop(SOON).expect("it stops");
    assert_refused(&id, "it has ended, and is still listed");
    container.remove().expect("it is removed");
    remove(&scene.node, &reference);
    assert_eq!(status(&scene.node, &id), None);
}

#[test]
fn the_user_of_an_image_is_told_without_its_group() {
    let scene = Scene::new();
    for (user, uid, name) in
        [("1000:50000", Some(1000), ""), ("0", Some(0), ""), ("www-data:100", None, "www-data")]
    {
        let pushed = scene.registry.push("user:1", &busybox().user(user));
        scene.cri().pull(&pushed.reference);
        let image = status(&scene.node, &pushed.id).expect("it is there");
        assert_eq!(image.uid.map(|uid| uid.value), uid, "{user}");
        assert_eq!(image.username, name, "{user}");
    }
}

#[test]
fn every_format_and_compression_runs() {
    let scene = Scene::new();
    let pod = scene.host("formats");
    for format in [Format::Oci, Format::Docker] {
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let name = format!("{format:?}-{compression:?}").to_lowercase();
            let image = busybox()
                .layer(Layer::new().file("name", 0o644, &name))
                .format(format)
                .compression(compression);
            let pushed = scene.registry.push(&format!("{name}:1"), &image);
            assert_eq!(scene.cri().pull(&pushed.reference), pushed.id, "{name}");
            let container = pod.run(container_config(&name, &pushed.id, &["cat", "/name"]));
            container.await_exit(SOON);
            // The last record of a log is a whole line, whether the last line was or not.
            assert_eq!(container.written("stdout"), format!("{name}\n"));
        }
    }
}

#[test]
fn an_index_gives_the_image_of_this_platform() {
    let scene = Scene::new();
    let marked = |mark: &str| Image::new().layer(Layer::new().file("mark", 0o644, mark));
    let foreign = serde_json::json!({ "architecture": "s390x", "os": "linux" });
    let ours = marked("ours");
    let index = Index::new()
        .entry(marked("foreign").platform("s390x", "linux"), foreign.clone())
        .entry(ours.clone(), harness::image::this_platform());
    let pushed = scene.registry.push_index("index:1", &index);
    assert_eq!(scene.cri().pull(&pushed.reference), ours.pack().id);
    let image = status(&scene.node, &pushed.reference).expect("it is there");
    assert_eq!(image.repo_digests.len(), 1);

    let none = Index::new().entry(marked("foreign").platform("s390x", "linux"), foreign);
    let none = scene.registry.push_index("none:1", &none);
    let status = pull_as(&scene.node, &none.reference, None).expect_err("no image for us");
    let ours = format!("linux/{}", harness::image::architecture());
    assert!(status.message().contains(&ours), "{status}");
}

#[test]
fn a_private_image_is_open_only_to_who_may_see_it_also_when_it_is_held() {
    let registry = Registry::start_private();
    let image = push_busybox(&registry, "private:1");
    let node = Node::start(&registry);
    for name in [&image.reference, &image.by_digest] {
        refused(pull_as(&node, name, None), Code::PermissionDenied);
        refused(pull_as(&node, name, Some(("alice", "wrong"))), Code::PermissionDenied);
    }
    assert_eq!(status(&node, &image.reference), None);
    assert_eq!(pull_as(&node, &image.reference, Some(ALICE)).expect("she may"), image.id);

    // The registry writes down what it has answered a moment later, but one after the other.
    assert_eq!(pull_as(&node, &image.reference, Some(ALICE)).expect("she may"), image.id);
    let is_of_layer =
        |request: &&String| request.contains("/blobs/") && !request.contains(&image.id);
    let layers = || registry.requests().iter().filter(is_of_layer).count();
    let fetched = layers();
    for name in [&image.reference, &image.by_digest] {
        refused(pull_as(&node, name, None), Code::PermissionDenied);
        refused(pull_as(&node, name, Some(("bob", "wrong"))), Code::PermissionDenied);
        assert_eq!(pull_as(&node, name, Some(BOB)).expect("he may"), image.id);
    }
    assert_eq!(layers(), fetched, "layers are not fetched again");
}

#[test]
fn the_file_system_of_images_is_told_with_all_the_kubelet_needs() {
    let scene = Scene::new();
    let info = scene.cri().image_fs_info(ImageFsInfoRequest::default()).expect("it is answered");
    for usage in info.image_filesystems.iter().chain(&info.container_filesystems) {
        assert!(usage.timestamp > 0);
        assert!(usage.used_bytes.is_some() && usage.inodes_used.is_some());
        let mountpoint = usage.fs_id.clone().expect("it is somewhere").mountpoint;
        assert_eq!(std::path::Path::new(&mountpoint), scene.root());
    }
    assert_eq!(info.image_filesystems.len(), 1);
    assert!(info.image_filesystems[0].used_bytes.is_some_and(|used| used.value > 0));
}

#[test]
fn a_short_name_is_of_the_first_unqualified_search_registry() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "library/short:1");
    let node = Node::setup().mapped("docker.io", &registry).start();
    assert_eq!(pull_as(&node, "short:1", None).expect("docker.io is mapped"), image.id);
    let found = status(&node, "docker.io/library/short:1").expect("the same by its whole name");
    assert_eq!(found.repo_tags, ["docker.io/library/short:1"]);
}

#[test]
fn a_blocked_registry_is_not_asked() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "blocked:1");
    let address = registry.address();
    let blocked = format!("[[registry]]\nprefix = \"{address}\"\nblocked = true\n");
    let node = Node::setup().registries(&blocked).start();
    let asked = registry.requests().len();
    let message = refused(pull_as(&node, &image.reference, None), Code::FailedPrecondition);
    assert!(message.contains("blocked"), "{message}");
    assert_eq!(registry.requests().len(), asked);
}

#[test]
fn changed_registries_are_read_again_and_a_mistake_leaves_what_stands() {
    let registry = Registry::start();
    let image = push_busybox(&registry, "moved:1");
    let node = Node::setup().start();
    let folder = node.place().folder();
    let write = |name: &str, text: &str| {
        // As configuration is replaced: written aside, and renamed.
        fs_err::write(folder.join("aside"), text).expect("own folder");
        fs_err::rename(folder.join("aside"), folder.join(name)).expect("own folder");
    };
    let moved = "example.test/moved:1";
    let text = format!(
        "[[registry]]\nprefix = \"example.test\"\nlocation = \"{}\"\ninsecure = true\n",
        registry.address()
    );
    write("registries.conf", &text);
    until("the new rule counts", SOON, || pull_as(&node, moved, None).ok());

    write("registries.conf", "[[registry]]\nlocation = 1\n");
    until("the mistake is logged", SOON, || {
        let log = fs_err::read_to_string(folder.join("cria.log")).expect("the node's log");
        log.contains("registries and credentials stay as they are").then_some(())
    });
    assert_eq!(pull_as(&node, moved, None).expect("by the rule that stands"), image.id);

    fs_err::create_dir(folder.join("registries.conf.d")).expect("own folder");
    write("registries.conf", &text);
    write("registries.conf.d/50.conf", "[[registry]]\nprefix = \"example.test\"\nblocked = true\n");
    until("the drop-in counts", SOON, || pull_as(&node, moved, None).err());
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_itself_when_the_mirror_fails() {
    let (registry, mut mirror) = (Registry::start(), Registry::start());
    let image = push_busybox(&registry, "mirrored:1");
    push_busybox(&mirror, "mirrored:1");
    let text = format!(
        "[[registry]]\nprefix = \"example.test\"\nlocation = \"{}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        registry.address(),
        mirror.address()
    );
    let node = Node::setup().registries(&text).start();
    let asked = registry.requests().len();
    assert_eq!(pull_as(&node, "example.test/mirrored:1", None).expect("by the mirror"), image.id);
    assert_eq!(registry.requests().len(), asked, "the mirror had it");
    mirror.stop();
    remove(&node, "example.test/mirrored:1");
    assert_eq!(pull_as(&node, "example.test/mirrored:1", None).expect("by itself"), image.id);
}
