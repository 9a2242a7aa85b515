//! The list of mounts, in the order in which they are made. Pure.

use std::path::Path;

use oci_spec::runtime::Mount;

use super::SpecRequest;
use super::volumes::{Access, Volume};
use crate::container::config::Propagation;

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

#[cfg(test)]
mod tests {
    use super::super::tests::Parts;
    use super::*;

    fn volume(destination: &str, source: &str) -> Volume {
        Volume {
            destination: destination.into(),
            source: source.into(),
            access: Access::ReadWrite,
            propagation: Propagation::Private,
            options: Vec::new(),
        }
    }

    fn mounts(change: impl FnOnce(&mut Parts)) -> Vec<Mount> {
        let mut parts = Parts::new();
        change(&mut parts);
        parts.build().unwrap().mounts().clone().unwrap()
    }

    fn destinations(mounts: &[Mount]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect()
    }

    fn at<'a>(mounts: &'a [Mount], destination: &str) -> &'a Mount {
        let mut found = mounts.iter().filter(|mount| mount.destination() == Path::new(destination));
        let mount = found.next().unwrap();
        assert!(found.next().is_none(), "{destination} is mounted twice");
        mount
    }

    fn options(mount: &Mount) -> Vec<&str> {
        mount.options().as_ref().unwrap().iter().map(String::as_str).collect()
    }

    const BASIC: [&str; 6] = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    const OF_SANDBOX: [&str; 4] = ["/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

    #[test]
    fn parents_are_mounted_before_what_is_beneath_them() {
        let mounts = mounts(|parts| {
            parts.volumes =
                ["/a/b/c", "/a", "/z", "/a/b"].map(|path| volume(path, "/source")).into();
        });
        let binds = [["/a", "/z"].as_slice(), &["/dev/shm"], &OF_SANDBOX[1..], &["/a/b", "/a/b/c"]];
        let binds = binds.concat();
        let expected = [&BASIC[..], &binds].concat();
        assert_eq!(destinations(&mounts), expected);
    }

    #[test]
    fn a_volume_takes_the_place_of_what_would_be_there() {
        for path in OF_SANDBOX.iter().chain(&["/proc", "/sys/fs/cgroup", "/dev/pts"]) {
            let mounts = mounts(|parts| parts.volumes = vec![volume(path, "/asked")]);
            assert_eq!(at(&mounts, path).source().as_deref(), Some(Path::new("/asked")), "{path}");
            assert_eq!(mounts.len(), BASIC.len() + OF_SANDBOX.len(), "{path}");
        }
    }

    #[test]
    fn a_volume_hides_the_basic_mounts_beneath_it_but_not_the_sandboxs() {
        let mounts = mounts(|parts| {
            parts.volumes = vec![volume("/dev", "/dev"), volume("/sys", "/sys")];
        });
        let expected = [&["/proc", "/dev", "/sys"], &OF_SANDBOX[..]].concat();
        assert_eq!(destinations(&mounts), expected);
        // A name that merely begins alike hides nothing.
        let mounts = self::mounts(|parts| parts.volumes = vec![volume("/devices", "/x")]);
        assert!(destinations(&mounts).contains(&"/dev"));
    }

    #[test]
    fn of_two_volumes_at_one_path_the_last_is_mounted() {
        let mounts = mounts(|parts| {
            parts.volumes = vec![volume("/x", "/first"), volume("/x", "/last")];
        });
        assert_eq!(at(&mounts, "/x").source().as_deref(), Some(Path::new("/last")));
    }

    #[test]
    fn access_propagation_and_options_become_mount_options() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        for (access, propagation, expected, root) in [
            (Access::ReadWrite, Private, ["rbind", "rprivate", "rw"], None),
            (Access::ReadOnly, Private, ["rbind", "rprivate", "ro"], None),
            (Access::RecursivelyReadOnly, Private, ["rbind", "rprivate", "rro"], None),
            (Access::ReadWrite, HostToContainer, ["rbind", "rslave", "rw"], Some("rslave")),
            (Access::ReadOnly, Bidirectional, ["rbind", "rshared", "ro"], Some("rshared")),
        ] {
            let volume = Volume {
                access,
                propagation,
                options: vec!["noexec".into()],
                ..volume("/x", "/source")
            };
            let mount = bind_mount(&volume);
            assert_eq!(options(&mount), [&expected[..], &["noexec"]].concat());
            assert_eq!(rootfs_propagation(&[volume]), root);
        }
        let slave = Volume { propagation: HostToContainer, ..volume("/x", "/x") };
        let shared = Volume { propagation: Bidirectional, ..slave.clone() };
        assert_eq!(rootfs_propagation(&[slave, shared]), Some("rshared"));
    }

    #[test]
    fn the_sandboxs_files_are_as_writable_as_the_root_and_shm_always_is() {
        for (readonly_rootfs, expected) in [(false, "rw"), (true, "ro")] {
            let mounts = mounts(|parts| parts.config.security.readonly_rootfs = readonly_rootfs);
            for path in &OF_SANDBOX[1..] {
                assert_eq!(options(at(&mounts, path))[2], expected, "{path}");
            }
            assert_eq!(options(at(&mounts, "/dev/shm"))[2], "rw");
        }
    }

    #[test]
    fn shared_memory_is_the_sandboxs_or_with_its_ipc_the_hosts() {
        let source = |mounts: &[Mount]| at(mounts, "/dev/shm").source().clone().unwrap();
        assert_eq!(source(&mounts(|_| {})), Path::new("/run/s/shm"));
        let host = mounts(|parts| parts.namespaces.ipc = None);
        assert_eq!(source(&host), Path::new("/dev/shm"));
    }

    #[test]
    fn the_kernels_file_systems_are_writable_only_if_privileged() {
        for (privileged, expected) in [(false, "ro"), (true, "rw")] {
            let mounts = mounts(|parts| parts.config.security.privileged = privileged);
            for path in ["/sys", "/sys/fs/cgroup"] {
                assert_eq!(options(at(&mounts, path)), ["nosuid", "noexec", "nodev", expected]);
            }
        }
    }
}
