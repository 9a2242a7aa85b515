//! Images as volumes (KEP-4639): what a container sees of them, who keeps them, and that nothing of
//! them stays.

use std::thread;

use cria_proto::*;
use harness::cri::{Container, container_config, image_spec};
use harness::registry::Pushed;
use harness::scene::{OBEDIENT, SOON, Scene, refused};
use harness::wait::until;
use harness::{Artifact, Image, Layer, Node};
use tonic::Code;

/// An image as a volume at `path`, as the kubelet asks for it: by the image's id.
fn volume(image: &Pushed, path: &str) -> Mount {
    Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            user_specified_image: image.reference.clone(),
            ..image_spec(&image.id)
        }),
        ..Default::default()
    }
}

fn part(image: &Pushed, sub_path: &str, path: &str) -> Mount {
    Mount { image_sub_path: sub_path.to_owned(), ..volume(image, path) }
}

fn with(mut config: ContainerConfig, mounts: impl IntoIterator<Item = Mount>) -> ContainerConfig {
    config.mounts.extend(mounts);
    config
}

/// Two layers; the upper replaces a file, hides another and has links that lead out.
fn models() -> Image {
    let bottom = Layer::new()
        .dir("weights", 0o755)
        .file("weights/one", 0o644, "old")
        .file("weights/two", 0o644, "two")
        .file("gone", 0o644, "gone")
        .dir("etc", 0o755)
        .file("etc/passwd", 0o644, "of the image");
    let top = Layer::new()
        .file("weights/one", 0o644, "one")
        .whiteout("gone")
        .symlink("link", "weights")
        .symlink("out", "/etc")
        .symlink("up", "../../../../../../etc");
    Image::new().layer(bottom).layer(top)
}

fn push(scene: &Scene, name: &str, image: &Image) -> Pushed {
    let pushed = scene.registry.push(name, image);
    assert_eq!(scene.cri().pull(&pushed.reference), pushed.id);
    pushed
}

#[track_caller]
fn sees(container: &Container, script: &str, expected: &str) {
    let output = container.exec(&["sh", "-c", script]).expect("exec runs");
    assert_eq!(output.stdout, expected, "{script}: {output}");
}

fn remove(node: &Node, image: &Pushed) {
    let request = RemoveImageRequest { image: Some(image_spec(&image.id)) };
    node.cri().remove_image(request).expect("it is removed");
}

#[track_caller]
fn is_in_use(node: &Node, image: &Pushed) {
    let request = RemoveImageRequest { image: Some(image_spec(&image.id)) };
    let message = refused(node.cri().remove_image(request), Code::FailedPrecondition);
    assert!(message.contains("in use by container"), "{message}");
}

/// How many layers the store has on its disk.
fn layers(node: &Node) -> usize {
    fs_err::read_dir(node.root().join("layers")).expect("the store's folder").count()
}

#[test]
fn all_layers_of_an_image_are_seen_as_one_read_only_directory() {
    let mut scene = Scene::new();
    let models = push(&scene, "models:1", &models());
    let single = push(&scene, "single:1", &Image::new().layer(Layer::new().file("a", 0o644, "a")));
    let empty = push(&scene, "empty:1", &Image::new());
    let config = with(
        scene.container("main", &OBEDIENT),
        [volume(&models, "/models"), volume(&single, "/one/deep"), volume(&empty, "/empty")],
    );
    let container = scene.host("volumes").run(config);
    sees(
        &container,
        "cd /models; cat weights/one weights/two; ls",
        "onetwoetc\nlink\nout\nup\nweights\n",
    );
    sees(&container, "cat /one/deep/a; ls -A /empty", "a");
    for path in ["/models/new", "/models/weights/new", "/one/deep/new", "/empty/new"] {
        let output = container.exec(&["touch", path]).expect("exec runs");
        assert!(output.stderr.contains("Read-only file system"), "{path}: {output}");
    }
    scene.assert_nothing_left();
}

#[test]
fn what_a_single_layer_hides_of_others_is_not_shown() {
    let mut scene = Scene::new();
    let layer = Layer::new().dir("d", 0o755).file("d/kept", 0o644, "kept");
    let layer = layer.whiteout("gone").whiteout("d/gone");
    let single = push(&scene, "single:1", &Image::new().layer(layer));
    let alone = Layer::new().file("kept", 0o644, "kept").whiteout("gone");
    let alone = push(&scene, "alone:1", &Image::new().layer(alone));
    let config = with(
        scene.container("main", &OBEDIENT),
        [volume(&single, "/single"), volume(&alone, "/alone"), part(&single, "d", "/part")],
    );
    let container = scene.host("whiteouts").run(config);
    for (path, shown) in
        [("/single", "d\n"), ("/single/d", "kept\n"), ("/alone", "kept\n"), ("/part", "kept\n")]
    {
        sees(&container, &format!("ls -A {path}"), shown);
    }
    scene.assert_nothing_left();
}

