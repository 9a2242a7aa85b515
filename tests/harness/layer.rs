//! One layer of an image: a tar archive made entry by entry, compressed or not.

use std::io::Write as _;

use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// How a layer travels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Compression {
    Plain,
    #[default]
    Gzip,
    Zstd,
}

/// A layer under construction. Entries are written in the order of the calls.
#[derive(Clone, Default)]
pub struct Layer {
    tar: Vec<u8>,
    compression: Compression,
    owner: (u64, u64),
}

/// A layer as a registry holds it.
pub(crate) struct Blob {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: String,
    pub(crate) diff_id: String,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Who owns the entries that follow.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        let header = self.header(EntryType::Directory, mode, 0);
        self.entry(header, path, "", &[])
    }

    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        let header = self.header(EntryType::Regular, mode, content.len() as u64);
        self.entry(header, path, "", content)
    }

    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        let header = self.header(EntryType::Symlink, 0o777, 0);
        self.entry(header, path, target, &[])
    }

    /// `target` is a path from the layer's root.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let header = self.header(EntryType::Link, 0o755, 0);
        self.entry(header, path, target, &[])
    }

    /// Removes `path` of the layers below.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let marker =
            if folder.is_empty() { format!(".wh.{name}") } else { format!("{folder}/.wh.{name}") };
        self.file(&marker, 0, [])
    }

    /// Hides what the layers below have in `folder`.
    #[must_use]
    pub fn opaque(self, folder: &str) -> Self {
        self.file(&format!("{folder}/.wh..wh..opq"), 0, [])
    }

    /// An entry with any header: devices, fifos, extended attributes, and what is not allowed. The
    /// path and the link's target are written as they are, `..` included; both are under 100 bytes.
    #[must_use]
    pub fn entry(mut self, mut header: Header, path: &str, target: &str, content: &[u8]) -> Self {
        {
            let old = header.as_old_mut();
            old.name[..path.len()].copy_from_slice(path.as_bytes());
            old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    /// Bytes put into the archive as they are: PAX headers, or garbage.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.tar.extend_from_slice(bytes);
        self
    }

    /// A header for [`Layer::entry`], with this layer's owner.
    pub fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_700_000_000);
        header
    }

    pub(crate) fn compression_used(&self) -> Compression {
        self.compression
    }

    pub(crate) fn blob(&self) -> Blob {
        let mut tar = self.tar.clone();
        tar.extend_from_slice(&[0; 1024]);
        let diff_id = digest(&tar);
        let bytes = match self.compression {
            Compression::Plain => tar,
            Compression::Gzip => gzip(&tar),
            Compression::Zstd => zstd::encode_all(&tar[..], 3).expect("memory takes all bytes"),
        };
        Blob { digest: digest(&bytes), bytes, diff_id }
    }
}

/// `sha256:` and the hash of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes all bytes");
    encoder.finish().expect("memory takes all bytes")
}
