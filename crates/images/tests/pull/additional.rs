//! Stores that come with the node's system: listed, used, and never touched.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cria_images::{Error, Store, StoreOptions};

use crate::scripted::Scripted;
use crate::support::{TestImage, TestStore, names, tar_of};

/// A directory that cannot be written to, for as long as this lives.
struct ReadOnly {
    place: tempfile::TempDir,
}

impl ReadOnly {
    /// What somebody who builds a node image does: `images` and `layers` of a store, copied.
    fn copy_of(store: &Path) -> Self {
        let place = tempfile::tempdir().unwrap();
        for name in ["images", "layers"] {
            run(Command::new("cp").arg("-a").arg(store.join(name)).arg(place.path()));
        }
        run(Command::new("mount").arg("--bind").args([place.path(), place.path()]));
        let made = Self { place };
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(made.path()));
        made
    }

    fn path(&self) -> &Path {
        self.place.path()
    }

    fn writable(&self) {
        run(Command::new("mount").args(["-o", "remount,bind,rw"]).arg(self.path()));
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.place.path()).status();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn shipped_image() -> TestImage {
    TestImage::of(&[
        tar_of(&[("tmp/x", b"lower"), ("gone", b"gone"), ("kept", b"kept")]),
        tar_of(&[(".wh.gone", b""), ("top", b"top")]),
    ])
}

struct Scene {
    registry: Scripted,
    image: TestImage,
    name: String,
    shipped: ReadOnly,
}

impl Scene {
    async fn new() -> Self {
        let registry = Scripted::start().await;
        let image = shipped_image();
        registry.put("shipped:1", &image);
        let name = format!("{}/shipped:1", registry.host);
        let maker = TestStore::new(&[&registry.host]);
        maker.pull(&name).await.unwrap();
        let shipped = ReadOnly::copy_of(&maker.directory.path().join("store"));
        Self { registry, image, name, shipped }
    }

    /// A node with that store, in another boot than the one it was made in.
    fn node(&self) -> TestStore {
        TestStore::with(&[&self.registry.host], "", |options| self.configure(options))
    }

    fn again(&self, node: TestStore) -> TestStore {
        let TestStore { store, directory } = node;
        drop(store);
        TestStore::again_with(directory, &[&self.registry.host], |options| self.configure(options))
    }

    fn configure(&self, options: &mut StoreOptions) {
        options.boot_id = "another boot".to_owned();
        let missing = self.shipped.path().join("missing");
        options.additional_stores = vec![missing, self.shipped.path().to_owned()];
    }

    fn blobs_asked(&self) -> usize {
        self.registry.requests("/blobs/").len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_an_additional_store_are_listed_pinned_mounted_and_cost_nothing() {
    let scene = Scene::new().await;
    let node = scene.node();
    let listed = node.store.list();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].pinned);
    assert_eq!(listed[0].tags, [scene.name.as_str()]);
    assert_eq!(node.store.usage(), cria_images::Usage::default());

    let lease = node.store.lease(&listed[0].id).unwrap();
    let lower = lease.lower_directories();
    assert!(lower.iter().all(|path| path.starts_with(scene.shipped.path())), "{lower:?}");
    let merged = crate::real::Overlay::mount(&lower, node.directory.path().join("merged"));
    assert_eq!(names(&merged.0), ["kept", "tmp", "top"]);
    drop(merged);

