//! The host's side of the mounts a request asks for: what is mounted, found or made on the host,
//! and whether it propagates as asked. All that `mounts` need not ask the host for is checked
//! there.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::SpecError;
use super::mountinfo::MountTable;
use super::node::NodeFacts;
use crate::container::config::{Mount, Propagation};

/// All that the KEP lets through; the others would undo what the node set.
const MOUNT_OPTIONS: [&str; 3] = ["nodev", "noexec", "nosuid"];

/// A mount of the request, ready to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Absolute, without `.` and `..`.
    pub(super) destination: PathBuf,
    /// On the host, without symbolic links: the OCI runtime follows none of them.
    pub(super) source: PathBuf,
    pub(super) access: Access,
    pub(super) propagation: Propagation,
    pub(super) options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    /// The mount itself, but not those beneath it.
    ReadOnly,
    /// With all mounts beneath it.
    RecursivelyReadOnly,
}

/// Checks `mounts`, makes the directories that are missing on the host, and finds what is to be
/// mounted. `images` says where image volumes are mounted, by their path in the container.
pub(crate) fn look_up(
    mounts: &[Mount],
    images: &BTreeMap<String, PathBuf>,
    node: &NodeFacts,
) -> Result<Vec<Volume>, SpecError> {
    let checked = mounts.iter().map(|mount| check(mount, images, node));
    let mut volumes = checked.collect::<Result<Vec<_>, _>>()?;
    for volume in &mut volumes {
        volume.source = resolve(&volume.source)?;
    }
    if volumes.iter().any(|volume| volume.propagation != Propagation::Private) {
        let table = MountTable::read().map_err(SpecError::io("read the mount table"))?;
        volumes.iter().try_for_each(|volume| check_propagation(volume, &table))?;
    }
    volumes.iter_mut().for_each(|volume| let_go_of_own_mounts(volume, &node.own_dirs));
    Ok(volumes)
}

/// A private copy of a tree with cria's mounts in it (an agent's `hostPath: /`) would hold other
/// pods' file systems and namespaces after their end; in a slave they vanish with the host's. A
/// recursively read-only one must stay private: what came in later would be writable.
fn let_go_of_own_mounts(volume: &mut Volume, own_dirs: &[PathBuf]) {
    let holds_own = own_dirs.iter().any(|own| own.starts_with(&volume.source));
    if holds_own
        && volume.propagation == Propagation::Private
        && volume.access != Access::RecursivelyReadOnly
    {
        volume.propagation = Propagation::HostToContainer;
    }
}

/// A missing source is made, as a directory: the kubelet relies on it for `hostPath` volumes
/// without a type.
fn resolve(source: &Path) -> Result<PathBuf, SpecError> {
    match fs::canonicalize(source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(source).map_err(SpecError::io("make the source of a mount"))?;
            fs::canonicalize(source)
        }
        found => found,
    }
    .map_err(SpecError::io("find the source of a mount"))
}

fn check(
    mount: &Mount,
    images: &BTreeMap<String, PathBuf>,
    node: &NodeFacts,
) -> Result<Volume, SpecError> {
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(SpecError::not_here("an id-mapped mount", "user namespaces are not served"));
    }
    if let Some(wrong) = mount.mount_options.iter().find(|o| !MOUNT_OPTIONS.contains(&o.as_str())) {
        let reason = format!("{wrong:?} is none of {}", MOUNT_OPTIONS.join(", "));
        return Err(SpecError::invalid("mount_options", reason));
    }
    Ok(Volume {
        destination: destination(&mount.container_path)?,
        source: source(mount, images)?,
        access: access(mount, node)?,
        // Nothing is ever mounted in an image.
        propagation: match mount.image {
            Some(_) => Propagation::Private,
            None => mount.propagation,
        },
        options: options(mount),
    })
}

/// Programs of an image that is mounted as data get no rights by their files, nor are its device nodes
/// any. (A bind mount of the OCI runtime's does not take this over from what it binds.)
fn options(mount: &Mount) -> Vec<String> {
    let mut options = mount.mount_options.clone();
    if mount.image.is_some() {
        options.extend(["nosuid", "nodev"].map(str::to_owned));
    }
    options
}

fn source(mount: &Mount, images: &BTreeMap<String, PathBuf>) -> Result<PathBuf, SpecError> {
    if mount.image.is_some() {
        if !mount.host_path.is_empty() {
            let reason = "an image is to be mounted instead";
            return Err(SpecError::invalid("host_path of a mount", reason));
        }
        let mounted = images.get(&mount.container_path).cloned();
        let reason = "the image is mounted nowhere";
        return mounted.ok_or_else(|| SpecError::invalid("image of a mount", reason));
    }
    let path = Path::new(&mount.host_path);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let reason = format!("{:?} is not absolute", mount.host_path);
    Err(SpecError::invalid("host_path of a mount", reason))
}

