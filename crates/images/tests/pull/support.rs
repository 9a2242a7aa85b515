//! Images made up for tests, and registries to serve them.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cria_images::{Credentials, Digest, PullRequest, Registries, Store, StoreOptions};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use serde_json::{Value, json};

/// `user:secret`, as the registry's password file wants it.
const PASSWORDS: &str = "user:$2b$04$ulzivCy9FwoM.YCh5KXkPOefq07ImhZ5hZzAPEI1xO/ObaOks4N66\n";

pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A blob and what manifests call it.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl Blob {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

pub(crate) const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const OCI_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An image: its config, its layers bottom first, its manifest.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
    pub(crate) manifest: Blob,
}

impl TestImage {
    /// Of uncompressed archives, each gzipped.
    pub(crate) fn of(archives: &[Vec<u8>]) -> Self {
        let layers = archives
            .iter()
            .map(|tar| (tar.clone(), Blob { media_type: OCI_GZIP, bytes: gzip(tar) }))
            .collect();
        Self::of_blobs(layers)
    }

    /// Of archives and the blobs that are said to hold them.
    pub(crate) fn of_blobs(layers: Vec<(Vec<u8>, Blob)>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|(tar, _)| Digest::of(tar)).collect();
        let config = json!({"architecture": "amd64", "os": "linux",
            "config": {"User": "1002:50", "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let bytes = serde_json::to_vec(&config).unwrap();
        let config = Blob { media_type: OCI_CONFIG, bytes };
        let layers: Vec<_> = layers.into_iter().map(|(_, blob)| blob).collect();
        let mut image =
            Self { config, layers, manifest: Blob { media_type: OCI_MANIFEST, bytes: vec![] } };
        image.seal();
        image
    }

    /// Makes the manifest anew.
    pub(crate) fn seal(&mut self) {
        let layers: Vec<_> = self.layers.iter().map(Blob::descriptor).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": self.manifest.media_type,
            "config": self.config.descriptor(), "layers": layers});
        self.manifest.bytes = serde_json::to_vec(&manifest).unwrap();
    }

    pub(crate) fn id(&self) -> String {
        self.config.digest().to_string()
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config])
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for `what` to be true, with a deadline.
pub(crate) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A real registry on loopback.
pub(crate) struct Registry {
    process: Child,
    pub(crate) host: String,
    password: Option<&'static str>,
    config: Value,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::run(None).await
    }

    /// One that lets in `user` with `secret` alone.
    pub(crate) async fn start_private() -> Self {
        Self::run(Some("secret")).await
    }

    async fn run(password: Option<&'static str>) -> Self {
        Self::configured(password, &json!({})).await
    }

    /// One whose configuration has `more`, by top-level key. It must be pushed to elsewhere.
    pub(crate) async fn with(more: &Value, data: &Path) -> Self {
        let mut more = more.clone();
        more["storage"] = json!({"filesystem": {"rootdirectory": data}});
        Self::configured(None, &more).await
    }

    /// Its blobs and manifests, which another may serve, too.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    async fn configured(password: Option<&'static str>, more: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": directory.path().join("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        if password.is_some() {
            let path = directory.path().join("passwords");
            fs_err::write(&path, PASSWORDS).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": path}});
        }
        for (key, value) in more.as_object().unwrap() {
            match (config.get_mut(key).and_then(Value::as_object_mut), value) {
                (Some(known), Value::Object(value)) => known.extend(value.clone()),
                _ => config[key] = value.clone(),
            }
        }
        let (process, host) = serve(directory.path(), &config).await;
        // From now on it is always there.
        config["http"]["addr"] = json!(host);
        Self { process, host, password, config, directory }
    }

    /// Kills it.
    pub(crate) fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it where it was, with what it had.
    pub(crate) async fn start_again(&mut self) {
        (self.process, self.host) = serve(self.directory.path(), &self.config).await;
    }

    /// Stores `image` under `name`, `repository:tag`.
    pub(crate) async fn push(&self, name: &str, image: &TestImage) {
        self.push_blobs(name, image.blobs()).await;
        self.push_manifest(name, &image.manifest).await;
    }

    async fn push_blobs(&self, name: &str, blobs: impl Iterator<Item = &Blob>) {
        let (client, reference) = self.client(name).await;
        for blob in blobs {
            let digest = blob.digest().to_string();
            client.push_blob(&reference, blob.bytes.clone(), &digest).await.unwrap();
        }
    }

    pub(crate) async fn push_manifest(&self, name: &str, manifest: &Blob) {
        let (client, reference) = self.client(name).await;
        let media_type = manifest.media_type.parse().unwrap();
        client.push_manifest_raw(&reference, manifest.bytes.clone(), media_type).await.unwrap();
    }

    async fn client(&self, name: &str) -> (Client, oci_client::Reference) {
        install_crypto();
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        let client = Client::try_from(config).unwrap();
        let (repository, tag) = name.split_once(':').unwrap();
        let (host, repository) = (self.host.clone(), repository.to_owned());
        let reference = oci_client::Reference::with_tag(host, repository, tag.to_owned());
        let auth = match self.password {
            Some(password) => RegistryAuth::Basic("user".to_owned(), password.to_owned()),
            None => RegistryAuth::Anonymous,
        };
        client.auth(&reference, &auth, RegistryOperation::Push).await.unwrap();
        (client, reference)
    }
}

