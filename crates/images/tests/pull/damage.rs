//! Damage behind the store's back: noticed when a thing is used, dropped alone, healed by a pull.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use cria_images::Image;

use crate::scripted::Scripted;
use crate::support::{Blob, TestImage, TestStore, names, tar_of};

fn image() -> TestImage {
    TestImage::of(&[
        tar_of(&[("deep/below/a", b"lower"), ("b", b"b")]),
        tar_of(&[("deep/below/c", b"upper")]),
    ])
}

/// A registry, a store that holds its image, and how often each blob was asked for.
struct Scene {
    registry: Scripted,
    test: TestStore,
    image: TestImage,
    name: String,
}

impl Scene {
    async fn new() -> Self {
        let registry = Scripted::start().await;
        let image = image();
        registry.put("app:1", &image);
        let test = TestStore::new(&[&registry.host]);
        let name = format!("{}/app:1", registry.host);
        test.pull(&name).await.unwrap();
        Self { registry, test, image, name }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.test.directory.path().join("store").join(path)
    }

    fn record(&self) -> PathBuf {
        self.path(&format!("images/{}.json", self.image.config.digest().hex()))
    }

    /// The lower layer, which was pulled as the first blob.
    fn layer(&self, held: &Image) -> PathBuf {
        self.path(&format!("layers/{}", held.layers[0].hex()))
    }

    fn asked(&self) -> [usize; 3] {
        let blobs = [&self.image.layers[0], &self.image.layers[1], &self.image.config];
        blobs.map(|blob: &Blob| self.registry.requests(blob.digest()).len())
    }

    /// A daemon that starts anew.
    fn reopened(self) -> Self {
        let Self { registry, test, image, name } = self;
        let TestStore { store, directory } = test;
        drop(store);
        Self { test: TestStore::again(directory, &[&registry.host]), registry, image, name }
    }
}

type Damage = fn(&Scene, &Image);

/// What is seen at every use.
const AT_ONCE: [(&str, Damage, [usize; 3]); 5] = [
    ("the layer is gone", |scene, held| remove(scene.layer(held)), [2, 1, 2]),
    ("its content is gone", |scene, held| remove(scene.layer(held).join("fs")), [2, 1, 2]),
    (
        "something at its top is gone",
        |scene, held| fs_err::remove_file(scene.layer(held).join("fs/b")).unwrap(),
        [2, 1, 2],
    ),
    (
        "its record is another",
        |scene, held| fs_err::write(scene.layer(held).join("layer.json"), "{}").unwrap(),
        [2, 1, 2],
    ),
    (
        "the image's record is gone",
        |scene, _| fs_err::remove_file(scene.record()).unwrap(),
        [1, 1, 2],
    ),
];

fn remove(path: PathBuf) {
    fs_err::remove_dir_all(path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_noticed_when_an_image_is_looked_at_and_a_pull_fetches_just_what_is_missing() {
    for (what, damage, asked) in AT_ONCE {
        let scene = Scene::new().await;
        let held = scene.test.store.find(&scene.name).unwrap().unwrap();
        assert!(scene.test.store.find_intact(&scene.name).await.unwrap().is_some());
        damage(&scene, &held);
        assert!(scene.test.store.find_intact(&scene.name).await.unwrap().is_none(), "{what}");
        assert!(scene.test.store.list().is_empty(), "{what}");

        let pulled = scene.test.pull(&scene.name).await.unwrap();
        assert_eq!(scene.test.read(&pulled, "deep/below/a"), b"lower", "{what}");
        assert_eq!(scene.asked(), asked, "{what}");
        assert!(scene.test.store.find_intact(&scene.name).await.unwrap().is_some(), "{what}");
        scene.test.store.remove(&scene.name).unwrap();
        assert!(scene.test.layers().is_empty(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_notices_damage_too() {
    for (what, damage, asked) in AT_ONCE {
        let scene = Scene::new().await;
        let held = scene.test.store.find(&scene.name).unwrap().unwrap();
        damage(&scene, &held);
        let pulled = scene.test.pull(&scene.name).await.unwrap();
        // A record that only the disk has lost is not missed: its image is in memory.
        assert_eq!(scene.asked()[..2], asked[..2], "{what}");
        assert_eq!(scene.test.read(&pulled, "b"), b"b", "{what}");
        let scene = scene.reopened();
        assert_eq!(scene.test.store.list().len(), 1, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_deep_in_a_layer_is_found_by_the_first_pull_after_a_start() {
    for what in ["gone", "shorter"] {
        let scene = Scene::new().await.reopened();
        let held = scene.test.store.find(&scene.name).unwrap().unwrap();
        let file = scene.layer(&held).join("fs/deep/below/a");
        match what {
            "gone" => fs_err::remove_file(file).unwrap(),
            _ => fs_err::write(file, "lo").unwrap(),
        }
        let pulled = scene.test.pull(&scene.name).await.unwrap();
        assert_eq!(scene.test.read(&pulled, "deep/below/a"), b"lower", "{what}");
        assert_eq!(scene.asked()[..2], [2, 1], "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_that_is_in_use_stays_with_its_user_until_the_next_boot() {
    let scene = Scene::new().await;
    let held = scene.test.store.find(&scene.name).unwrap().unwrap();
    let lease = scene.test.store.lease(&held.id).unwrap();
    let used = fs_err::File::open(scene.layer(&held).join("fs/deep/below/a")).unwrap();
    let whole = scene.test.store.usage();
    fs_err::remove_file(scene.layer(&held).join("fs/b")).unwrap();
    assert!(scene.test.store.find_intact(&scene.name).await.unwrap().is_none());
    assert_eq!(names(&scene.path("damaged")).len(), 1);
    assert_eq!(used.metadata().unwrap().nlink(), 1, "it is still linked");

    scene.test.pull(&scene.name).await.unwrap();
    let takes_more = |scene: &Scene| scene.test.store.usage().inodes > whole.inodes;
    assert!(takes_more(&scene), "it is on the disk twice");
    drop(lease);
    // As long as the node runs, a container of an earlier daemon may mount it.
    let scene = scene.reopened();
    assert_eq!(names(&scene.path("damaged")).len(), 1);
    assert!(takes_more(&scene), "also to the next process");
    assert!(scene.test.store.find_intact(&scene.name).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_images_damage_is_not_anothers() {
    let scene = Scene::new().await;
    let other = TestImage::of(&[tar_of(&[("other", b"other")])]);
    scene.registry.put("other:1", &other);
    let other = scene.test.pull(&format!("{}/other:1", scene.registry.host)).await.unwrap();
    let held = scene.test.store.find(&scene.name).unwrap().unwrap();
    remove(scene.layer(&held));
    assert!(scene.test.store.find_intact(&scene.name).await.unwrap().is_none());
    let left = scene.test.store.list();
    assert_eq!((left.len(), left[0].id), (1, other.id));
    assert_eq!(scene.test.read(&other, "other"), b"other");
}
