//! The images that are measured with: made here, from nothing.

use std::path::{Path, PathBuf};

use harness::busybox::busybox;
use harness::image::Packed;
use harness::layer::{Compression, digest};
use harness::{Image, Layer, Registry, tools};

use crate::arguments::Measurement;
use crate::plan::Plan;

/// Bytes of a line in the log's image, its end included.
pub(crate) const LINE: usize = 101;

/// Where [`Images::lines`] has its lines.
pub(crate) const LINES: &str = "/lines";

const LAYERS: usize = 6;
const SMALL_LAYERS: usize = 40;
const SMALL_FILES: usize = 10_000;

/// References in the registry that the bench started.
pub(crate) struct Images {
    pub(crate) busybox: String,
    /// busybox, and a file of numbered lines.
    pub(crate) lines: String,
    pub(crate) line_count: usize,
    pub(crate) pulls: Vec<Pulled>,
}

/// An image whose pull is measured.
pub(crate) struct Pulled {
    pub(crate) shape: Shape,
    pub(crate) reference: String,
    /// Of its layers, compressed.
    pub(crate) bytes: usize,
    /// Where the registry has its first layer.
    pub(crate) first_layer: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// Six large layers.
    Gzip,
    Zstd,
    /// All in one.
    Single,
    Small,
    /// One layer of its own, five of the first image's.
    Shared,
    Files,
}

impl Shape {
    pub(crate) const ALL: [Self; 6] =
        [Self::Gzip, Self::Zstd, Self::Single, Self::Small, Self::Shared, Self::Files];

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Single => "single",
            Self::Small => "small",
            Self::Shared => "shared",
            Self::Files => "files",
        }
    }

    fn image(self, plan: &Plan) -> Image {
        let bytes = plan.layer_bytes;
        let large = |numbers: &mut dyn Iterator<Item = usize>| {
            numbers.map(|number| layer(number, bytes)).fold(Image::new(), Image::layer)
        };
        match self {
            Self::Gzip => large(&mut (0..LAYERS)),
            Self::Zstd => large(&mut (0..LAYERS)).compression(Compression::Zstd),
            Self::Single => Image::new().layer(layer(0, bytes * LAYERS)),
            Self::Small => (0..SMALL_LAYERS)
                .map(|number| layer(number, bytes / SMALL_LAYERS))
                .fold(Image::new(), Image::layer),
            Self::Shared => large(&mut (0..LAYERS - 1).chain([LAYERS])),
            Self::Files => Image::new().layer(small_files()),
        }
    }
}

impl Images {
    /// Pushes those that the plan needs.
    pub(crate) fn push(registry: &Registry, plan: &Plan) -> Self {
        let line_count = plan.log_bytes / LINE;
        if plan.asks_for(Measurement::Log) {
            let lines = Layer::new().file(&LINES[1..], 0o644, lines(line_count));
            registry.push("bench/lines:1", &busybox().layer(lines));
        }
        let shapes = if plan.asks_for(Measurement::Pull) { &Shape::ALL[..] } else { &[] };
        let pulls = shapes.iter().map(|shape| {
            let packed = packed(*shape, plan);
            let repository = format!("bench/{}", shape.name());
            registry.push_packed(&repository, &packed, "1");
            let reference = registry.reference(&format!("{repository}:1"));
            let bytes = packed.layers.iter().map(|layer| layer.size).sum();
            let first_layer = registry.blob_file(&packed.layers[0].digest);
            Pulled { shape: *shape, reference, bytes, first_layer }
        });
        Self {
            pulls: pulls.collect(),
            busybox: registry.push("bench/busybox:1", &busybox()).reference,
            lines: registry.reference("bench/lines:1"),
            line_count,
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
fn packed(shape: Shape, plan: &Plan) -> Packed {
    let kept = cache().join(format!("pull-{}-{}", shape.name(), plan.layer_bytes));
    if let Some(packed) = load(&kept) {
        return packed;
    }
    plan.progress(&format!("making the image to pull ({}), once", shape.name()));
    let packed = shape.image(plan).pack();
    store(&kept, &packed);
    packed
}

fn small_files() -> Layer {
    let mut noise = Noise(1);
    (0..SMALL_FILES).fold(Layer::new(), |layer, number| {
        let layer = match number % 100 {
            0 => layer.dir(&format!("{}/", number / 100), 0o755),
            _ => layer,
        };
        layer.file(&format!("{}/{number}", number / 100), 0o644, noise.bytes(1024))
    })
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
