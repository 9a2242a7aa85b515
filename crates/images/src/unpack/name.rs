//! Names in layer archives: which place they mean, and which of them are whiteouts. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

const WHITEOUT: &[u8] = b".wh.";
/// AUFS' own files, of which only the opaque mark means anything to others.
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A name that leaves the root by `..`.
#[derive(Debug, PartialEq)]
pub(crate) struct Outside;

/// What an entry's last component stands for (image-spec, layer.md, "Whiteouts").
#[derive(Debug, PartialEq)]
pub(crate) enum Meaning {
    /// A file, directory or whatever its header says.
    Entry,
    /// The lower layers' file of this name is gone.
    Whiteout(OsString),
    /// Nothing of the lower layers shows in the parent directory.
    Opaque,
    /// Bookkeeping of AUFS.
    Ignored,
}

/// `name` relative to the layer's root, without `.`, `..` and doubled slashes; empty is the root.
///
/// A leading slash means the root, as everywhere in archives. Links are not looked at: they are
/// resolved by the kernel, inside the root.
pub(crate) fn clean(name: &[u8]) -> Result<PathBuf, Outside> {
    let mut path = PathBuf::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if !path.pop() {
                    return Err(Outside);
                }
            }
            component => path.push(OsStr::from_bytes(component)),
        }
    }
    Ok(path)
}

pub(crate) fn meaning(path: &Path) -> Meaning {
    let name = path.file_name().unwrap_or_default().as_bytes();
    if name == OPAQUE {
        return Meaning::Opaque;
    }
    if name.starts_with(META) {
        return Meaning::Ignored;
    }
    match name.strip_prefix(WHITEOUT) {
        // Neither of these can be removed from its directory.
        Some(b"" | b"." | b"..") => Meaning::Ignored,
        Some(hidden) => Meaning::Whiteout(OsString::from_vec(hidden.to_vec())),
        None => Meaning::Entry,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_cleaned_and_never_lead_outside() {
        for (name, path) in [
            ("a/b", Ok("a/b")),
            ("./a//b/", Ok("a/b")),
            ("/etc/passwd", Ok("etc/passwd")),
            ("a/../b", Ok("b")),
            ("a/b/../../c", Ok("c")),
            ("", Ok("")),
            ("./", Ok("")),
            ("..", Err(Outside)),
            ("../x", Err(Outside)),
            ("a/../../x", Err(Outside)),
            ("/../x", Err(Outside)),
            ("...", Ok("...")),
        ] {
            assert_eq!(clean(name.as_bytes()), path.map(PathBuf::from), "{name}");
        }
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        let whiteout = |name: &str| Meaning::Whiteout(name.into());
        for (name, expected) in [
            ("a/.wh.b", whiteout("b")),
            (".wh.b", whiteout("b")),
            ("a/.wh..b", whiteout(".b")),
            ("a/.wh..wh..opq", Meaning::Opaque),
            ("a/.wh..wh.plnk", Meaning::Ignored),
            ("a/.wh.", Meaning::Ignored),
            ("a/.wh..", Meaning::Ignored),
            ("a/.wh...", Meaning::Ignored),
            ("a/.whb", Meaning::Entry),
            ("a/b.wh.", Meaning::Entry),
            (".wh.a/b", Meaning::Entry),
            ("", Meaning::Entry),
        ] {
            assert_eq!(meaning(Path::new(name)), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_cleaned_name_has_only_plain_components(name in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..40,
        )) {
            if let Ok(path) = clean(&name) {
                let plain = |c| matches!(c, std::path::Component::Normal(_));
                prop_assert!(path.components().all(plain), "{path:?}");
            }
        }
    }
}
