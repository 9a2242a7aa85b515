//! Which mount of the host a path is on, and how that mount propagates: `/proc/self/mountinfo`
//! (see proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostMount {
    pub(crate) mount_point: PathBuf,
    /// What is mounted beneath it is seen by its peers.
    pub(crate) shared: bool,
    /// It sees what is mounted beneath its master.
    pub(crate) slave: bool,
}

/// In the order of mounting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountTable(Vec<HostMount>);

impl MountTable {
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs_err::read("/proc/self/mountinfo")?))
    }

    /// A line that is not of the format is skipped.
    pub(super) fn parse(text: &[u8]) -> Self {
        Self(text.split(|&byte| byte == b'\n').filter_map(mount).collect())
    }

    /// The mount that `path`, absolute and without symbolic links, is on.
    pub(crate) fn of(&self, path: &Path) -> Option<&HostMount> {
        // Of equal ones the last: it covers those before it.
        let holding = self.0.iter().filter(|mount| path.starts_with(&mount.mount_point));
        holding.max_by_key(|mount| mount.mount_point.components().count())
    }
}

/// `id parent major:minor root mount-point options [optional fields ...] - type source options`.
fn mount(line: &[u8]) -> Option<HostMount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mount_point = PathBuf::from(OsString::from_vec(unescaped(fields.nth(4)?)));
    let optional: Vec<_> = fields.skip(1).take_while(|&field| field != b"-").collect();
    let has = |tag: &[u8]| optional.iter().any(|field| field.starts_with(tag));
    Some(HostMount { mount_point, shared: has(b"shared:"), slave: has(b"master:") })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(first, tail) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

fn octal(first: u8, tail: &[u8]) -> Option<u8> {
    let digits = tail.get(..3).filter(|_| first == b'\\')?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:5 / /proc rw - proc proc rw
30 22 0:40 / /data rw shared:7 - tmpfs none rw
31 30 0:41 / /data/a\\040b\\134 rw,noexec master:3 propagate_from:2 - tmpfs none rw
32 22 0:42 / /both rw shared:9 master:4 - tmpfs none rw
33 22 0:43 / /over rw shared:10 - tmpfs none rw
34 33 0:44 / /over rw - tmpfs none rw
garbage
";

    #[test]
    fn a_path_is_on_the_deepest_and_last_mount_above_it() {
        let table = MountTable::parse(TABLE);
        for (path, mount_point, shared, slave) in [
            ("/", "/", false, false),
            ("/procfs", "/", false, false),
            ("/proc/self", "/proc", false, false),
            ("/data/x", "/data", true, false),
            ("/data/a b\\/x", "/data/a b\\", false, true),
            ("/both", "/both", true, true),
            ("/over/x", "/over", false, false),
        ] {
            let mount = table.of(Path::new(path)).unwrap();
            let found = (mount.mount_point.to_str().unwrap(), mount.shared, mount.slave);
            assert_eq!(found, (mount_point, shared, slave), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_mount_point_of_any_name_is_read_as_it_is(name: Vec<u8>) {
            let escaped: String = name.iter().map(|byte| format!("\\{byte:03o}")).collect();
            assert_eq!(unescaped(escaped.as_bytes()), name);
            let plain: Vec<u8> = name.into_iter().filter(|&byte| byte != b'\\').collect();
            assert_eq!(unescaped(&plain), plain);
        }
    }

    #[test]
    fn a_node_has_its_own_mount_table() {
        assert!(MountTable::read().unwrap().of(Path::new("/proc/self")).is_some());
    }
}
