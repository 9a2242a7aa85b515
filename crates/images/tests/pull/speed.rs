//! How fast a large image is pulled, beside what its bytes cost at least. Run by hand:
//! `cargo test --release -p cria-images --test pull -- --ignored --nocapture speed`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use crate::support::{Blob, OCI_GZIP, Registry, TestImage, TestStore};

const LAYERS: usize = 6;
const COMPRESSED_BYTES: usize = 209_000_000;

/// Archives of this node's own programs and libraries, gzipped, of the wanted size in all.
fn layers() -> Vec<(Vec<u8>, Blob)> {
    let mut files = walk(Path::new("/usr/lib"));
    files.extend(walk(Path::new("/usr/bin")));
    files.extend(walk(Path::new("/usr/share")));
    let mut files = files.into_iter().cycle();
    let wanted = COMPRESSED_BYTES / LAYERS;
    let threads: Vec<_> = (0..LAYERS)
        .map(|layer| {
            let mut archive = tar::Builder::new(Vec::new());
            let mut size = 0;
            // About what gzip makes of programs.
            while size < wanted * 9 / 5 {
                let path = files.next().unwrap();
                let Ok(content) = fs_err::read(&path) else { continue };
                size += content.len();
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(1);
                let name = format!("{layer}/{}", path.to_str().unwrap().trim_start_matches('/'));
                archive.append_data(&mut header, name, &content[..]).unwrap();
            }
            let archive = archive.into_inner().unwrap();
            std::thread::spawn(move || {
                let bytes = crate::support::gzip(&archive);
                (archive, Blob { media_type: OCI_GZIP, bytes })
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in fs_err::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(walk(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// Gunzip and both hashes, nothing else, on as many threads as there are processors.
fn floor(layers: &[(Vec<u8>, Blob)]) -> f64 {
    let began = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while let Some((_, blob)) =
                    layers.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    std::hint::black_box(Sha256::digest(&blob.bytes));
                    let mut decoder = flate2::bufread::GzDecoder::new(&blob.bytes[..]);
                    let mut hasher = Sha256::new();
                    let mut buffer = vec![0; 128 << 10];
                    loop {
                        match decoder.read(&mut buffer).unwrap() {
                            0 => break,
                            length => hasher.update(&buffer[..length]),
                        }
                    }
                    std::hint::black_box(hasher.finalize());
                }
            });
        }
    });
    began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and says something only in release"]
async fn speed() {
    let layers = layers();
    let size = |bytes: usize| bytes >> 20;
    println!(
        "{LAYERS} layers, {} MiB gzip, {} MiB unpacked",
        size(layers.iter().map(|(_, blob)| blob.bytes.len()).sum()),
        size(layers.iter().map(|(archive, _)| archive.len()).sum()),
    );
    for _ in 0..3 {
        println!("floor (gunzip, sha256): {:.2} s", floor(&layers));
    }
    let image = TestImage::of_blobs(layers);
    let registry = Registry::start().await;
    registry.push("large:1", &image).await;
    for _ in 0..5 {
        let test = TestStore::new(&[&registry.host]);
        let began = Instant::now();
        test.pull(&format!("{}/large:1", registry.host)).await.unwrap();
        println!("pull: {:.2} s, {:?}", began.elapsed().as_secs_f64(), test.store.usage());
    }
}