fn access(mount: &Mount, node: &NodeFacts) -> Result<Access, SpecError> {
    if !mount.recursive_read_only {
        // An image is shared by all who mount it.
        let readonly = mount.readonly || mount.image.is_some();
        return Ok(if readonly { Access::ReadOnly } else { Access::ReadWrite });
    }
    if !mount.readonly || mount.propagation != Propagation::Private {
        let reason = "only a read-only mount with private propagation can be recursively so";
        return Err(SpecError::invalid("recursive_read_only", reason));
    }
    if !node.recursive_read_only {
        let reason = "the kernel or the OCI runtime does not know the option rro";
        return Err(SpecError::not_here("a recursively read-only mount", reason));
    }
    Ok(Access::RecursivelyReadOnly)
}

/// Without `.`, `..`, and double or trailing slashes. Symbolic links are the image's own.
fn destination(path: &str) -> Result<PathBuf, SpecError> {
    use std::path::Component::{CurDir, Normal, ParentDir, Prefix, RootDir};

    let invalid =
        |reason| SpecError::invalid("mounts.container_path", format!("{path:?} {reason}"));
    if !path.starts_with('/') {
        return Err(invalid("is not absolute"));
    }
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Normal(name) => clean.push(name),
            ParentDir => drop(clean.pop()),
            RootDir | CurDir | Prefix(_) => {}
        }
    }
    if clean == Path::new("/") { Err(invalid("is the root")) } else { Ok(clean) }
}

/// The OCI runtime would make the mount, but nothing would ever propagate.
fn check_propagation(volume: &Volume, table: &MountTable) -> Result<(), SpecError> {
    let host = table.of(&volume.source);
    let (shared, slave) = host.map_or((false, false), |mount| (mount.shared, mount.slave));
    let (what, holds, lack) = match volume.propagation {
        Propagation::Private => return Ok(()),
        Propagation::HostToContainer => {
            ("HostToContainer propagation", shared || slave, "neither shared nor slave")
        }
        Propagation::Bidirectional => ("Bidirectional propagation", shared, "not shared"),
    };
    if holds {
        return Ok(());
    }
    let mount_point = host.map_or(Path::new("/"), |mount| &mount.mount_point);
    let reason = format!(
        "{} is on the mount {}, which is {lack}",
        volume.source.display(),
        mount_point.display()
    );
    Err(SpecError::not_here(what, reason))
}

#[cfg(test)]
mod tests {
    use super::super::tests::node;
    use super::*;
    use crate::container::config::{IdMapping, ImageRequest};

    fn mount(host_path: &Path, container_path: &str) -> Mount {
        Mount {
            container_path: container_path.into(),
            host_path: host_path.to_str().unwrap().into(),
            ..Default::default()
        }
    }

    fn check_one(mount: &Mount) -> Result<Volume, SpecError> {
        check(mount, &BTreeMap::new(), &node())
    }

    #[test]
    fn a_destination_is_absolute_clean_and_not_the_root() {
        for (path, clean) in [
            ("/a", Some("/a")),
            ("/a/", Some("/a")),
            ("//a/./b", Some("/a/b")),
            ("/a/../../b", Some("/b")),
            ("/", None),
            ("/a/..", None),
            ("a", None),
            ("", None),
        ] {
            assert_eq!(destination(path).ok(), clean.map(PathBuf::from), "{path:?}");
        }
    }

    #[test]
    fn a_mount_is_recursively_read_only_only_if_it_is_read_only_private_and_the_node_can() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        let cases = [
            (true, Private, true, "ok"),
            (true, Private, false, "node"),
            (false, Private, true, "invalid"),
            (true, HostToContainer, true, "invalid"),
            (true, Bidirectional, true, "invalid"),
        ];
        for (readonly, propagation, node_can, expected) in cases {
            let mount = Mount {
                readonly,
                propagation,
                recursive_read_only: true,
                ..mount(Path::new("/x"), "/x")
            };
            let mut node = node();
            node.recursive_read_only = node_can;
            let found = match access(&mount, &node) {
                Ok(Access::RecursivelyReadOnly) => "ok",
                Err(SpecError::Invalid { field: "recursive_read_only", .. }) => "invalid",
                Err(SpecError::NotOnThisNode { .. }) => "node",
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{readonly} {propagation:?} {node_can}");
        }
    }

