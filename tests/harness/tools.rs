//! Where the programs under test and their counterparts are.

use std::env;
use std::path::{Path, PathBuf};

/// A tool built by `tests/tools/build`: crictl, critest, kubelet, containerd, runc ...
pub fn tool(name: &str) -> PathBuf {
    let path = folder().join("bin").join(name);
    assert!(path.exists(), "{} is missing: run tests/tools/build {name}", path.display());
    path
}

/// The folder that holds all tools, for a PATH.
pub fn tools_path() -> PathBuf {
    folder().join("bin")
}

/// `cria` or `cria-monitor`: from `$CRIA_BIN_DIR`, else from `target/release`.
pub fn binary(name: &str) -> PathBuf {
    let folder = env::var_os("CRIA_BIN_DIR")
        .map_or_else(|| workspace().join("target/release"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run make build", path.display());
    path
}

/// The root of the work tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is a member of the workspace")
}

fn folder() -> PathBuf {
    if let Some(folder) = env::var_os("CRIA_TOOLS") {
        return folder.into();
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache"));
    cache.join("cria/tools")
}
