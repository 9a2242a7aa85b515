//! The images that are measured with: made here, from nothing.

use std::path::{Path, PathBuf};

use harness::busybox::busybox;
use harness::image::Packed;
use harness::layer::digest;
use harness::{Image, Layer, Registry, tools};

use crate::arguments::Measurement;
use crate::plan::Plan;

/// Bytes of a line in the log's image, its end included.
pub(crate) const LINE: usize = 101;

/// Where [`Images::lines`] has its lines.
pub(crate) const LINES: &str = "/lines";

const LAYERS: usize = 6;

/// References in the registry that the bench started.
pub(crate) struct Images {
    pub(crate) busybox: String,
    /// busybox, and a file of numbered lines.
    pub(crate) lines: String,
    pub(crate) line_count: usize,
    /// The large one.
    pub(crate) pull: String,
    pub(crate) pull_bytes: usize,
}

impl Images {
    /// Pushes those that the plan needs.
    pub(crate) fn push(registry: &Registry, plan: &Plan) -> Self {
        let line_count = plan.log_bytes / LINE;
        if plan.asks_for(Measurement::Log) {
            let lines = Layer::new().file(&LINES[1..], 0o644, lines(line_count));
            registry.push("bench/lines:1", &busybox().layer(lines));
        }
        let mut pull_bytes = 0;
        if plan.asks_for(Measurement::Pull) {
            let large = large(plan);
            registry.push_packed("bench/pull", &large, "1");
            pull_bytes = large.layers.iter().map(|layer| layer.size).sum();
        }
        Self {
            busybox: registry.push("bench/busybox:1", &busybox()).reference,
            lines: registry.reference("bench/lines:1"),
            line_count,
            pull: registry.reference("bench/pull:1"),
            pull_bytes,
        }
    }
}

/// Line `number` without its end: its number, and dots up to 100 bytes.
pub(crate) fn line(number: usize) -> String {
    format!("{number:08} {:.<91}", "")
}

fn lines(count: usize) -> Vec<u8> {
    (0..count).map(|number| line(number) + "\n").collect::<String>().into_bytes()
}

/// Made once and kept: half a minute of compression says nothing about a runtime.
fn large(plan: &Plan) -> Packed {
    let kept = cache().join(format!("pull-{}", plan.layer_bytes));
    if let Some(packed) = load(&kept) {
        return packed;
    }
    plan.progress("making the image to pull, once");
    let layers = (0..LAYERS).map(|number| layer(number, plan.layer_bytes));
    let packed = layers.fold(Image::new(), Image::layer).pack();
    store(&kept, &packed);
    packed
}

/// A layer of many small and some large files, of which gzip takes off a third, as of programs.
fn layer(number: usize, bytes: usize) -> Layer {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15 ^ u64::try_from(number).unwrap_or(0));
    let folder = format!("layer{number}/");
    let mut layer = Layer::new().dir(&folder, 0o755);
    let (mut written, mut file) = (0, 0);
    while written < bytes {
        let size = if file % 50 == 0 { 2 << 20 } else { 4096 + file % 7 * 8192 };
        layer = layer.file(&format!("{folder}{file}"), 0o644, noise.bytes(size));
        written += size;
        file += 1;
    }
    layer
}

/// xorshift: the same bytes on every machine.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 32);
        while bytes.len() < count {
            for _ in 0..2 {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                bytes.extend(self.0.to_le_bytes());
            }
            bytes.extend(*b"and some text then");
        }
        bytes.truncate(count);
        bytes
    }
}

/// Beside the tools, outside the work tree.
fn cache() -> PathBuf {
    tools::tools_path().parent().expect("the tools are in a folder").with_file_name("bench")
}

fn store(folder: &Path, packed: &Packed) {
    fs_err::create_dir_all(folder).expect("the cache is writable");
    for blob in &packed.blobs {
        fs_err::write(folder.join(digest(blob)), blob).expect("the cache has room");
    }
    // Last: where a manifest is, all it names is there.
    let aside = folder.join("manifest.tmp");
    fs_err::write(&aside, &packed.manifest).expect("the cache has room");
    fs_err::write(folder.join("media-type"), &packed.media_type).expect("the cache has room");
    fs_err::rename(aside, folder.join("manifest")).expect("the cache is writable");
}

fn load(folder: &Path) -> Option<Packed> {
    let manifest = fs_err::read(folder.join("manifest")).ok()?;
    let described: serde_json::Value = serde_json::from_slice(&manifest).ok()?;
    let id = described["config"]["digest"].as_str()?.to_owned();
    let layers = described["layers"].as_array()?;
    let digests = layers.iter().filter_map(|layer| layer["digest"].as_str()).chain([id.as_str()]);
    let blobs = digests.map(|digest| fs_err::read(folder.join(digest)).ok());
    let blobs: Vec<_> = blobs.collect::<Option<_>>()?;
    let media_type = fs_err::read_to_string(folder.join("media-type")).ok()?;
    let named = layers.iter().zip(&blobs).map(|(layer, blob)| harness::image::PackedLayer {
        digest: layer["digest"].as_str().unwrap_or_default().to_owned(),
        diff_id: String::new(),
        size: blob.len(),
    });
    Some(Packed { layers: named.collect(), blobs, manifest, media_type, id })
}

#[cfg(test)]
mod tests {
    use super::{LINE, line};

    #[test]
    fn every_line_has_the_same_length() {
        for number in [0, 9, 664_443, 99_999_999] {
            assert_eq!(line(number).len() + 1, LINE, "{number}");
        }
    }
}
