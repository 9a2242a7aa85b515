//! OCI artifacts, from a real registry: files, archives, and what they are called.

use std::os::unix::fs::PermissionsExt;

use cria_images::{Digest, Error};
use serde_json::{Value, json};

use crate::support::{Blob, OCI_GZIP, OCI_MANIFEST, OCI_TAR, Registry, TestImage, TestStore};
use crate::support::{gzip, tar_of};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";

fn file(content: &[u8]) -> Blob {
    Blob { media_type: "application/octet-stream", bytes: content.to_vec() }
}

/// What `oras push` makes of these blobs and their annotations.
fn artifact(blobs: &[(Blob, Value)]) -> TestImage {
    let config = Blob { media_type: EMPTY, bytes: b"{}".to_vec() };
    let described: Vec<_> = blobs
        .iter()
        .map(|(blob, annotations)| {
            let mut descriptor = blob.descriptor();
            descriptor["annotations"] = annotations.clone();
            descriptor
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.model", "config": config.descriptor(),
        "layers": described});
    let bytes = serde_json::to_vec(&manifest).unwrap();
    TestImage {
        config,
        layers: blobs.iter().map(|(blob, _)| blob.clone()).collect(),
        manifest: Blob { media_type: OCI_MANIFEST, bytes },
    }
}

fn titled(title: &str) -> Value {
    json!({"org.opencontainers.image.title": title})
}

fn unpacked(title: &str) -> Value {
    json!({"org.opencontainers.image.title": title, "io.deis.oras.content.unpack": "true"})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifacts_blobs_are_files_and_directories_as_its_annotations_say() {
    let registry = Registry::start().await;
    let tar = tar_of(&[("folder/inside", b"inside")]);
    let text = Blob { media_type: OCI_TAR, bytes: b"no archive at all".to_vec() };
    let nameless = file(b"nameless");
    let image = artifact(&[
        (file(b"weights"), titled("deep/er/model.gguf")),
        (text, titled("file.txt")),
        (Blob { media_type: OCI_GZIP, bytes: gzip(&tar) }, unpacked("folder")),
        (nameless.clone(), json!({})),
        (Blob { media_type: EMPTY, bytes: b"{}".to_vec() }, json!({})),
    ]);
    registry.push("model:1", &image).await;
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/model:1", registry.host);
    let pulled = test.pull(&name).await.unwrap();

    assert_eq!(pulled.id.digest(), image.manifest.digest(), "its id is its manifest's digest");
    assert!(pulled.config.is_none() && pulled.user().is_none());
    assert_eq!(pulled.tags, std::slice::from_ref(&name));
    assert!(pulled.size_bytes > 0);
    let unnamed = format!("sha256-{}", nameless.digest().hex());
    for (path, content) in [
        ("deep/er/model.gguf", &b"weights"[..]),
        ("file.txt", b"no archive at all"),
        ("folder/inside", b"inside"),
        (&unnamed, b"nameless"),
    ] {
        assert_eq!(test.read(&pulled, path), content, "{path}");
    }
    assert_eq!(test.layers().len(), 4, "the empty blob is nothing");
    let lease = test.store.lease(&pulled.id).unwrap();
    let file = lease
        .lower_directories()
        .iter()
        .find_map(|root| fs_err::metadata(root.join("file.txt")).ok());
    assert_eq!(file.unwrap().permissions().mode() & 0o7777, 0o644);

    // Found again by each of its names, also by a store that is opened anew.
    for name in [&name, &pulled.digests[0], &pulled.id.to_string()] {
        assert_eq!(test.store.find(name).unwrap().unwrap().id, pulled.id, "{name}");
    }
    let again = test.reopen();
    assert_eq!(again.find(&name).unwrap().unwrap().id, pulled.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_artifacts_with_the_empty_config_are_two_images_that_share_what_is_the_same() {
    let registry = Registry::start().await;
    let shared = || (file(b"shared"), titled("shared"));
    let [one, two] = [b"one", b"two"].map(|own| artifact(&[shared(), (file(own), titled("own"))]));
    registry.push("one:1", &one).await;
    registry.push("two:1", &two).await;
    let test = TestStore::new(&[&registry.host]);
    let one = test.pull(&format!("{}/one:1", registry.host)).await.unwrap();
    let two = test.pull(&format!("{}/two:1", registry.host)).await.unwrap();
    assert_ne!(one.id, two.id);
    assert_eq!(test.layers().len(), 3);
    assert_eq!(
        (test.read(&one, "own"), test.read(&two, "own")),
        (b"one".to_vec(), b"two".to_vec())
    );

    test.store.remove(&one.id.to_string()).unwrap();
    assert_eq!(test.read(&two, "shared"), b"shared");
    test.store.remove(&two.id.to_string()).unwrap();
    assert_eq!(test.layers(), [""; 0], "nothing of them is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_title_that_leads_out_of_the_artifact_is_refused_by_its_name() {
    let registry = Registry::start().await;
    for title in ["../../etc/cron.d/evil", "/etc/passwd", "a/../../b", ".", "a/"] {
        registry.push("evil:1", &artifact(&[(file(b"x"), titled(title))])).await;
        let test = TestStore::new(&[&registry.host]);
        let error = test.pull(&format!("{}/evil:1", registry.host)).await.unwrap_err();
        let Error::Unsupported { what, .. } = &error else { panic!("{title}: {error}") };
        assert!(what.contains(title), "{what}");
        assert_eq!(test.layers(), [""; 0]);
        assert_eq!(test.incoming(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_its_digest_says_is_refused() {
    let registry = Registry::start().await;
    let honest = artifact(&[(file(b"honest"), titled("model"))]);
    registry.push("model:1", &honest).await;
    let digest = Digest::of(b"honest").hex();
    let blobs = registry.data().join("docker/registry/v2/blobs/sha256");
    fs_err::write(blobs.join(&digest[..2]).join(&digest).join("data"), b"forged").unwrap();
    let test = TestStore::new(&[&registry.host]);
    let error = test.pull(&format!("{}/model:1", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!((test.layers(), test.incoming()), (vec![], vec![]));
}