#[test]
fn a_sub_path_is_a_directory_of_the_image_wherever_its_links_lead() {
    let mut scene = Scene::new();
    let models = push(&scene, "models:1", &models());
    let config = with(
        scene.container("main", &OBEDIENT),
        [
            part(&models, "weights", "/plain"),
            part(&models, "link", "/link"),
            part(&models, "out", "/out"),
            part(&models, "up", "/up"),
        ],
    );
    let container = scene.host("sub-paths").run(config);
    sees(&container, "cat /plain/one /link/two", "onetwo");
    sees(&container, "cat /out/passwd /up/passwd", "of the imageof the image");
    let output = container.exec(&["touch", "/plain/new"]).expect("exec runs");
    assert!(output.stderr.contains("Read-only file system"), "{output}");
    scene.assert_nothing_left();
}

#[test]
fn what_cannot_be_mounted_fails_the_creation_by_a_name_that_the_kubelet_knows() {
    let mut scene = Scene::new();
    let models = push(&scene, "models:1", &models());
    let unknown = Pushed { id: "no.example/such:image".to_owned(), ..models.clone() };
    let pod = scene.host("refused");
    for (mount, reason) in [
        (part(&models, "missing", "/m"), "sub path \"missing\" does not exist"),
        (part(&models, "weights/one/x", "/m"), "does not exist"),
        (part(&models, "weights/one", "/m"), "is not a directory"),
        (part(&models, "../etc", "/m"), "leads out of the image"),
        (part(&models, "/etc", "/m"), "leads out of the image"),
        (volume(&unknown, "/m"), "no such image"),
    ] {
        let name = mount.image.clone().expect("it has one").image;
        let config = with(scene.container("main", &OBEDIENT), [mount]);
        let message = refused(pod.create(config), Code::Unknown);
        assert!(message.starts_with("ImageVolumeMountFailed: "), "{message}");
        assert!(message.contains(&name) && message.contains(reason), "{message}");
    }
    let config = with(scene.container("main", &OBEDIENT), [part(&models, "weights", "/m")]);
    sees(&pod.run(config), "cat /m/one", "one");
    scene.assert_nothing_left();
}

#[test]
fn a_status_tells_a_volume_as_it_was_asked_for_and_what_the_image_is() {
    let mut scene = Scene::new();
    let models = push(&scene, "models:1", &models());
    let asked = [part(&models, "weights", "/sub"), volume(&models, "/all")];
    let config = with(scene.container("main", &OBEDIENT), asked.clone());
    let container = scene.host("status").run(config);
    let told = asked.map(|mut mount| {
        mount.image.as_mut().expect("it has one").image_ref = models.by_digest.clone();
        mount
    });
    assert_eq!(container.status().mounts, told);
    scene.kill9();
    scene.resume();
    assert_eq!(container.status().mounts, told, "also after a restart");
    scene.assert_nothing_left();
}

#[test]
fn an_image_is_a_volume_of_many_pods_at_once_and_stays_until_the_last_has_gone() {
    let mut scene = Scene::new();
    let without = layers(&scene);
    let models = push(&scene, "models:1", &models());
    let before = layers(&scene);
    let pods: Vec<_> = (0..4).map(|number| scene.host(&format!("pod-{number}"))).collect();
    let containers: Vec<_> = thread::scope(|scope| {
        let run = |pod| {
            let config = with(scene.container("main", &OBEDIENT), [volume(&models, "/models")]);
            scope.spawn(move || harness::Pod::run(pod, config))
        };
        let running: Vec<_> = pods.iter().map(run).collect();
        running.into_iter().map(|thread| thread.join().expect("it runs")).collect()
    });
    for (pod, container) in pods.iter().zip(&containers) {
        is_in_use(&scene, &models);
        sees(container, "cat /models/weights/one /models/weights/two", "onetwo");
        assert_eq!(layers(&scene), before, "its layers are in use");
        pod.stop().expect("it stops");
        pod.remove().expect("it is removed");
    }
    remove(&scene, &models);
    until("the layers go with the image", SOON, || (layers(&scene) == without).then_some(()));
    scene.assert_nothing_left();
}

