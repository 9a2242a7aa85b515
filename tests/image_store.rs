//! The image store as the node's disks have it: of its own, shipped with the system, damaged, full.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use cria_proto::*;
use harness::cri::image_spec;
use harness::scene::{SOON, Scene, push_busybox, refused};
use harness::wait::until;
use harness::{Node, Registry};
use tonic::Code;

/// A mount that goes away with its test.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, size: &str) -> Self {
        fs_err::create_dir_all(at).expect("own folder");
        let options = format!("size={size},mode=755");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "cria-test"]).arg(at));
        Self(at.to_owned())
    }

    /// `at`, and nobody can write there.
    fn read_only(at: &Path) -> Self {
        run(Command::new("mount").arg("--bind").args([at, at]));
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !thread::panicking() {
            assert!(done.expect("umount runs").success());
        }
    }
}

fn run(command: &mut Command) {
    assert!(command.status().expect("it runs").success(), "{command:?}");
}

fn images_at(directory: &Path) -> String {
    format!("[images]\ndirectory = \"{}\"\n", directory.display())
}

fn status(node: &Node, image: &str) -> Option<Image> {
    let request = ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
    node.cri().image_status(request).expect("an unknown image is an empty answer").image
}

/// Mount point, bytes and inodes of images and of containers.
fn filesystems(node: &Node) -> [(String, u64, u64); 2] {
    let info = node.cri().image_fs_info(ImageFsInfoRequest::default()).expect("it is answered");
    [info.image_filesystems, info.container_filesystems].map(|filesystems| {
        let [one] = &filesystems[..] else { panic!("{filesystems:?}") };
        let place = one.fs_id.clone().expect("it has one").mountpoint;
        let value = |value: &Option<UInt64Value>| value.as_ref().expect("it is known").value;
        (place, value(&one.used_bytes), value(&one.inodes_used))
    })
}

fn du(flag: &str, path: &Path) -> u64 {
    let output = Command::new("du").args(["-sx", flag]).arg(path).output().expect("du runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().expect("a number").parse().expect("a number")
}

#[test]
fn images_and_containers_may_have_a_filesystem_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Mounted::tmpfs(&folder.path().join("images"), "64m");
    let mut scene = Scene::with(|setup| setup.config(&images_at(&disk.0)));
    let pod = scene.host("two-disks");
    let script = "dd if=/dev/zero of=/file bs=1M count=5 && sync && sleep 1000";
    let container = pod.run(scene.script("writer", script));

    let root = scene.node.root().display().to_string();
    let [images, _] = filesystems(&scene.node);
    assert_eq!(images.0, disk.0.display().to_string());
    // What the directories themselves take is the store's, and is not counted.
    let (bytes, inodes) = (du("-B1", &disk.0), du("--inodes", &disk.0));
    assert!(images.1.abs_diff(bytes) < 64 << 10, "{images:?}, du: {bytes}");
    assert!(images.2.abs_diff(inodes) < 8, "{images:?}, du: {inodes}");
    until("what the container wrote is counted", SOON, || {
        let [_, containers] = filesystems(&scene.node);
        assert_eq!(containers.0, root);
        (containers.1 >= 5 << 20 && containers.2 > 0).then_some(())
    });
    assert!(!scene.node.root().join("layers").exists(), "nothing of images is below root");

    container.remove().expect("it is removed");
    drop(pod);
    scene.node.restart();
    assert!(status(&scene.node, &scene.busybox.id).is_some());
    scene.node.terminate();
    drop(scene);
    drop(disk);
}

#[test]
fn two_places_on_one_filesystem_are_one_to_the_kubelet() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = images_at(&folder.path().join("images"));
    let scene = Scene::with(|setup| setup.config(&config));
    let device = |path: &Path| fs_err::metadata(path).expect("it is there").dev();
    assert_eq!(device(folder.path()), device(&scene.node.root()), "tests share a disk");
    let [images, containers] = filesystems(&scene.node);
    assert_eq!(images.0, containers.0);
    assert_eq!(images.0, scene.node.root().display().to_string());
}

#[test]
fn images_that_come_with_the_system_run_without_being_pulled() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = Registry::start();
    let busybox = push_busybox(&registry, "busybox:1");
    // As packaging/node-image/README.md has it.
    let build = folder.path().join("build");
    fs_err::create_dir_all(&build).expect("own folder");
    let mut maker = Node::setup().registry(&registry).config(&images_at(&build)).start();
    maker.cri().pull(&busybox.reference);
    maker.terminate();
    drop(maker);
    let shipped = folder.path().join("shipped");
    fs_err::create_dir_all(&shipped).expect("own folder");
    run(Command::new("cp")
        .arg("-a")
        .args([build.join("images"), build.join("layers")])
        .arg(&shipped));
    let read_only = Mounted::read_only(&shipped);

    let config = format!("[images]\nadditional-stores = [\"{}\"]\n", shipped.display());
    let node = Node::setup().registry(&registry).config(&config).start();
    let image = status(&node, &busybox.reference).expect("it is there");
    assert!(image.pinned && image.id == busybox.id, "{image:?}");
    let [images, _] = filesystems(&node);
    assert_eq!((images.1, images.2), (0, 0), "it takes none of this disk");
    let pod = node.run_pod(node.host_pod("shipped"));
    let container =
        pod.run(harness::cri::container_config("one", &busybox.id, &["sh", "-c", "exit 7"]));
    assert_eq!(container.await_exit(SOON).exit_code, 7);

    assert_eq!(node.cri().pull(&busybox.reference), busybox.id);
    assert_eq!(fs_err::read_dir(node.root().join("layers")).expect("it is there").count(), 0);
    node.cri().remove_all_pods().expect("pods are listed");
    let request = RemoveImageRequest { image: Some(image_spec(&busybox.reference)) };
    let refusal = refused(node.cri().remove_image(request), Code::FailedPrecondition);
    assert!(refusal.contains("read-only store"), "{refusal}");
    drop(node);
    drop(read_only);
}

#[test]
fn a_damaged_image_is_not_found_until_it_is_pulled_again() {
    let scene = Scene::new();
    let layers = scene.node.root().join("layers");
    let pod = scene.host("damaged");
    for (name, damage) in [("one", remove_record as fn(&Path)), ("two", remove_content)] {
        damage(&only_entry(&layers));
        assert_eq!(status(&scene.node, &scene.busybox.reference), None);
        refused(pod.create(scene.script("none", "true")), Code::NotFound);
        scene.cri().pull(&scene.busybox.reference);
        assert_eq!(pod.run(scene.script(name, "exit 3")).await_exit(SOON).exit_code, 3);
    }
    // Nobody looked at the image before the container was to be made.
    remove_content(&only_entry(&layers));
    refused(pod.create(scene.script("none", "true")), Code::NotFound);
}

fn remove_record(layer: &Path) {
    fs_err::remove_file(layer.join("layer.json")).expect("it was there");
}

fn remove_content(layer: &Path) {
    fs_err::remove_dir_all(layer.join("fs")).expect("it was there");
}

fn only_entry(directory: &Path) -> PathBuf {
    let mut entries = fs_err::read_dir(directory).expect("it is there");
    let entry = entries.next().expect("one").expect("it can be read");
    assert!(entries.next().is_none());
    entry.path()
}
