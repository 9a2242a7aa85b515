//! A network that breaks at any byte, and a process that dies at any moment.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cria_images::{Credentials, Digest, PullRequest, Store, StoreOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{Registry, TestImage, TestStore, names, registries, tar_of, until};

/// xorshift: the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.below(256).to_le_bytes()[0]).take(count).collect()
    }
}

/// An image of several layers that do not compress.
fn image(random: &mut Random, layers: usize, bytes: usize) -> TestImage {
    let archive = |number: usize, content: &[u8]| {
        let names: Vec<_> = (0..20).map(|n| format!("{number}/file-{n}")).collect();
        let pieces = content.chunks(content.len().div_ceil(20));
        let files: Vec<_> = names.iter().map(String::as_str).zip(pieces).collect();
        tar_of(&files)
    };
    let archives = (0..layers).map(|number| archive(number, &random.bytes(bytes)));
    TestImage::of(&archives.collect::<Vec<_>>())
}

/// Stands before a registry, and ends each connection after some number of its answers' bytes.
struct Cutter {
    host: String,
    counts: Arc<Counts>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    cuts: AtomicUsize,
    /// Connections that ended at once, because the registry was down.
    vain: AtomicUsize,
    /// Bytes of its answers.
    passed: AtomicU64,
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Cutter {
    /// Cuts after `least` bytes and up to `spread` more.
    async fn before(registry: &str, seed: u64, least: u64, spread: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (registry, counts) = (registry.to_owned(), Arc::new(Counts::default()));
        let counted = Arc::clone(&counts);
        let server = tokio::spawn(async move {
            let mut random = Random(seed);
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect(&registry).await else {
                    counted.vain.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let (after, counts) = (least + random.below(spread), Arc::clone(&counted));
                tokio::spawn(async move { drop(pass(client, server, after, &counts).await) });
            }
        });
        Self { host, counts, server }
    }

    fn cuts(&self) -> usize {
        self.counts.cuts.load(Ordering::Relaxed)
    }

    fn vain(&self) -> usize {
        self.counts.vain.load(Ordering::Relaxed)
    }

    fn passed(&self) -> u64 {
        self.counts.passed.load(Ordering::Relaxed)
    }
}

async fn pass(
    client: TcpStream,
    server: TcpStream,
    after: u64,
    counts: &Counts,
) -> std::io::Result<()> {
    let (mut asks, mut told) = client.into_split();
    let (mut answers, mut asked) = server.into_split();
    let up = async { tokio::io::copy(&mut asks, &mut asked).await.map(drop) };
    let down = async {
        let copied = tokio::io::copy(&mut (&mut answers).take(after), &mut told).await?;
        counts.passed.fetch_add(copied, Ordering::Relaxed);
        if copied == after {
            counts.cuts.fetch_add(1, Ordering::Relaxed);
        }
        told.shutdown().await
    };
    tokio::select! { done = up => done, done = down => done }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_breaks_at_random_bytes_costs_no_byte_twice() {
    let registry = Registry::start().await;
    let image = image(&mut Random(7), 4, 1 << 20);
    registry.push("app:1", &image).await;
    let whole: u64 = image.blobs().map(|blob| blob.bytes.len() as u64).sum();
    for seed in 1..=12 {
        let cutter = Cutter::before(&registry.host, seed, 8 << 10, 256 << 10).await;
        let test = TestStore::new(&[&cutter.host]);
        let pulled = test.pull(&format!("{}/app:1", cutter.host)).await.unwrap();
        assert_eq!(pulled.id.to_string(), image.id(), "seed {seed}");
        let (cuts, passed) = (cutter.cuts(), cutter.passed());
        assert!(cuts >= 4 << 2, "seed {seed}: {cuts} cuts");
        // What is said around the blobs: headers, the manifest, what was asked in vain.
        let around = (cuts as u64 + 20) * 2000;
        assert!(passed < whole + around, "seed {seed}: {passed} of {whole} bytes, {cuts} cuts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_for_a_while_in_mid_pull_costs_no_byte_twice() {
    let mut registry = Registry::start().await;
    let image = image(&mut Random(13), 4, 2 << 20);
    registry.push("app:1", &image).await;
    let whole: u64 = image.blobs().map(|blob| blob.bytes.len() as u64).sum();
    let cutter = Cutter::before(&registry.host, 1, 300 << 10, 1).await;
    let test = TestStore::with(&[&cutter.host], "", |options| {
        options.stall_timeout = Duration::from_secs(30);
    });
    let name = format!("{}/app:1", cutter.host);
    let outage = async {
        until("every layer has begun", || cutter.cuts() >= 4).await;
        registry.stop();
        // With the one that was cut these are as many tries as a layer has before its first byte.
        until("it was missed for long", || cutter.vain() >= 3 * 4).await;
        registry.start_again().await;
    };
    let (pulled, ()) = tokio::join!(test.pull(&name), outage);
    assert_eq!(pulled.unwrap().id.to_string(), image.id());
    let around = (cutter.cuts() + cutter.vain() + 20) as u64 * 2000;
    let passed = cutter.passed();
    assert!(passed < whole + around, "{passed} of {whole} bytes");
    assert_eq!(test.store.pull_counts().bytes_received, whole);
}

/// What a directory tree holds: by path, attributes and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, Option<Digest>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs_err::symlink_metadata(&path).unwrap();
        let content = metadata.is_file().then(|| Digest::of(&fs_err::read(&path).unwrap()));
        if metadata.is_dir() {
            waiting.extend(fs_err::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let modified = if metadata.is_file() { metadata.mtime() } else { 0 };
        found.insert(relative, (metadata.mode(), metadata.uid(), modified, content));
    }
    found
}

fn open(root: &Path, host: &str) -> Store {
    let directory = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new("this boot");
    options.platform.architecture = "amd64".to_owned();
    options.registries = registries(directory.path(), &[host], "");
    let store = Store::open(root, options).unwrap();
    store.collect();
    store
}

async fn pull(store: &Store, host: &str) -> String {
    let reference = format!("{host}/app:1");
    let pull =
        PullRequest { reference: &reference, credentials: Credentials::Anonymous, namespace: "" };
    store.pull(pull).await.unwrap().id.to_string()
}

/// Ends what it stands for, whatever becomes of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How often the puller dies.
fn deaths() -> u64 {
    std::env::var("CRIA_TEST_KILLS").map_or(200, |kills| kills.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_puller_killed_at_any_moment_leaves_only_what_is_whole() {
    let registry = Registry::start().await;
    let image = image(&mut Random(9), 5, 128 << 10);
    registry.push("app:1", &image).await;
    let directory = tempfile::tempdir().unwrap();
    let (reference, root) = (directory.path().join("reference"), directory.path().join("store"));
    let id = pull(&open(&reference, &registry.host), &registry.host).await;
    let expected: BTreeMap<_, _> = names(&reference.join("layers"))
        .into_iter()
        .map(|layer| (layer.clone(), tree(&reference.join("layers").join(layer).join("fs"))))
        .collect();

    let mut random = Random(11);
    let (mut held_images, mut held_layers) = (0, 0);
    for death in 0..deaths() {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "--ignored", "cuts::pulls_and_removes_for_ever"]);
        program.env("CRIA_TEST_STORE", &root).env("CRIA_TEST_REGISTRY", &registry.host);
        let puller = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let puller = Killed(puller);
        let pause = Duration::from_micros(20_000 + random.below(400_000));
        tokio::time::sleep(pause).await;
        drop(puller);

        if !root.exists() {
            continue;
        }
        let store = open(&root, &registry.host);
        let images = store.list();
        held_images += images.len();
        for layer in names(&root.join("layers")) {
            held_layers += 1;
            let held = tree(&root.join("layers").join(&layer).join("fs"));
            assert!(expected.get(&layer) == Some(&held), "death {death}: layer {layer} is damaged");
        }
        for image in images {
            assert_eq!(image.id.to_string(), id);
            assert_eq!(store.lease(&image.id).unwrap().lower_directories().len(), expected.len());
        }
    }
    assert!(held_layers > 0, "it always died too early to say anything");
    println!("{held_images} images and {held_layers} layers outlived their puller");
    let store = open(&root, &registry.host);
    assert_eq!(pull(&store, &registry.host).await, id);
    assert_eq!(names(&root.join("layers")), expected.keys().cloned().collect::<Vec<_>>());
    let deadline = Instant::now() + Duration::from_secs(20);
    while !names(&root.join("incoming")).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", names(&root.join("incoming")));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run and killed by the test above"]
async fn pulls_and_removes_for_ever() {
    let root = PathBuf::from(std::env::var("CRIA_TEST_STORE").unwrap());
    let host = std::env::var("CRIA_TEST_REGISTRY").unwrap();
    let store = open(&root, &host);
    loop {
        let id = pull(&store, &host).await;
        store.remove(&id).unwrap();
    }
}