    #[test]
    fn an_image_volume_is_where_it_was_mounted_and_read_only() {
        let request = Mount {
            container_path: "/models".into(),
            image: Some(ImageRequest::default()),
            propagation: Propagation::HostToContainer,
            ..Default::default()
        };
        let images = BTreeMap::from([("/models".to_owned(), PathBuf::from("/mnt/image"))]);
        let volume = check(&request, &images, &node()).unwrap();
        assert_eq!(volume.source, Path::new("/mnt/image"));
        assert_eq!((volume.access, volume.propagation), (Access::ReadOnly, Propagation::Private));
        assert_eq!(volume.options, ["nosuid", "nodev"]);
        let both = Mount { host_path: "/host".into(), ..request.clone() };
        assert!(matches!(check(&both, &images, &node()), Err(SpecError::Invalid { .. })));
        assert!(check_one(&request).is_err());
    }

    #[test]
    fn only_the_options_that_take_rights_away_are_let_through() {
        let with = |options: &[&str]| Mount {
            mount_options: options.iter().map(|&option| option.to_owned()).collect(),
            ..mount(Path::new("/x"), "/x")
        };
        assert_eq!(
            check_one(&with(&["noexec", "nosuid", "nodev"])).unwrap().options,
            ["noexec", "nosuid", "nodev"]
        );
        for wrong in ["exec", "suid", "rw", "ro", "shared", ""] {
            let error = check_one(&with(&["noexec", wrong])).unwrap_err();
            assert!(matches!(error, SpecError::Invalid { field: "mount_options", .. }), "{wrong}");
        }
    }

    #[test]
    fn id_mappings_and_relative_paths_are_refused() {
        let mapped =
            Mount { uid_mappings: vec![IdMapping::default()], ..mount(Path::new("/x"), "/x") };
        assert!(matches!(check_one(&mapped), Err(SpecError::NotOnThisNode { .. })));
        let relative = mount(Path::new("x"), "/x");
        assert!(matches!(check_one(&relative), Err(SpecError::Invalid { .. })));
    }

    #[test]
    fn propagation_is_refused_where_the_host_would_not_propagate() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        let table = MountTable::parse(
            b"1 0 0:1 / / rw - ext4 d rw\n2 1 0:2 / /shared rw shared:1 - ext4 d rw\n\
              3 1 0:3 / /slave rw master:1 - ext4 d rw\n",
        );
        for (source, propagation, fine) in [
            ("/private", Private, true),
            ("/private", HostToContainer, false),
            ("/private", Bidirectional, false),
            ("/shared/x", HostToContainer, true),
            ("/shared/x", Bidirectional, true),
            ("/slave", HostToContainer, true),
            ("/slave", Bidirectional, false),
        ] {
            let mut volume = check_one(&mount(Path::new(source), "/x")).unwrap();
            volume.propagation = propagation;
            let checked = check_propagation(&volume, &table);
            assert_eq!(checked.is_ok(), fine, "{source} {propagation:?}: {checked:?}");
            if let Err(error) = checked {
                assert!(error.to_string().contains(source), "{error}");
            }
        }
    }

    #[test]
    fn a_source_is_made_if_missing_and_its_symbolic_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let dir_path = dir.path().canonicalize().unwrap();
        let target = dir_path.join("target");
        fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink("target", dir_path.join("link")).unwrap();
        let missing = dir_path.join("missing/deep");
        let under_file = target.join("x");

        let look_up = |path: &Path| look_up(&[mount(path, "/x")], &BTreeMap::new(), &node());
        assert_eq!(look_up(&dir_path.join("link")).unwrap()[0].source, target);
        assert_eq!(look_up(&missing).unwrap()[0].source, missing);
        assert!(missing.is_dir());
        assert!(matches!(look_up(&under_file), Err(SpecError::Io { .. })));
    }

    #[test]
    fn a_copy_of_our_own_mounts_follows_the_hosts() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        let own = [PathBuf::from("/run/cria")];
        let read_write = Access::ReadWrite;
        for (source, access, asked, given) in [
            ("/", read_write, Private, HostToContainer),
            ("/run", Access::ReadOnly, Private, HostToContainer),
            ("/run/cria", read_write, Private, HostToContainer),
            ("/run/cria/x", read_write, Private, Private),
            ("/var", read_write, Private, Private),
            ("/", read_write, Bidirectional, Bidirectional),
            ("/", Access::RecursivelyReadOnly, Private, Private),
        ] {
            let mut volume = check_one(&mount(Path::new(source), "/x")).unwrap();
            (volume.access, volume.propagation) = (access, asked);
            let_go_of_own_mounts(&mut volume, &own);
            assert_eq!(volume.propagation, given, "{source} {access:?} {asked:?}");
        }
    }
}
