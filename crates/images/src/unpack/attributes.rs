//! What a header says of an entry besides its content: owner, mode, times, extended attributes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
    chmod, chownat, fchmod, fchown, fsetxattr, fstat, futimens, openat, setxattr, utimensat,
};
use rustix::io::Errno;
use tracing::debug;

use super::archive::{Member, Record, decimal, record};

const PAX_XATTR: &[u8] = b"SCHILY.xattr.";

#[derive(Debug)]
pub(crate) struct Attributes {
    owner: Uid,
    group: Gid,
    mode: Mode,
    pub(crate) modified: Timespec,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    pub(crate) fn of(member: &Member) -> io::Result<Self> {
        let Member { header, records, .. } = member;
        let raw = header.as_old();
        let owner = match record(records, b"uid") {
            Some(uid) => decimal(uid)?,
            None => number(&raw.uid, || header.uid())?,
        };
        let group = match record(records, b"gid") {
            Some(gid) => decimal(gid)?,
            None => number(&raw.gid, || header.gid())?,
        };
        let modified = match record(records, b"mtime") {
            Some(modified) => time(modified)?,
            // Times before 1970 are two's complement in GNU headers.
            None => Timespec {
                tv_sec: number(&raw.mtime, || header.mtime())?.cast_signed(),
                tv_nsec: 0,
            },
        };
        let xattr = |(key, value): &Record| {
            let name = key.strip_prefix(PAX_XATTR).filter(|name| is_kept(name))?;
            Some((name.to_vec(), value.clone()))
        };
        Ok(Self {
            owner: Uid::from_raw(id(owner)?),
            group: Gid::from_raw(id(group)?),
            mode: Mode::from_raw_mode(number(&raw.mode, || header.mode())? & 0o7777),
            modified,
            xattrs: records.iter().filter_map(xattr).collect(),
        })
    }

    /// Gives them to an open file or directory. The order matters: a new owner takes away
    /// set-uid bits and file capabilities, and any change sets the time.
    pub(crate) fn apply(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        fchown(file, Some(self.owner), Some(self.group))?;
        fchmod(file, self.mode)?;
        for (name, value) in &self.xattrs {
            let name = OsStr::from_bytes(name);
            tolerate(name, fsetxattr(file, name, value, XattrFlags::empty()))?;
        }
        Ok(futimens(file, &only_modified(self.modified))?)
    }

    /// Gives them to what cannot be opened for itself: a link, a device, a FIFO. It is looked up
    /// once and never followed, not even if it is not what was put there.
    pub(crate) fn apply_at(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(directory, name, flags, Mode::empty())?;
        let is_symlink = FileType::from_raw_mode(fstat(&place)?.st_mode).is_symlink();
        let (owner, group) = (Some(self.owner), Some(self.group));
        chownat(&place, "", owner, group, AtFlags::EMPTY_PATH)?;
        // What else there is to set takes a path. This one leads to what `place` is, and no further.
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        if !is_symlink {
            chmod(&path, self.mode)?;
        }
        for (key, value) in &self.xattrs {
            let key = OsStr::from_bytes(key);
            tolerate(key, setxattr(&path, key, value, XattrFlags::empty()))?;
        }
        Ok(utimensat(CWD, &path, &only_modified(self.modified), AtFlags::empty())?)
    }
}

/// Whether a directory hides those of the layers below in overlayfs' own way.
pub(crate) fn is_overlay_opaque(member: &Member) -> bool {
    let names = [&b"SCHILY.xattr.trusted.overlay.opaque"[..], b"SCHILY.xattr.user.overlay.opaque"];
    names.iter().any(|name| record(&member.records, name) == Some(&b"y"[..]))
}

/// Sets a directory's time, once nothing more changes in it.
pub(crate) fn set_modified(directory: impl AsFd, modified: Timespec) -> io::Result<()> {
    Ok(futimens(directory, &only_modified(modified))?)
}

fn only_modified(modified: Timespec) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access: omit, last_modification: modified }
}

/// An archive may not speak for the node: `trusted.` is where overlayfs believes what it reads,
/// and SELinux labels are the node's policy.
fn is_kept(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.") && name != b"security.selinux" && !name.contains(&0)
}

