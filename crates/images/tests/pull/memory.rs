//! What a pull takes of memory, as the kernel counts it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::scripted::Scripted;
use crate::support::{Blob, OCI_ZSTD, TestImage, TestStore, tar_of};

/// What is repeated in a layer: enough to fill the queue between connection and decompressor.
const NOISE_BYTES: usize = 2 << 20;
/// A shared window together, so that each is filled.
const REPEATED: usize = 4;
/// Layers with the largest windows that a pull shares, and with the largest at all (as powers of two).
/// What the buffers of one pull may then be, in KiB: the windows of as many layers as are pulled at once
/// would alone be 48 and 128 MiB.
const BOUNDS: [(u64, u32, u64); 2] = [(10, 23, 32 << 10), (4, 25, 64 << 10)];
/// As the unit has it: without, the allocator keeps windows that are not used any more.
const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "1048576")];

fn noise(mut seed: u64) -> Vec<u8> {
    let word = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    std::iter::repeat_with(word).take(NOISE_BYTES / 8).flatten().collect()
}

fn layer(seed: u64, log: u32) -> (Vec<u8>, Blob) {
    let times = REPEATED << (log - 23);
    let archive = tar_of(&[("noise", &noise(seed).repeat(times))]);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    std::io::Write::write_all(&mut encoder, &archive).unwrap();
    let bytes = encoder.finish().unwrap();
    (archive, Blob { media_type: OCI_ZSTD, bytes })
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_large_layers_of_zstd_are_pulled_in_bounded_memory() {
    let registry = Scripted::start().await;
    for (layers, log, most_kib) in BOUNDS {
        let tag = log.to_string();
        let layers = (1..=layers).map(|seed| layer(seed, log)).collect();
        registry.put(&format!("large:{tag}"), &TestImage::of_blobs(layers));
        registry.put(&format!("small:{tag}"), &TestImage::of_blobs(vec![layer(99, log)]));
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "--ignored", "--nocapture", "memory::pulls_and_watches_itself"]);
        program.env("CRIA_TEST_REGISTRY", &registry.host).envs(ALLOCATOR);
        program.env("CRIA_TEST_TAG", &tag).env("CRIA_TEST_MOST_KIB", most_kib.to_string());
        let output = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, in a process of its own"]
async fn pulls_and_watches_itself() {
    let [host, tag, most_kib] = ["REGISTRY", "TAG", "MOST_KIB"]
        .map(|name| std::env::var(format!("CRIA_TEST_{name}")).unwrap());
    let test = TestStore::new(&[&host]);
    // What a first pull leaves: the client, threads, their stacks.
    test.pull(&format!("{host}/small:{tag}")).await.unwrap();
    let before = anonymous_kib();
    let pulls = Arc::new(AtomicBool::new(true));
    let watch = Arc::clone(&pulls);
    let watcher = tokio::task::spawn_blocking(move || {
        let mut most = 0;
        while watch.load(Ordering::Relaxed) {
            most = most.max(anonymous_kib());

            std::thread::park_timeout(Duration::from_millis(1));
        }
        most
    });
    test.pull(&format!("{host}/large:{tag}")).await.unwrap();
    pulls.store(false, Ordering::Relaxed);
    let grown = watcher.await.unwrap().saturating_sub(before);
    println!("{grown} KiB more than before");
    assert!(grown <= most_kib.parse().unwrap(), "{grown} KiB more than before");
}

/// This process's own memory: neither files nor what it shares.
fn anonymous_kib() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
