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
    Ok(volumes)
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
        propagation: mount.propagation,
        options: mount.mount_options.clone(),
    })
}

fn source(mount: &Mount, images: &BTreeMap<String, PathBuf>) -> Result<PathBuf, SpecError> {
    if mount.image.is_some() {
        let mounted = images.get(&mount.container_path).cloned();
        return mounted.ok_or_else(|| SpecError::invalid("image of a mount", "it is not mounted"));
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

    let invalid = |reason| SpecError::invalid("container_path", format!("{path:?} {reason}"));
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
