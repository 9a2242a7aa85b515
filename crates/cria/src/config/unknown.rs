//! Keys that this release does not know, and the known ones they are probably meant to be.

use std::fmt;
use std::path::PathBuf;

/// A key that was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warning {
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
    /// With its tables: `runtime.pids-limti`.
    pub(crate) key: String,
    /// The known key, with its tables, that is spelled most alike.
    pub(crate) nearest: String,
}

impl Warning {
    pub(crate) fn log(&self) {
        let Self { file, line, key, nearest } = self;
        tracing::warn!(file = %file.display(), line, key, nearest, "unknown key in the configuration");
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, key, nearest } = self;
        write!(formatter, "{}:{line}: unknown key `{key}`; nearest is `{nearest}`", file.display())
    }
}

/// The known key that is spelled most like `key`. The last part counts first, since a key often
/// stands in the wrong table, then the whole.
pub(super) fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    known
        .min_by_key(|candidate| {
            let parts = edit_distance(last_part(key), last_part(candidate));
            (parts, edit_distance(key, candidate))
        })
        .expect("the configuration has keys")
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// How many insertions, deletions and replacements make `from` into `to` (Levenshtein).
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // The distances of what is read of `from` so far to each beginning of `to`.
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (read, source) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = read + 1;
        for (index, target) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(source != *target);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(row[index] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edit_distance_counts_insertions_deletions_and_replacements() {
        for (from, to, distance) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "abc", 3),
            ("root", "root", 0),
            ("rot", "root", 1),
            ("rooot", "root", 1),
            ("roof", "root", 1),
            ("kitten", "sitting", 3),
            ("cgroup_driver", "cgroup-driver", 1),
        ] {
            assert_eq!(edit_distance(from, to), distance, "{from} {to}");
            assert_eq!(edit_distance(to, from), distance, "{to} {from}");
        }
    }

    #[test]
    fn the_nearest_key_is_found_in_any_table() {
        let known = ["root", "runtime", "runtime.monitor", "runtime.pids-limit", "images"];
        for (key, expected) in [
            ("rot", "root"),
            ("runtme", "runtime"),
            ("runtime.monitr", "runtime.monitor"),
            ("pids_limit", "runtime.pids-limit"),
            ("network.monitor", "runtime.monitor"),
            ("image", "images"),
        ] {
            assert_eq!(nearest(key, known.into_iter()), expected, "{key}");
        }
    }
}