/// The real thing, with this configuration; and where it listens, by its own word.
async fn serve(directory: &Path, config: &Value) -> (Child, String) {
    let (file, log) = (directory.join("config.yml"), directory.join("log"));
    // JSON is YAML.
    fs_err::write(&file, config.to_string()).unwrap();
    let process = Command::new("docker-registry")
        .args(["serve".as_ref(), file.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .expect("docker-registry is installed");
    let mut host = None;
    until("registry is up", || {
        let said = fs_err::read_to_string(&log).unwrap();
        let rest = said.split_once("listening on ").map_or("", |(_, rest)| rest);
        // The line may be only half written.
        let end = rest.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ':'));
        host = end.map(|end| rest[..end].to_owned());
        host.is_some()
    })
    .await;
    (process, host.unwrap())
}

pub(crate) fn install_crypto() {
    // Whoever is first; the library does the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Rules by which registries at `hosts` are insecure, and `more`.
pub(crate) fn registries(directory: &Path, hosts: &[&str], more: &str) -> Arc<Registries> {
    let path = directory.join("registries.conf");
    let rule = |host: &&str| format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    let rules: String = hosts.iter().map(rule).collect();
    fs_err::write(&path, format!("{more}\n{rules}")).unwrap();
    Arc::new(Registries::load(Some(&path)).unwrap())
}

/// A store in a directory of its own.
pub(crate) struct TestStore {
    pub(crate) store: Store,
    pub(crate) directory: tempfile::TempDir,
}

impl TestStore {
    pub(crate) fn new(hosts: &[&str]) -> Self {
        Self::with(hosts, "", |_| {})
    }

    pub(crate) fn with(hosts: &[&str], more: &str, change: impl FnOnce(&mut StoreOptions)) -> Self {
        Self::opened(tempfile::tempdir().unwrap(), hosts, more, change)
    }

    /// What a process that begins anew finds in `directory`.
    pub(crate) fn again(directory: tempfile::TempDir, hosts: &[&str]) -> Self {
        Self::again_with(directory, hosts, |_| {})
    }

    pub(crate) fn again_with(
        directory: tempfile::TempDir,
        hosts: &[&str],
        change: impl FnOnce(&mut StoreOptions),
    ) -> Self {
        Self::opened(directory, hosts, "", change)
    }

    fn opened(
        directory: tempfile::TempDir,
        hosts: &[&str],
        more: &str,
        change: impl FnOnce(&mut StoreOptions),
    ) -> Self {
        let mut options = StoreOptions::new("this boot");
        options.platform.architecture = "amd64".to_owned();
        options.platform.variant = None;
        options.registries = registries(directory.path(), hosts, more);
        options.stall_timeout = Duration::from_secs(20);
        change(&mut options);
        let store = Store::open(&directory.path().join("store"), options).unwrap();
        store.collect();
        Self { store, directory }
    }

    /// The same directory, as a later process opens it.
    pub(crate) fn reopen(&self) -> Store {
        let root = self.directory.path().join("store");
        Store::open(&root, StoreOptions::new("this boot")).unwrap()
    }

    pub(crate) async fn pull(
        &self,
        reference: &str,
    ) -> Result<Arc<cria_images::Image>, cria_images::Error> {
        self.pull_as(reference, Credentials::Anonymous).await
    }

    pub(crate) async fn pull_as(
        &self,
        reference: &str,
        credentials: Credentials,
    ) -> Result<Arc<cria_images::Image>, cria_images::Error> {
        self.store.pull(PullRequest { reference, credentials, namespace: "" }).await
    }

    /// The layers on disk, by hex.
    pub(crate) fn layers(&self) -> Vec<String> {
        names(&self.directory.path().join("store/layers"))
    }

    pub(crate) fn incoming(&self) -> Vec<String> {
        names(&self.directory.path().join("store/incoming"))
    }

    /// A file of the topmost of an image's layers that has it.
    pub(crate) fn read(&self, image: &cria_images::Image, path: &str) -> Vec<u8> {
        let lease = self.store.lease(&image.id).unwrap();
        let places: Vec<PathBuf> =
            lease.lower_directories().iter().map(|root| root.join(path)).collect();
        let place = places.iter().find(|place| place.exists()).expect("a layer has it");
        fs_err::read(place).unwrap()
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs_err::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    let mut names: Vec<_> = fs_err::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}
