//! Random images, mounted, beside what GNU tar and the rules of whiteouts make of the same layers:
//! hidden is what lies below, then the layer is unpacked over it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cria_images::Digest;
use tar::EntryType;

use crate::real::Overlay;
use crate::scripted::Scripted;
use crate::support::{TestImage, TestStore};

/// How many images. By hand: more.
fn images() -> u32 {
    std::env::var("CRIA_TEST_IMAGES").map_or(100, |images| images.parse().unwrap())
}

/// An entry of a layer. Its name tells its kind, so that a later one never replaces another kind.
#[derive(Clone, Debug, PartialEq)]
enum Entry {
    Directory(String),
    File(String),
    Symlink(String),
    HardLink { name: String, target: String },
    Whiteout(String),
    Opaque(String),
}

struct Random(u32);

impl Random {
    fn below(&mut self, most: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % most
    }

    fn directory(&mut self) -> String {
        let depth = self.below(4);
        (0..depth).fold(String::new(), |path, _| format!("{path}d{}/", self.below(3)))
    }

    /// Entries in any order: also before their parents, without them, and twice.
    fn layer(&mut self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for _ in 0..self.below(14) {
            let directory = self.directory();
            let number = self.below(3);
            let entry = match self.below(9) {
                0 | 1 => Entry::Directory(format!("{directory}d{number}")),
                2 | 3 => Entry::File(format!("{directory}f{number}")),
                4 => Entry::Symlink(format!("{directory}s{number}")),
                5 => {
                    let mut files = entries.iter().filter_map(|entry| match entry {
                        Entry::File(name) => Some(name.clone()),
                        _ => None,
                    });
                    let Some(target) = files.next() else { continue };
                    Entry::HardLink { name: format!("{directory}h{number}"), target }
                }
                6 => Entry::Whiteout(format!("{directory}d{number}")),
                7 => Entry::Whiteout(format!("{directory}f{number}")),
                _ if directory.is_empty() => continue,
                _ => {
                    // As tools write it: an opaque directory is listed.
                    let directory = directory.trim_end_matches('/').to_owned();
                    entries.push(Entry::Directory(directory.clone()));
                    Entry::Opaque(directory)
                }
            };
            entries.push(entry);
        }
        entries
    }
}

/// The archive of `entries`, with markers for what is hidden or without.
fn archive(entries: &[Entry], number: usize, with_markers: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (place, entry) in entries.iter().enumerate() {
        let (kind, name, content, link) = match entry {
            Entry::Directory(name) => (EntryType::Directory, format!("{name}/"), String::new(), ""),
            Entry::File(name) => {
                (EntryType::Regular, name.clone(), format!("{number} {place}"), "")
            }
            Entry::Symlink(name) => {
                (EntryType::Symlink, name.clone(), String::new(), ["a", "b/c"][place % 2])
            }
            Entry::HardLink { name, target } => {
                (EntryType::Link, name.clone(), String::new(), target.as_str())
            }
            Entry::Whiteout(_) | Entry::Opaque(_) if !with_markers => continue,
            Entry::Whiteout(name) => {
                let (parent, base) = name.rsplit_once('/').unwrap_or(("", name));
                let marker = format!("{parent}/.wh.{base}");
                let marker = marker.trim_start_matches('/').to_owned();
                (EntryType::Regular, marker, String::new(), "")
            }
            Entry::Opaque(name) => {
                (EntryType::Regular, format!("{name}/.wh..wh..opq"), String::new(), "")
            }
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        let id = (number * 20 + place) as u64;
        let others = u32::try_from(id % 8).unwrap();
        header.set_mode(if kind == EntryType::Directory { 0o700 } else { 0o600 } | others);
        header.set_uid(id);
        header.set_gid(id + 1000);
        header.set_mtime(1_600_000_000 + id);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Hides in `root` what the layer hides. A marker's directory is made if it is not there.
fn hide(root: &Path, entries: &[Entry]) {
    let make_parents = |path: &Path| fs_err::create_dir_all(path).unwrap();
    let remove = |path: &Path| match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs_err::remove_dir_all(path).unwrap(),
        Ok(_) => fs_err::remove_file(path).unwrap(),
        Err(_) => {}
    };
    for entry in entries {
        match entry {
            Entry::Whiteout(name) => remove(&root.join(name)),
            Entry::Opaque(name) => {
                let directory = root.join(name);
                let below = fs_err::read_dir(&directory).into_iter().flatten();
                below.for_each(|entry| remove(&entry.unwrap().path()));
            }
            _ => {}
        }
    }
    for entry in entries {
        match entry {
            Entry::Whiteout(name) => make_parents(root.join(name).parent().unwrap()),
            Entry::Opaque(name) => make_parents(&root.join(name)),
            _ => {}
        }
    }
}

fn unpack_by_gnu_tar(archive: &Path, root: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["-x", "-p", "--same-owner", "--numeric-owner", "-C"])
        .arg(root)
        .arg("-f")
        .arg(archive);
    let output = tar.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// By path: kind and mode, owner, time unless a directory's (which changes with what is put into
/// it), content.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs_err::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs_err::symlink_metadata(&path).unwrap();
            let (content, time) = if stat.is_dir() {
                waiting.push(path.clone());
                (String::new(), 0)
            } else if stat.is_symlink() {
                (format!("{:?}", fs_err::read_link(&path).unwrap()), stat.mtime())
            } else {
                (Digest::of(&fs_err::read(&path).unwrap()).to_string(), stat.mtime())
            };
            let (mode, uid, gid) = (stat.mode(), stat.uid(), stat.gid());
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, format!("{mode:o} {uid}:{gid} {time} {content}"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_image_is_what_its_layers_make_one_over_the_other() {
    let registry = Scripted::start().await;
    for seed in 0..images() {
        let mut random = Random(seed);
        let layers: Vec<_> = (0..=random.below(4)).map(|_| random.layer()).collect();
        let archives = layers.iter().enumerate().map(|(n, layer)| archive(layer, n, true));
        let image = TestImage::of(&archives.collect::<Vec<_>>());
        registry.put(&format!("app:{seed}"), &image);

        let test = TestStore::new(&[&registry.host]);
        let theirs = test.directory.path().join("theirs");
        fs_err::create_dir(&theirs).unwrap();
        for (number, layer) in layers.iter().enumerate() {
            hide(&theirs, layer);
            let path = test.directory.path().join("archive");
            fs_err::write(&path, archive(layer, number, false)).unwrap();
            unpack_by_gnu_tar(&path, &theirs);
        }
        let pulled = test.pull(&format!("{}/app:{seed}", registry.host)).await.unwrap();
        let lease = test.store.lease(&pulled.id).unwrap();
        let mut lower = lease.lower_directories();
        // A single directory is no overlay.
        let empty = test.directory.path().join("empty");
        fs_err::create_dir(&empty).unwrap();
        lower.push(empty);
        let merged = Overlay::mount(&lower, test.directory.path().join("merged"));
        assert_eq!(tree(&merged.0), tree(&theirs), "seed {seed}: {layers:#?}");
    }
}
