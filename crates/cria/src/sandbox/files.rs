//! The files a pod's containers share: resolv.conf, hostname, hosts, and `/dev/shm`.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::config::{Dns, NamespaceMode, SandboxConfig};
use super::namespaces;
use crate::id::SandboxId;
use crate::mounts;
use crate::paths::Paths;

/// What a container's shared memory may hold unless the pod says otherwise: as everywhere.
const SHM_BYTES: u64 = 64 << 20;

/// Where the files of a pod are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) hostname: PathBuf,
    pub(crate) hosts: PathBuf,
    /// The host's where the pod shares the host's IPC namespace.
    pub(crate) shm: PathBuf,
}

impl Files {
    pub(crate) fn of(paths: &Paths, id: &SandboxId, config: &SandboxConfig) -> Self {
        let directory = paths.sandbox_run(id);
        let shm = match config.security.namespaces.ipc {
            NamespaceMode::Node => PathBuf::from("/dev/shm"),
            NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Target => {
                directory.join("shm")
            }
        };
        Self {
            resolv_conf: directory.join("resolv.conf"),
            hostname: directory.join("hostname"),
            hosts: directory.join("hosts"),
            shm,
        }
    }

    /// Makes them. Blocking.
    pub(super) fn make(&self, id: &SandboxId, config: &SandboxConfig) -> io::Result<()> {
        let resolv_conf = match &config.dns {
            Some(dns) => resolv_conf(dns),
            None => host_file("/etc/resolv.conf")?,
        };
        fs_err::write(&self.resolv_conf, resolv_conf)?;
        fs_err::write(&self.hostname, format!("{}\n", namespaces::hostname(config, id)))?;
        fs_err::write(&self.hosts, host_file("/etc/hosts")?)?;
        if config.security.namespaces.ipc != NamespaceMode::Node {
            mounts::shm(&self.shm, SHM_BYTES)?;
        }
        Ok(())
    }
}

/// Takes away what is mounted in the pod's run directory.
pub(super) fn unmount(paths: &Paths, id: &SandboxId) -> io::Result<()> {
    mounts::detach(&paths.sandbox_run(id).join("shm"))
}

/// A node without such a file is unusual, but no reason to refuse a pod.
fn host_file(path: impl AsRef<Path>) -> io::Result<String> {
    match fs_err::read_to_string(path.as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}

/// As resolv.conf(5) wants it.
fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        writeln!(text, "search {}", dns.searches.join(" ")).expect("a String takes all");
    }
    for server in &dns.servers {
        writeln!(text, "nameserver {server}").expect("a String takes all");
    }
    if !dns.options.is_empty() {
        writeln!(text, "options {}", dns.options.join(" ")).expect("a String takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_what_was_asked_and_nothing_else() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let dns = Dns {
            servers: words(&["10.0.0.10", "fd00::10"]),
            searches: words(&["a.local", "b.local"]),
            options: words(&["ndots:5"]),
        };
        let expected =
            "search a.local b.local\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
        assert_eq!(resolv_conf(&Dns::default()), "");
    }
}
