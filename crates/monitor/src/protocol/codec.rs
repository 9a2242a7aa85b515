//! The bytes of a packet: a header, then fields as tag, length, value. Pure.
//!
//! ```text
//! header  version u8 | flags u8 | kind u16 | sequence u32      (all numbers little endian)
//! field   tag u16 | length u32 | value
//! ```
//!
//! A reader skips fields it does not know and gives a missing optional one its default, so that
//! older and newer releases understand each other. Tags and kinds are never reused. The version
//! only grows when that is not enough. A descriptor is a field that holds its place among the
//! packet's descriptors.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const VERSION: u8 = 1;
pub(crate) const HEADER_LEN: usize = 8;
/// Header flag: the fields are in a sealed memfd, the packet's last descriptor.
pub(crate) const BODY_IN_MEMFD: u8 = 1;

/// One message as the socket carries it.
#[derive(Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Why a packet is not a message of this release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// Too short to hold a header: it cannot even be answered.
    NoHeader,
    /// A version this release does not speak.
    Version { version: u8, sequence: u32 },
    /// A kind of message that this release does not know: the other side is newer.
    UnknownKind { kind: u16, sequence: u32 },
    /// A field is missing, cut short, or makes no sense.
    Malformed { field: &'static str, sequence: u32 },
}

impl ProtocolError {
    /// What to answer to, where there is something to answer to.
    pub fn sequence(self) -> Option<u32> {
        match self {
            Self::NoHeader => None,
            Self::Version { sequence, .. }
            | Self::UnknownKind { sequence, .. }
            | Self::Malformed { sequence, .. } => Some(sequence),
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => write!(f, "packet without a header"),
            Self::Version { version, .. } => write!(f, "unknown protocol version {version}"),
            Self::UnknownKind { kind, .. } => write!(f, "unknown kind of message {kind}"),
            Self::Malformed { field, .. } => write!(f, "malformed message: {field}"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// Collects the fields of one message (or of a message within a message).
pub(crate) struct Writer {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Writer {
    pub(crate) fn new(kind: u16, sequence: u32) -> Self {
        let mut bytes = vec![VERSION, 0];
        bytes.extend(kind.to_le_bytes());
        bytes.extend(sequence.to_le_bytes());
        Self { bytes, fds: vec![] }
    }

    pub(crate) fn finish(self) -> Packet {
        Packet { bytes: self.bytes, fds: self.fds }
    }

    pub(crate) fn bytes(&mut self, tag: u16, value: &[u8]) {
        self.nested(tag, |inner| inner.bytes.extend_from_slice(value));
    }

    pub(crate) fn text(&mut self, tag: u16, value: &str) {
        self.bytes(tag, value.as_bytes());
    }

    pub(crate) fn path(&mut self, tag: u16, value: &Path) {
        self.bytes(tag, value.as_os_str().as_bytes());
    }

    pub(crate) fn unsigned(&mut self, tag: u16, value: u64) {
        self.bytes(tag, &value.to_le_bytes());
    }

    pub(crate) fn signed(&mut self, tag: u16, value: i64) {
        self.bytes(tag, &value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, tag: u16, value: bool) {
        self.unsigned(tag, u64::from(value));
    }

    /// Durations beyond 584 years are as good as that.
    pub(crate) fn duration(&mut self, tag: u16, value: Duration) {
        self.unsigned(tag, u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn fd(&mut self, tag: u16, fd: OwnedFd) {
        self.unsigned(tag, self.fds.len() as u64);
        self.fds.push(fd);
    }

    pub(crate) fn optional_fd(&mut self, tag: u16, fd: Option<OwnedFd>) {
        if let Some(fd) = fd {
            self.fd(tag, fd);
        }
    }

    pub(crate) fn optional_path(&mut self, tag: u16, path: Option<&Path>) {
        if let Some(path) = path {
            self.path(tag, path);
        }
    }

    pub(crate) fn nested(&mut self, tag: u16, fill: impl FnOnce(&mut Self)) {
        self.bytes.extend(tag.to_le_bytes());
        let length_at = self.bytes.len();
        self.bytes.extend([0; 4]);
        fill(self);
        let length = u32::try_from(self.bytes.len() - length_at - 4)
            .expect("a message holds paths and texts, never 4 GiB");
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
}

impl Header {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let Some(&[version, _flags, k0, k1, s0, s1, s2, s3]) = bytes.first_chunk::<HEADER_LEN>()
        else {
            return Err(ProtocolError::NoHeader);
        };
        let sequence = u32::from_le_bytes([s0, s1, s2, s3]);
        if version != VERSION {
            return Err(ProtocolError::Version { version, sequence });
        }
        Ok(Self { kind: u16::from_le_bytes([k0, k1]), sequence })
    }

    pub(crate) fn unknown(self) -> ProtocolError {
        ProtocolError::UnknownKind { kind: self.kind, sequence: self.sequence }
    }
}

/// A packet's descriptors; each can be taken once.
pub(crate) type Fds = Vec<Option<OwnedFd>>;

/// The fields of one message, by tag.
pub(crate) struct Fields<'a> {
    fields: Vec<(u16, &'a [u8])>,
    sequence: u32,
}

impl<'a> Fields<'a> {
    pub(crate) fn parse(mut bytes: &'a [u8], sequence: u32) -> Result<Self, ProtocolError> {
        let mut fields = vec![];
        while !bytes.is_empty() {
            let (tag, value, rest) =
                split_field(bytes).ok_or(ProtocolError::Malformed { field: "length", sequence })?;
            fields.push((tag, value));
            bytes = rest;
        }
        Ok(Self { fields, sequence })
    }

    pub(crate) fn malformed(&self, field: &'static str) -> ProtocolError {
        ProtocolError::Malformed { field, sequence: self.sequence }
    }

    /// The last field wins, as in every format that lets fields repeat.
    pub(crate) fn get(&self, tag: u16) -> Option<&'a [u8]> {
        self.fields.iter().rev().find(|(found, _)| *found == tag).map(|(_, value)| *value)
    }

    pub(crate) fn all(&self, tag: u16) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(found, _)| *found == tag).map(|(_, value)| *value)
    }

    pub(crate) fn nested(&self, tag: u16) -> Result<Option<Self>, ProtocolError> {
        self.get(tag).map(|bytes| Fields::parse(bytes, self.sequence)).transpose()
    }

    pub(crate) fn required(
        &self,
        tag: u16,
        name: &'static str,
    ) -> Result<Fields<'a>, ProtocolError> {
        self.nested(tag)?.ok_or(self.malformed(name))
    }

    pub(crate) fn number<T: TryFrom<u64> + Default>(
        &self,
        tag: u16,
        name: &'static str,
    ) -> Result<T, ProtocolError> {
        let Some(bytes) = self.get(tag) else { return Ok(T::default()) };
        let bytes = bytes.try_into().map_err(|_| self.malformed(name))?;
        T::try_from(u64::from_le_bytes(bytes)).map_err(|_| self.malformed(name))
    }

    pub(crate) fn signed<T: TryFrom<i64> + Default>(
        &self,
        tag: u16,
        name: &'static str,
    ) -> Result<T, ProtocolError> {
        let Some(bytes) = self.get(tag) else { return Ok(T::default()) };
        let bytes = bytes.try_into().map_err(|_| self.malformed(name))?;
        T::try_from(i64::from_le_bytes(bytes)).map_err(|_| self.malformed(name))
    }

    pub(crate) fn bool(&self, tag: u16, name: &'static str) -> Result<bool, ProtocolError> {
        Ok(self.number::<u64>(tag, name)? != 0)
    }

    pub(crate) fn duration(&self, tag: u16, name: &'static str) -> Result<Duration, ProtocolError> {
        Ok(Duration::from_nanos(self.number(tag, name)?))
    }

    /// Missing is empty; text that is not UTF-8 keeps what can be read of it.
    pub(crate) fn text(&self, tag: u16) -> String {
        self.get(tag).map(lossy).unwrap_or_default()
    }

    pub(crate) fn texts(&self, tag: u16) -> Vec<String> {
        self.all(tag).map(lossy).collect()
    }

    pub(crate) fn optional_path(&self, tag: u16) -> Option<PathBuf> {
        self.get(tag).map(path)
    }

    pub(crate) fn paths(&self, tag: u16) -> Vec<PathBuf> {
        self.all(tag).map(path).collect()
    }

    pub(crate) fn path(&self, tag: u16, name: &'static str) -> Result<PathBuf, ProtocolError> {
        self.optional_path(tag).ok_or(self.malformed(name))
    }

    pub(crate) fn optional_fd(
        &self,
        tag: u16,
        fds: &mut Fds,
        name: &'static str,
    ) -> Result<Option<OwnedFd>, ProtocolError> {
        if self.get(tag).is_none() {
            return Ok(None);
        }
        let place: usize = self.number(tag, name)?;
        let fd = fds.get_mut(place).and_then(Option::take);
        fd.map(Some).ok_or(self.malformed(name))
    }

    pub(crate) fn fd(
        &self,
        tag: u16,
        fds: &mut Fds,
        name: &'static str,
    ) -> Result<OwnedFd, ProtocolError> {
        self.optional_fd(tag, fds, name)?.ok_or(self.malformed(name))
    }
}

fn split_field(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&[t0, t1, l0, l1, l2, l3], rest) = bytes.split_first_chunk::<6>()?;
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    Some((u16::from_le_bytes([t0, t1]), value, rest))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}
