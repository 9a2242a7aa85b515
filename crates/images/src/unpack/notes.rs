//! What is remembered of a layer's directories and whiteouts until its end. An archive chooses how
//! much there is, so it is bounded.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use rustix::fs::Timespec;

use super::limits::Limits;

/// About what one note takes beside the name.
const NOTE: u64 = 64;

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Note {
    /// The time that the archive lists for this directory; what is put into it would change that.
    pub(crate) listed: Option<Timespec>,
    /// A directory that entries needed and the archive has not listed.
    pub(crate) invented: bool,
    pub(crate) opaque: bool,
    pub(crate) whiteout: bool,
}

/// By paths that are relative to the root and without links.
pub(crate) struct Notes {
    notes: BTreeMap<PathBuf, Note>,
    bytes: u64,
    limits: Limits,
}

impl Notes {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { notes: BTreeMap::new(), bytes: 0, limits }
    }

    /// The note of `path`, to be written; an empty one if there is none yet.
    pub(crate) fn at(&mut self, path: &Path) -> io::Result<&mut Note> {
        if !self.notes.contains_key(path) {
            let bytes = self.bytes.saturating_add(cost(path));
            self.limits.check_noted(bytes)?;
            self.bytes = bytes;
        }
        Ok(self.notes.entry(path.to_owned()).or_default())
    }

    pub(crate) fn get(&self, path: &Path) -> Option<&Note> {
        self.notes.get(path)
    }

    /// Forgets `path` and all beneath it.
    pub(crate) fn forget(&mut self, path: &Path) {
        // Paths are ordered by components: what is beneath comes right after.
        let from_here = self.notes.range::<Path, _>((Bound::Included(path), Bound::Unbounded));
        let beneath = from_here.map(|(noted, _)| noted).take_while(|noted| noted.starts_with(path));
        for gone in beneath.cloned().collect::<Vec<_>>() {
            self.notes.remove(&gone);
            self.bytes = self.bytes.saturating_sub(cost(&gone));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &Note)> {
        self.notes.iter().map(|(path, note)| (path.as_path(), note))
    }

    /// The paths whose note says so.
    pub(crate) fn those(&self, says: impl Fn(&Note) -> bool) -> Vec<PathBuf> {
        self.iter().filter(|(_, note)| says(note)).map(|(path, _)| path.to_owned()).collect()
    }
}

fn cost(path: &Path) -> u64 {
    (path.as_os_str().len() as u64).saturating_add(NOTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_takes_all_beneath_it_and_no_room() {
        let mut notes = Notes::new(Limits::default());
        for path in ["", "a", "a/b", "a/b/c", "a-", "a/bc", "b"] {
            notes.at(Path::new(path)).unwrap().invented = true;
        }
        for (path, left) in [
            ("a/b", &["", "a", "a/bc", "a-", "b"][..]),
            ("nothing", &["", "a", "a/bc", "a-", "b"]),
            ("a", &["", "a-", "b"]),
            ("", &[]),
        ] {
            notes.forget(Path::new(path));
            let left: Vec<_> = left.iter().map(PathBuf::from).collect();
            assert_eq!(notes.those(|note| note.invented), left, "{path}");
        }
        assert_eq!(notes.bytes, 0);
    }
}