/// A file system without extended attributes, or without this kind, still holds the image.
fn tolerate(name: &OsStr, set: Result<(), Errno>) -> io::Result<()> {
    match set {
        // `user.` is refused on anything but files and directories.
        Err(Errno::PERM) if name.as_bytes().starts_with(b"user.") => Ok(()),
        Err(Errno::OPNOTSUPP) => {
            debug!(xattr = ?name, "extended attribute is not supported here");
            Ok(())
        }
        set => Ok(set?),
    }
}

/// A number of a header; left blank it is zero, as to every other reader of archives.
fn number<T: Default>(field: &[u8], read: impl Fn() -> io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(T::default());
    }
    read()
}

/// -1 means "leave as it is" to the kernel, so it can be nobody's id.
fn id(id: u64) -> io::Result<u32> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| malformed("user or group id"))
}

/// PAX time: decimal seconds with an optional fraction, perhaps negative.
fn time(value: &[u8]) -> io::Result<Timespec> {
    let parsed = || {
        let text = str::from_utf8(value).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let mut seconds: i64 = whole.parse().ok()?;
        if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        // Finer than a nanosecond is cut off.
        let mut nanoseconds: i64 = format!("{fraction:0<9.9}").parse().ok()?;
        if whole.starts_with('-') && nanoseconds > 0 {
            seconds = seconds.checked_sub(1)?;
            nanoseconds = 1_000_000_000 - nanoseconds;
        }
        Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
    };
    parsed().ok_or_else(|| malformed("modification time"))
}

pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether or not it can be there, a link is not followed.
    #[test]
    fn attributes_of_a_place_are_not_given_to_what_it_leads_to() {
        use std::os::unix::fs::{MetadataExt, symlink};

        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs_err::write(at("outside"), "").unwrap();
        symlink(at("outside"), at("link")).unwrap();
        let all = |stat: std::fs::Metadata| {
            (stat.mode(), stat.uid(), stat.gid(), stat.mtime(), stat.ctime(), stat.ctime_nsec())
        };
        let before = all(fs_err::metadata(at("outside")).unwrap());
        let attributes = Attributes {
            owner: Uid::from_raw(1000),
            group: Gid::from_raw(1001),
            mode: Mode::from_raw_mode(0o4777),
            modified: Timespec { tv_sec: 7, tv_nsec: 0 },
            xattrs: vec![(b"security.note".to_vec(), b"x".to_vec())],
        };
        let parent = std::fs::File::open(directory.path()).unwrap();
        attributes.apply_at(parent.as_fd(), OsStr::new("link")).unwrap();
        assert_eq!(all(fs_err::metadata(at("outside")).unwrap()), before);
        let link = fs_err::symlink_metadata(at("link")).unwrap();
        assert_eq!((link.uid(), link.gid(), link.mtime()), (1000, 1001, 7));
        let mut value = [0; 8];
        assert_eq!(rustix::fs::lgetxattr(at("link"), "security.note", &mut value), Ok(1));
        assert!(rustix::fs::getxattr(at("outside"), "security.note", &mut value).is_err());
    }

    #[test]
    fn pax_times_are_read_to_the_nanosecond() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1700000000.5", Some((1_700_000_000, 500_000_000))),
            ("1.000000001", Some((1, 1))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("", None),
            ("x", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            let time = time(text.as_bytes()).ok().map(|time| (time.tv_sec, time.tv_nsec));
            assert_eq!(time, expected, "{text}");
        }
    }

    #[test]
    fn an_archive_does_not_speak_for_the_node() {
        for (name, kept) in [
            ("user.mime", true),
            ("security.capability", true),
            ("system.posix_acl_access", true),
            ("trusted.overlay.opaque", false),
            ("trusted.anything", false),
            ("security.selinux", false),
            ("user.a\0b", false),
        ] {
            assert_eq!(is_kept(name.as_bytes()), kept, "{name}");
        }
    }

    #[test]
    fn ids_that_mean_nobody_are_refused() {
        assert!(matches!(id(4_294_967_294), Ok(4_294_967_294)));
        assert!(id(4_294_967_295).is_err());
        assert!(id(u64::MAX).is_err());
    }
}
