//! Where things lie. Everything that belongs to an object is named by its id, so that a restarted
//! daemon finds it without asking.
//!
//! ```text
//! root  (/var/lib/cria)            survives a reboot
//!   sandboxes/ID/record.json
//!   containers/ID/record.json  upper/  work/
//!   layers/ images/ incoming/      the image store's own
//! run   (/run/cria)                a private mount, gone with the boot
//!   lock  oci-probe.json  oci/     the OCI runtime's state
//!   sandboxes/ID/ ipc uts pid      pinned namespaces
//!                 shm/ resolv.conf hostname hosts
//!   containers/ID/config.json rootfs/   the bundle
//!                 volumes/N        images that are volumes
//!                 monitor.sock exit log.state ...   the monitor's
//! netns (/run/netns)
//!   cria-ID                        where Multus and OVN-Kubernetes look for it
//! ```

use std::path::{Path, PathBuf};

use crate::id::{ContainerId, SandboxId};

#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) netns: PathBuf,
}

/// What the name of every network namespace of ours begins with.
const NETNS_PREFIX: &str = "cria-";

impl Paths {
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub(crate) fn sandbox_record(&self, id: &SandboxId) -> PathBuf {
        self.sandbox(id).join(RECORD)
    }

    pub(crate) fn sandboxes_run(&self) -> PathBuf {
        self.run.join("sandboxes")
    }

    pub(crate) fn sandbox_run(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes_run().join(id.as_str())
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    pub(crate) fn container_record(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join(RECORD)
    }

    pub(crate) fn containers_run(&self) -> PathBuf {
        self.run.join("containers")
    }

    /// The bundle, and the monitor's run directory.
    pub(crate) fn container_run(&self, id: &ContainerId) -> PathBuf {
        self.containers_run().join(id.as_str())
    }

    /// The container's writable layer.
    pub(crate) fn upper(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("upper")
    }

    pub(crate) fn rootfs(&self, id: &ContainerId) -> PathBuf {
        self.container_run(id).join("rootfs")
    }

    /// Where images are mounted that are volumes of the container.
    pub(crate) fn image_volumes(&self, id: &ContainerId) -> PathBuf {
        self.container_run(id).join("volumes")
    }

    pub(crate) fn netns(&self, id: &SandboxId) -> PathBuf {
        self.netns.join(format!("{NETNS_PREFIX}{id}"))
    }

    /// The OCI runtime's `--root`.
    pub(crate) fn oci_state(&self) -> PathBuf {
        self.run.join("oci")
    }
}

const RECORD: &str = "record.json";

/// The objects that have a directory below `parent`, named by id.
pub(crate) fn ids_below<T>(parent: &Path, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let Ok(entries) = fs_err::read_dir(parent) else { return Vec::new() };
    entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?)).collect()
}