#[test]
fn an_artifact_is_a_volume_of_files_and_no_container_runs_from_it() {
    let mut scene = Scene::new();
    let artifact = Artifact::new().file("deep/model.gguf", "weights").unnamed("anonymous");
    let other = Artifact::new().file("model.gguf", "other");
    let [artifact, other] =
        [("artifact:1", artifact), ("other:1", other)].map(|(name, artifact)| {
            let pushed = scene.registry.push_artifact(name, &artifact);
            assert_eq!(scene.cri().pull(&pushed.reference), pushed.id, "the manifest's digest");
            pushed
        });
    let listed = scene.cri().list_images(ListImagesRequest::default()).expect("it is answered");
    let told = |pushed: &Pushed| listed.images.iter().find(|image| image.id == pushed.id).cloned();
    let [first, second] = [&artifact, &other].map(|pushed| told(pushed).expect("it is listed"));
    assert_eq!(first.repo_tags, std::slice::from_ref(&artifact.reference));
    assert_eq!(second.repo_digests, std::slice::from_ref(&other.by_digest));
    assert!(first.size > 0);

    let pod = scene.host("artifacts");
    let config = with(
        scene.container("main", &OBEDIENT),
        [volume(&artifact, "/all"), part(&artifact, "deep", "/deep"), volume(&other, "/other")],
    );
    let container = pod.run(config);
    let unnamed = format!("cat /all/{}", harness::layer::digest(b"anonymous").replace(':', "-"));
    sees(
        &container,
        "cat /all/deep/model.gguf /deep/model.gguf /other/model.gguf",
        "weightsweightsother",
    );
    sees(&container, &unnamed, "anonymous");
    let output = container.exec(&["touch", "/other/new"]).expect("exec runs");
    assert!(output.stderr.contains("Read-only file system"), "{output}");

    let config = container_config("runs", &artifact.id, &["true"]);
    let message = refused(pod.create(config), Code::FailedPrecondition);
    assert!(message.contains("artifact"), "{message}");
    let config = with(scene.container("file", &OBEDIENT), [part(&other, "model.gguf", "/m")]);
    let message = refused(pod.create(config), Code::Unknown);
    assert!(message.contains("is not a directory"), "{message}");

    scene.kill9();
    scene.resume();
    sees(&container, "cat /deep/model.gguf", "weights");
    is_in_use(&scene, &artifact);
    sees(&container, &unnamed, "anonymous");
    scene.assert_nothing_left();
}

#[test]
fn a_killed_daemon_keeps_the_layers_of_volumes_and_the_next_takes_them_down() {
    let mut scene = Scene::new();
    let without = layers(&scene);
    let models = push(&scene, "models:1", &models());
    let before = layers(&scene);
    let pod = scene.host("killed");
    let config = with(scene.container("main", &OBEDIENT), [part(&models, "weights", "/models")]);
    let container = pod.run(config);
    scene.kill9();
    scene.resume();
    is_in_use(&scene, &models);
    // Of the layers, one way or the other: the daemon has collected once it has removed an image.
    let other = push(&scene, "other:1", &Image::new().layer(Layer::new().file("a", 0o644, "a")));
    remove(&scene, &other);
    sees(&container, "cat /models/one /models/two", "onetwo");
    assert_eq!(layers(&scene), before);
    scene.kill9();
    let record = format!("images/{}.json", models.id.replace("sha256:", ""));
    fs_err::remove_file(scene.root().join(record)).expect("the image's record");
    scene.resume();
    sees(&container, "cat /models/one /models/two", "onetwo");
    assert_eq!(layers(&scene), before, "the image is gone, and its layers are not");
    container.remove().expect("it is removed");
    until("nobody uses them", SOON, || (layers(&scene) == without).then_some(()));
    scene.assert_nothing_left();
}

#[test]
fn a_daemon_that_dies_in_the_middle_of_a_creation_leaves_no_mount_to_the_next() {
    let hangs = r#"[ "$VERB" = create ] && [ -e $NODE/hang ] && { touch $NODE/creating; exec sleep 1000; }"#;
    let mut scene = Scene::with(|setup| setup.oci_runtime(hangs));
    let models = push(&scene, "models:1", &models());
    let pod = scene.host("middle");
    let config = with(scene.container("main", &OBEDIENT), [volume(&models, "/models")]);
    let creating = pod.clone();
    let hang = scene.flag("hang");
    let call = thread::spawn(move || creating.create(config).map(drop));
    until("the OCI runtime is asked", SOON, || scene.has_flag("creating").then_some(()));
    scene.kill9();
    call.join().expect("it is answered").expect_err("the daemon died");
    fs_err::remove_file(hang).expect("own folder");
    scene.resume();
    scene.assert_nothing_is_left_soon();
}
