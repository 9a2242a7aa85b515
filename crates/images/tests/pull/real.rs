//! Pulls from a real registry.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use cria_images::{Certificates, Credentials, Error, NodeCredentials, Trust};
use serde_json::json;

use crate::support::{
    Blob, OCI_GZIP, OCI_INDEX, OCI_TAR, OCI_ZSTD, Registry, TestImage, TestStore, gzip, tar_of,
};

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn user(password: &str) -> Credentials {
    Credentials::Basic { username: "user".to_owned(), password: password.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_listed_leased_and_removed() {
    let registry = Registry::start().await;
    let image = TestImage::of(&[
        tar_of(&[("etc/a", b"lower"), ("etc/b", b"kept")]),
        tar_of(&[("etc/a", b"upper")]),
    ]);
    registry.push("team/app:1", &image).await;
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/team/app:1", registry.host);

    let pulled = test.pull(&name).await.unwrap();
    assert_eq!(pulled.id.to_string(), image.id());
    assert_eq!(pulled.tags, [name.as_str()]);
    let digest = format!("{}/team/app@{}", registry.host, image.manifest.digest());
    assert_eq!(pulled.digests, [digest.as_str()]);
    assert!(pulled.size_bytes > 0);
    assert_eq!(pulled.user(), Some(cria_images::User::Id(1002)));
    assert_eq!(test.read(&pulled, "etc/a"), b"upper");
    assert_eq!(test.read(&pulled, "etc/b"), b"kept");

    for name in [&name, &digest, &image.id(), &image.config.digest().hex()[..12].to_owned()] {
        let found = test.store.find(name).unwrap().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(found.id, pulled.id, "{name}");
    }
    let lease = test.store.lease(&pulled.id).unwrap();
    test.store.remove(&name).unwrap();
    assert!(test.store.list().is_empty());
    assert_eq!(test.layers().len(), 2, "leased layers stay");
    drop(lease);
    assert!(test.layers().is_empty());
    assert_eq!(test.store.usage(), cria_images::Usage::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_image_is_still_the_registrys_to_give() {
    let registry = Registry::start_private().await;
    let image = TestImage::of(&[tar_of(&[("a", b"a")])]);
    registry.push("private:1", &image).await;
    let test = TestStore::new(&[&registry.host]);
    let by_tag = format!("{}/private:1", registry.host);
    let by_digest = format!("{}/private@{}", registry.host, image.manifest.digest());

    test.pull_as(&by_tag, user("secret")).await.unwrap();
    for name in [&by_tag, &by_digest] {
        for credentials in [Credentials::Anonymous, user("wrong")] {
            let error = test.pull_as(name, credentials.clone()).await.unwrap_err();
            assert!(matches!(error, Error::Unauthorized { .. }), "{name} {credentials:?}: {error}");
        }
        test.pull_as(name, user("secret")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_layer_and_manifest_is_pulled() {
    let registry = Registry::start().await;
    let files = |name: &'static str| tar_of(&[(name, name.as_bytes())]);
    let blob = |media_type, bytes| Blob { media_type, bytes };
    let (gzipped, zipped, plain, members) = (files("g"), files("z"), files("p"), files("m"));
    let (front, back) = members.split_at(700);
    let mut image = TestImage::of_blobs(vec![
        (gzipped.clone(), blob(OCI_GZIP, gzip(&gzipped))),
        (zipped.clone(), blob(OCI_ZSTD, zstd::encode_all(&zipped[..], 3).unwrap())),
        (plain.clone(), blob(OCI_TAR, plain)),
        (members.clone(), blob(OCI_GZIP, [gzip(front), gzip(back)].concat())),
        // The media type lies, as some do.
        (files("l"), blob(OCI_GZIP, zstd::encode_all(&files("l")[..], 3).unwrap())),
    ]);
    registry.push("kinds:oci", &image).await;
    image.manifest.media_type = "application/vnd.docker.distribution.manifest.v2+json";
    image.config.media_type = "application/vnd.docker.container.image.v1+json";
    for layer in &mut image.layers {
        layer.media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    }
    image.seal();
    registry.push("kinds:docker", &image).await;
    let entry = |digest: cria_images::Digest, size: usize, architecture: &str| {
        json!({"mediaType": image.manifest.media_type, "digest": digest, "size": size,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        entry(cria_images::Digest::of(b"elsewhere"), 9, "arm64"),
        entry(image.manifest.digest(), image.manifest.bytes.len(), "amd64"),
    ]});
    let index = blob(OCI_INDEX, serde_json::to_vec(&index).unwrap());

    for tag in ["oci", "docker"] {
        let test = TestStore::new(&[&registry.host]);
        let pulled = test.pull(&format!("{}/kinds:{tag}", registry.host)).await.unwrap();
        for name in ["g", "z", "p", "m", "l"] {
            assert_eq!(test.read(&pulled, name), name.as_bytes(), "{tag}");
        }
    }
    // The real registry takes no index whose parts it lacks; the scripted one does.
    let scripted = crate::scripted::Scripted::start().await;
    scripted.put("kinds:1", &image);
    scripted.put_at("/v2/kinds/manifests/index".to_owned(), &index);
    let test = TestStore::new(&[&scripted.host]);
    let pulled = test.pull(&format!("{}/kinds:index", scripted.host)).await.unwrap();
    assert_eq!(pulled.id.to_string(), image.id());
    assert_eq!(pulled.digests, [format!("{}/kinds@{}", scripted.host, index.digest())]);

    let text = String::from_utf8(index.bytes).unwrap().replace(OCI_INDEX, DOCKER_LIST);
    let list = blob(DOCKER_LIST, text.into_bytes());
    scripted.put_at("/v2/kinds/manifests/list".to_owned(), &list);
    let pulled = test.pull(&format!("{}/kinds:list", scripted.host)).await.unwrap();
    assert_eq!(pulled.id.to_string(), image.id());
    let digest = format!("{}/kinds@{}", scripted.host, list.digest());
    assert!(pulled.digests.contains(&digest), "{:?}", pulled.digests);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_tag_and_digest_means_the_digest() {
    let registry = Registry::start().await;
    let [old, new] = [b"old", b"new"].map(|content| TestImage::of(&[tar_of(&[("a", content)])]));
    registry.push("app:1", &old).await;
    registry.push("app:1", &new).await;
    let test = TestStore::new(&[&registry.host]);
    let repository = format!("{}/app", registry.host);
    let digest = old.manifest.digest();
    // Wherever the tag points by now, and also if there is none.
    for name in [format!("{repository}:1@{digest}"), format!("{repository}:none@{digest}")] {
        let pulled = test.pull(&name).await.unwrap();
        assert_eq!(pulled.id.to_string(), old.id(), "{name}");
        assert!(pulled.tags.is_empty(), "the registry was not asked for the tag");
        assert_eq!(pulled.digests, [format!("{repository}@{digest}")]);
        let found = test.store.find(&name).unwrap().unwrap();
        assert_eq!(found.id, pulled.id, "{name}");
    }
    let name = format!("{repository}:1");
    assert!(test.store.find(&name).unwrap().is_none());
    assert_eq!(test.pull(&name).await.unwrap().id.to_string(), new.id());
    let found = test.store.find(&format!("{name}@{digest}")).unwrap().unwrap();
    assert_eq!(found.id.to_string(), old.id());
    test.store.remove(&format!("{name}@{digest}")).unwrap();
    assert_eq!(test.store.list().len(), 1, "the other stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_leaves_the_old_image_without_it() {
    let registry = Registry::start().await;
    let (old, new) =
        (TestImage::of(&[tar_of(&[("v", b"1")])]), TestImage::of(&[tar_of(&[("v", b"2")])]));
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/app:latest", registry.host);
    registry.push("app:latest", &old).await;
    test.pull(&name).await.unwrap();
    registry.push("app:latest", &new).await;
    test.pull(&name).await.unwrap();

    assert_eq!(test.store.find(&name).unwrap().unwrap().id.to_string(), new.id());
    let kept = test.store.find(&old.id()).unwrap().unwrap();
    assert!(kept.tags.is_empty());
    assert_eq!(kept.digests.len(), 1);
    test.store.remove(&kept.digests[0]).unwrap();
    assert_eq!(test.store.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_layer_is_mounted_once() {
    let registry = Registry::start().await;
    let (a, b) = (tar_of(&[("f", b"a")]), tar_of(&[("f", b"b")]));
    registry.push("twice:1", &TestImage::of(&[a.clone(), b, a])).await;
    let test = TestStore::new(&[&registry.host]);
    let pulled = test.pull(&format!("{}/twice:1", registry.host)).await.unwrap();
    assert_eq!(pulled.layers.len(), 3);
    assert_eq!(test.store.lease(&pulled.id).unwrap().lower_directories().len(), 2);
    assert_eq!(test.read(&pulled, "f"), b"a");
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_and_unknown_images_are_told_apart() {
    let registry = Registry::start().await;
    let rule = format!("[[registry]]\nlocation = \"{}/no\"\nblocked = true\n", registry.host);
    let test = TestStore::with(&[&registry.host], &rule, |_| {});
    let error = test.pull(&format!("{}/no/app", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::Blocked { .. }), "{error:?}");
    let error = test.pull(&format!("{}/app", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let error = test.pull("not an image").await.unwrap_err();
    assert!(matches!(error, Error::InvalidReference { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_credentials_serve_callers_without_any() {
    let registry = Registry::start_private().await;
    registry.push("private:1", &TestImage::of(&[tar_of(&[("a", b"a")])])).await;
    let test = TestStore::new(&[&registry.host]);
    let path = test.directory.path().join("auth.json");
    let auths = json!({"auths": {(registry.host.clone()): {"auth": "dXNlcjpzZWNyZXQ="}}});
    fs_err::write(&path, auths.to_string()).unwrap();
    let name = format!("{}/private:1", registry.host);
    assert!(test.pull(&name).await.is_err());

    let registries = crate::support::registries(test.directory.path(), &[&registry.host], "");
    let credentials = NodeCredentials::load(&path).unwrap();
    test.store.use_sources(registries, credentials, Trust::default(), Certificates::default());
    test.pull(&name).await.unwrap();
    assert!(test.pull_as(&name, user("wrong")).await.is_err());
}

/// An overlay mount that goes away with its test.
pub(crate) struct Overlay(pub(crate) std::path::PathBuf);

impl Overlay {
    pub(crate) fn mount(lower: &[std::path::PathBuf], at: std::path::PathBuf) -> Self {
        fs_err::create_dir(&at).unwrap();
        let lower: Vec<_> = lower.iter().map(|path| path.to_str().unwrap()).collect();
        let options = format!("lowerdir={}", lower.join(":"));
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&at);
        assert!(mount.status().unwrap().success());
        Self(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlayfs_shows_the_layers_as_if_unpacked_one_over_the_other() {
    let registry = Registry::start().await;
    let mut base = tar::Builder::new(Vec::new());
    for (name, mode) in [("tmp/", 0o1777), ("gone/", 0o755), ("hidden/", 0o700)] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        base.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    for name in ["gone/file", "hidden/below", "kept"] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(4);
        base.append_data(&mut header, name, &b"base"[..]).unwrap();
    }
    let image = TestImage::of(&[
        base.into_inner().unwrap(),
        tar_of(&[
            ("tmp/x", b"top"),
            (".wh.gone", b""),
            ("hidden/.wh..wh..opq", b""),
            ("hidden/above", b"top"),
        ]),
    ]);
    registry.push("app:1", &image).await;
    let test = TestStore::new(&[&registry.host]);
    let pulled = test.pull(&format!("{}/app:1", registry.host)).await.unwrap();
    let lease = test.store.lease(&pulled.id).unwrap();
    let overlay = Overlay::mount(&lease.lower_directories(), test.directory.path().join("merged"));

    assert_eq!(crate::support::names(&overlay.0), ["hidden", "kept", "tmp"]);
    assert_eq!(crate::support::names(&overlay.0.join("hidden")), ["above"]);
    assert_eq!(fs_err::read(overlay.0.join("tmp/x")).unwrap(), b"top");
    let mode = fs_err::metadata(overlay.0.join("tmp")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1777, "the layer that left tmp out does not change it");
}