    // A pull asks the registry whether it may, for the config, too, and fetches no layer.
    let asked = scene.blobs_asked();
    let pulled = node.pull(&scene.name).await.unwrap();
    assert_eq!(pulled.id.to_string(), scene.image.id());
    assert_eq!((scene.blobs_asked(), node.layers().len()), (asked + 1, 0));
    node.store.collect();
    node.store.sync().unwrap();
    assert_eq!(node.store.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_additional_store_cannot_be_removed_but_names_given_here_can() {
    let scene = Scene::new().await;
    let node = scene.node();
    let error = node.store.remove(&scene.name).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error:?}");

    scene.registry.put("copy:2", &scene.image);
    let copy = format!("{}/copy:2", scene.registry.host);
    node.pull(&copy).await.unwrap();
    let node = scene.again(node);
    let both = node.store.find(&copy).unwrap().unwrap();
    assert_eq!(both.tags.len(), 2);
    assert!(both.pinned);
    node.store.remove(&copy).unwrap();
    assert_eq!(node.store.find(&copy).unwrap().map(|image| image.id), None);
    assert_eq!(node.store.find(&scene.name).unwrap().unwrap().tags, [scene.name.as_str()]);
    assert!(matches!(node.store.remove(&scene.name), Err(Error::ReadOnly { .. })));
    assert_eq!(scene.again(node).store.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_was_pulled_here_stays_with_what_was_pulled() {
    let scene = Scene::new().await;
    let newer = TestImage::of(&[tar_of(&[("new", b"new")])]);
    scene.registry.put("shipped:1", &newer);
    let node = scene.node();
    node.pull(&scene.name).await.unwrap();
    for node in [&node.store, &scene.node_like(&node)] {
        assert_eq!(node.find(&scene.name).unwrap().unwrap().id.to_string(), newer.id());
        let old = node.find(&scene.image.id()).unwrap().unwrap();
        assert!(old.tags.is_empty() && old.pinned, "{old:?}");
    }
}

impl Scene {
    /// The store of `node`, opened once more.
    fn node_like(&self, node: &TestStore) -> Store {
        let mut options = StoreOptions::new("");
        self.configure(&mut options);
        options.registries =
            crate::support::registries(node.directory.path(), &[&self.registry.host], "");
        Store::open(&node.directory.path().join("store"), options).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_images_share_an_additional_stores_layers() {
    let scene = Scene::new().await;
    let common = tar_of(&[("tmp/x", b"lower"), ("gone", b"gone"), ("kept", b"kept")]);
    let other = TestImage::of(&[common, tar_of(&[("own", b"own")])]);
    scene.registry.put("other:1", &other);
    let node = scene.node();
    let name = format!("{}/other:1", scene.registry.host);
    let pulled = node.pull(&name).await.unwrap();
    assert_eq!(node.layers().len(), 1);
    assert_eq!(scene.registry.requests(other.layers[0].digest()).len(), 1, "by the maker alone");
    assert_eq!(node.read(&pulled, "kept"), b"kept");

    // A system that comes without that store costs this image, which is pulled again.
    let TestStore { store, directory } = node;
    drop(store);
    let bare = TestStore::again_with(directory, &[&scene.registry.host], |options| {
        options.boot_id = "another boot".to_owned();
    });
    assert!(bare.store.list().is_empty());
    assert_eq!(bare.read(&bare.pull(&name).await.unwrap(), "kept"), b"kept");
    assert_eq!(scene.registry.requests(other.layers[1].digest()).len(), 1, "that one was here");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_our_own_record_is_damaged_the_additional_stores_counts_again() {
    let scene = Scene::new().await;
    scene.registry.put("copy:2", &scene.image);
    let copy = format!("{}/copy:2", scene.registry.host);
    let node = scene.node();
    node.pull(&copy).await.unwrap();
    let record = format!("store/images/{}.json", scene.image.config.digest().hex());
    fs_err::write(node.directory.path().join(record), "{}").unwrap();
    assert!(node.store.find_intact(&copy).await.unwrap().is_none());
    let left = node.store.find_intact(&scene.name).await.unwrap().unwrap();
    assert_eq!(left.tags, [scene.name.as_str()]);
    assert!(left.pinned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_additional_store_is_left_alone_and_made_good_by_a_pull() {
    let scene = Scene::new().await;
    let node = scene.node();
    let held = node.store.find(&scene.name).unwrap().unwrap();
    scene.shipped.writable();
    let layer = scene.shipped.path().join("layers").join(held.layers[1].hex());
    fs_err::remove_file(layer.join("fs/top")).unwrap();
    assert!(node.store.find_intact(&scene.name).await.unwrap().is_none());
    let pulled = node.pull(&scene.name).await.unwrap();
    assert_eq!(node.read(&pulled, "top"), b"top");
    assert_eq!(node.layers(), [held.layers[1].hex()], "just that one is ours now");
    assert!(layer.join("fs/kept").exists() || layer.join("layer.json").exists());

    // From the start: an image whose layer cannot be read is not listed, and harms nobody.
    fs_err::write(layer.join("layer.json"), "").unwrap();
    let fresh = scene.node();
    assert!(fresh.store.list().is_empty());
    let pulled: Arc<_> = fresh.pull(&scene.name).await.unwrap();
    assert_eq!((fresh.read(&pulled, "top"), fresh.layers().len()), (b"top".to_vec(), 1));
}
