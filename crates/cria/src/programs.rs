//! Where the executables are that cria runs.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::RuntimeConfig;

/// Where packages put the monitor.
const PACKAGED_MONITOR: &str = "/usr/libexec/cria/cria-monitor";

/// The executable `program` is: itself if it is a path, else the first of its name in `$PATH`.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    find_in(program, env::var_os("PATH").as_deref().unwrap_or_default())
}

/// The monitor: as configured, or beside the daemon's own executable, in `$PATH`, or where packages
/// put it.
pub(crate) fn find_monitor(config: &RuntimeConfig) -> Option<PathBuf> {
    if let Some(configured) = &config.monitor {
        return find(configured);
    }
    let own = env::current_exe().ok();
    let beside = own.map(|daemon| daemon.with_file_name("cria-monitor"));
    beside
        .and_then(|path| find(&path))
        .or_else(|| find(Path::new("cria-monitor")))
        .or_else(|| find(Path::new(PACKAGED_MONITOR)))
}

fn find_in(program: &Path, path: &OsStr) -> Option<PathBuf> {
    if program.is_absolute() {
        return is_executable(program).then(|| program.to_owned());
    }
    env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_first_executable_of_the_name_is_found() {
        let directory = TempDir::new().unwrap();
        for (name, mode) in [("a/tool", 0o644), ("b/tool", 0o755), ("c/tool", 0o755)] {
            let path = directory.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::OpenOptions::new().create(true).write(true).mode(mode).open(path).unwrap();
        }
        let at = |name: &str| directory.path().join(name);
        let path = env::join_paths([at("a"), at("none"), at("b"), at("c")]).unwrap();
        for (program, found) in [
            (PathBuf::from("tool"), Some(at("b/tool"))),
            (PathBuf::from("other"), None),
            (at("c/tool"), Some(at("c/tool"))),
            (at("a/tool"), None),
            (at("a"), None),
        ] {
            assert_eq!(find_in(&program, &path), found, "{}", program.display());
        }
        assert_eq!(find_in(Path::new("tool"), OsStr::new("")), None);
    }
}
