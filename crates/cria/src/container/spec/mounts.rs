//! The list of mounts, in the order in which they are made. Pure.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::SpecRequest;
use super::volumes::{Access, Volume};
use crate::container::config::Propagation;

/// The sandbox's files that its containers see, on the host.
#[derive(Clone, Debug)]
pub(crate) struct SandboxFiles {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) hostname: PathBuf,
    pub(crate) hosts: PathBuf,
    /// Not used by containers with the host's IPC: these have the host's.
    pub(crate) shm: PathBuf,
}

/// The basic file systems first, then the binds, parents before their children.
pub(super) fn list(request: &SpecRequest<'_>) -> Vec<Mount> {
    let binds = binds(request);
    let mut mounts = basic(request);
    // Hidden, if at or beneath a bind: a privileged pod that mounts the host's /dev has that.
    mounts.retain(|basic| {
        !binds.iter().any(|bind| basic.destination().starts_with(&bind.destination))
    });
    mounts.extend(binds.iter().map(bind_mount));
    mounts
}

/// The propagation of the container's root, without which that of a mount in it has no effect.
pub(super) fn rootfs_propagation(volumes: &[Volume]) -> Option<&'static str> {
    let has = |wanted| volumes.iter().any(|volume| volume.propagation == wanted);
    if has(Propagation::Bidirectional) {
        Some("rshared")
    } else if has(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn basic(request: &SpecRequest<'_>) -> Vec<Mount> {
    let sealed = ["nosuid", "noexec", "nodev"];
    let kernel = |path, typ| {
        let writable = request.config.security.privileged;
        let access = if writable { "rw" } else { "ro" };
        mount(path, typ, &[&sealed[..], &[access]].concat())
    };
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    vec![
        mount("/proc", "proc", &sealed),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &pts),
        mount("/dev/mqueue", "mqueue", &sealed),
        kernel("/sys", "sysfs"),
        kernel("/sys/fs/cgroup", "cgroup"),
    ]
}

fn mount(destination: &str, typ: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(typ.into()))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

/// The sandbox's files, unless the request mounts these paths itself, and the request's volumes,
/// of which the last wins at any one path.
fn binds(request: &SpecRequest<'_>) -> Vec<Volume> {
    let mut binds = sandbox_binds(request);
    for volume in request.volumes {
        binds.retain(|earlier| earlier.destination != volume.destination);
        binds.push(volume.clone());
    }
    // Stable: the order of the request among siblings.
    binds.sort_by_key(|bind| bind.destination.components().count());
    binds
}

fn sandbox_binds(request: &SpecRequest<'_>) -> Vec<Volume> {
    let files = request.files;
    let readonly_rootfs = request.config.security.readonly_rootfs;
    let file_access = if readonly_rootfs { Access::ReadOnly } else { Access::ReadWrite };
    let shm: &Path = match request.namespaces.ipc {
        Some(_) => &files.shm,
        None => Path::new("/dev/shm"),
    };
    let bind = |destination: &str, source: &Path, access| Volume {
        destination: destination.into(),
        source: source.to_owned(),
        access,
        propagation: Propagation::Private,
        options: Vec::new(),
    };
    vec![
        bind("/dev/shm", shm, Access::ReadWrite),
        bind("/etc/hostname", &files.hostname, file_access),
        bind("/etc/hosts", &files.hosts, file_access),
        bind("/etc/resolv.conf", &files.resolv_conf, file_access),
    ]
}

fn bind_mount(bind: &Volume) -> Mount {
    let propagation = match bind.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match bind.access {
        Access::ReadWrite => "rw",
        Access::ReadOnly => "ro",
        Access::RecursivelyReadOnly => "rro",
    };
    let mut options = vec!["rbind".to_owned(), propagation.to_owned(), access.to_owned()];
    options.extend(bind.options.iter().cloned());
    let mut mount = Mount::default();
    mount
        .set_destination(bind.destination.clone())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(bind.source.clone()))
        .set_options(Some(options));
    mount
}
