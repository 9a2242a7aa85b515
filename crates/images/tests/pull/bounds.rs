//! What is too much: for memory, for the disk, for a layer.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cria_images::{Credentials, Error, Image, Limits, PullRequest, Store, StoreOptions};

use crate::scripted::{Fault, Scripted};
use crate::support::{
    Blob, OCI_TAR, OCI_ZSTD, Registry, TestImage, TestStore, names, registries, tar_of,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_beyond_4_mib_is_refused_before_it_is_read() {
    let registry = Scripted::start().await;
    let mut image = TestImage::of(&[tar_of(&[("a", b"a")])]);
    registry.put("small:1", &image);
    image.manifest.bytes.resize(4 << 20, b' ');
    registry.put("largest:1", &image);
    image.manifest.bytes.push(b' ');
    registry.put("larger:1", &image);
    let test = TestStore::new(&[&registry.host]);
    test.pull(&format!("{}/largest:1", registry.host)).await.unwrap();
    let error = test.pull(&format!("{}/larger:1", registry.host)).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("4194304 bytes")));
    registry.fail("/manifests/", 9, Fault::Body(vec![b' '; 64 << 20]));
    test.pull(&format!("{}/small:1", registry.host)).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_1_is_refused_by_name() {
    let registry = Scripted::start().await;
    let manifest = Blob {
        media_type: "application/vnd.docker.distribution.manifest.v1+prettyjws",
        bytes: br#"{"schemaVersion": 1, "name": "old", "fsLayers": [], "history": []}"#.to_vec(),
    };
    registry.put_at("/v2/old/manifests/1".to_owned(), &manifest);
    let test = TestStore::new(&[&registry.host]);
    let error = test.pull(&format!("{}/old:1", registry.host)).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("schema 1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_is_refused_by_name() {
    let registry = Scripted::start().await;
    let mut image = TestImage::of(&[tar_of(&[("a", b"a")])]);
    image.layers[0].media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    image.seal();
    registry.put("foreign:1", &image);
    let test = TestStore::new(&[&registry.host]);
    let error = test.pull(&format!("{}/foreign:1", registry.host)).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("foreign layer")));
    assert!(registry.requests(image.layers[0].digest()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_beyond_the_limits_is_refused_and_leaves_nothing() {
    let registry = Registry::start().await;
    let zeros = vec![0; 8 << 20];
    let bomb = TestImage::of(&[tar_of(&[("zeros", &zeros)])]);
    registry.push("bomb:1", &bomb).await;
    let names: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    registry.push("many:1", &TestImage::of(&[tar_of(&files)])).await;
    registry.push("deep:1", &TestImage::of(&[tar_of(&[(&"d/".repeat(40), b"")])])).await;
    // Its blob says so before it is asked for.
    let heavy = tar_of(&[("zeros", &zeros)]);
    let plain = Blob { media_type: OCI_TAR, bytes: heavy.clone() };
    registry.push("heavy:1", &TestImage::of_blobs(vec![(heavy, plain)])).await;
    let test = TestStore::with(&[&registry.host], "", |options| {
        options.limits = Limits { bytes: 4 << 20, entries: 100, depth: 30, ..options.limits };
    });
    for (name, said) in [
        ("bomb", "4194304 bytes"),
        ("many", "100 entries"),
        ("deep", "30 dir"),
        ("heavy", "4194304 bytes"),
    ] {
        let error = test.pull(&format!("{}/{name}:1", registry.host)).await.unwrap_err();
        let Error::TooLarge { source, .. } = &error else { panic!("{name}: {error:?}") };
        let chain = format!("{source}: {:?}", source.source().map(ToString::to_string));
        assert!(chain.contains(said), "{name}: {chain}");
        assert!(test.layers().is_empty() && test.incoming().is_empty(), "{name}");
    }
}

/// An archive in one frame with a window of so many bytes, as a power of two.
fn wide(archive: &[u8], level: i32, log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.window_log(log).unwrap();
    std::io::Write::write_all(&mut encoder, archive).unwrap();
    encoder.finish().unwrap()
}

fn zstd_layer(archive: &[u8], bytes: Vec<u8>) -> (Vec<u8>, Blob) {
    (archive.to_vec(), Blob { media_type: OCI_ZSTD, bytes })
}

#[tokio::test(flavor = "multi_thread")]
async fn zstd_windows_take_turns_and_those_beyond_32_mib_are_refused() {
    let registry = Registry::start().await;
    let archive = |content: u8| tar_of(&[("file", &vec![content; 1 << 20])]);
    let layer =
        |content: u8, log: u32| zstd_layer(&archive(content), wide(&archive(content), 3, log));
    // Together they want four times what a pull has for all windows, or the one large window.
    for (name, log) in [("several", 23), ("large", 24), ("largest", 25)] {
        let image = TestImage::of_blobs((0..8).map(|content| layer(content, log)).collect());
        registry.push(&format!("{name}:1"), &image).await;
    }
    // The second frame is the one that reaches back so far.
    let (front, back) = (archive(1)[..700].to_vec(), archive(1)[700..].to_vec());
    let later = |log| [wide(&front, 3, 20), wide(&back, 3, log)].concat();
    for (name, layer) in [
        ("later", zstd_layer(&archive(1), later(25))),
        ("greedy", layer(1, 27)),
        ("greedy-later", zstd_layer(&archive(1), later(26))),
    ] {
        registry.push(&format!("{name}:1"), &TestImage::of_blobs(vec![layer])).await;
    }
    let test = TestStore::new(&[&registry.host]);
    for (name, said) in [("greedy", "128 MiB"), ("greedy-later", "64 MiB")] {
        let error = test.pull(&format!("{}/{name}:1", registry.host)).await.unwrap_err();
        let Error::Unsupported { what, .. } = &error else { panic!("{error:?}") };
        assert!(what.contains(said) && what.contains("at most 32"), "{what}");
        assert!(test.layers().is_empty() && test.incoming().is_empty(), "{name}");
    }
    let names =
        ["several", "large", "largest", "later"].map(|name| format!("{}/{name}:1", registry.host));
    for pulled in futures_util::future::join_all(names.iter().map(|name| test.pull(name))).await {
        pulled.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_zstd_reaches_back_for_in_32_mib_is_found() {
    let mut state = 1_u32;
    let byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    let noise: Vec<u8> = std::iter::repeat_with(byte).take(256 << 10).collect();
    // Beyond a window of 8 MiB.
    let archive = tar_of(&[("a", &noise), ("between", &vec![0; 20 << 20]), ("b", &noise)]);
    // As `zstd --ultra -22 --long=25` does.
    let bytes = wide(&archive, 22, 25);
    assert!(bytes.len() < noise.len() * 3 / 2, "{} bytes", bytes.len());
    let registry = Registry::start().await;
    registry.push("long:1", &TestImage::of_blobs(vec![zstd_layer(&archive, bytes)])).await;
    let test = TestStore::new(&[&registry.host]);
    let pulled = test.pull(&format!("{}/long:1", registry.host)).await.unwrap();
    assert!(test.read(&pulled, "b") == noise);
}

/// A small file system of its own.
struct Disk {
    place: tempfile::TempDir,
}

impl Disk {
    fn of(limit: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let options = format!("{limit},mode=755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "cria-test"]).arg(place.path());
        assert!(mount.status().unwrap().success());
        Self { place }
    }

    fn path(&self) -> &Path {
        self.place.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a store's last thread may still be at work.
        let _ = Command::new("umount").arg("--lazy").arg(self.place.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_in_mid_pull_leaves_the_store_as_it_was() {
    // The first layers fit, and are complete before the last fills the disk.
    let sizes = (0..6_u8).map(|n| tar_of(&[("piece", &vec![n; (usize::from(n) + 1) << 20])]));
    let counts = (0..6).map(|layer| {
        let names: Vec<_> = (0..(layer + 1) * 20).map(|n| format!("{layer}-{n}")).collect();
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        tar_of(&files)
    });
    let by_size = TestImage::of(&sizes.collect::<Vec<_>>());
    let by_count = TestImage::of(&counts.collect::<Vec<_>>());
    for (limit, large) in [("size=8m", by_size), ("nr_inodes=250", by_count)] {
        for parallel in [1, 6] {
            fill_up(limit, &large, parallel).await;
        }
    }
}

async fn fill_up(limit: &str, large: &TestImage, parallel: usize) {
    let registry = Registry::start().await;
    let small = TestImage::of(&[tar_of(&[("small", b"small")])]);
    registry.push("small:1", &small).await;
    registry.push("large:1", large).await;

    let disk = Disk::of(limit);
    let store = store_on(&disk, &registry.host, parallel);
    pull(&store, &registry.host, "small").await.unwrap();
    let before = (names(&disk.path().join("layers")), store.usage());
    for _ in 0..3 {
        let error = pull(&store, &registry.host, "large").await.unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{limit}: {error:?}");
        // Layers beside the one that failed may still come to their end.
        crate::support::until("what was begun is erased", || {
            names(&disk.path().join("incoming")).is_empty()
        })
        .await;
        assert_eq!((names(&disk.path().join("layers")), store.usage()), before);
        assert_eq!(store.list().len(), 1);
    }
    pull(&store, &registry.host, "small").await.unwrap();
}

fn store_on(disk: &Disk, host: &str, parallel: usize) -> Store {
    let directory = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new("this boot");
    options.registries = registries(directory.path(), &[host], "");
    options.platform.architecture = "amd64".to_owned();
    options.parallel_layers = parallel.try_into().unwrap();
    let store = Store::open(disk.path(), options).unwrap();
    store.collect();
    store
}

async fn pull(store: &Store, host: &str, name: &str) -> Result<Arc<Image>, Error> {
    let reference = format!("{host}/{name}:1");
    let credentials = Credentials::Anonymous;
    store.pull(PullRequest { reference: &reference, credentials, namespace: "" }).await
}

/// Also with the image's own record, and with the layer that it needs on top.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_at_any_moment_keeps_nothing_of_the_image() {
    let mut below = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    below.append_data(&mut header, "tmp/", std::io::empty()).unwrap();
    let image = TestImage::of(&[below.into_inner().unwrap(), tar_of(&[("tmp/x", b"x")])]);
    let registry = Scripted::start().await;
    registry.put("app:1", &image);
    let mut failed = 0;
    for inodes in 6.. {
        let disk = Disk::of(&format!("nr_inodes={inodes}"));
        let store = store_on(&disk, &registry.host, 6);
        match pull(&store, &registry.host, "app").await {
            Ok(image) => {
                assert_eq!(store.lease(&image.id).unwrap().lower_directories().len(), 3);
                break;
            }
            Err(error) => {
                assert!(matches!(error, Error::NoSpace { .. }), "{inodes}: {error:?}");
                failed += 1;
            }
        }
        for place in ["incoming", "layers", "images"] {
            let what = format!("{inodes} inodes: {place}");
            crate::support::until(&what, || names(&disk.path().join(place)).is_empty()).await;
        }
        assert_eq!(store.usage(), cria_images::Usage::default());
    }
    assert!(failed > 8, "{failed}");
}
