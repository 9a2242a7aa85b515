//! Device nodes: those the request names, and all of the host's for a privileged container.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fs_err as fs;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::SpecError;
use crate::container::config::Device;

/// Every container has its own of these from the OCI runtime.
const OWN: [&str; 2] = ["/dev/console", "/dev/ptmx"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// In the container.
    pub(crate) path: PathBuf,
    pub(crate) kind: LinuxDeviceType,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Some of `r`, `w`, `m`.
    pub(crate) access: String,
}

/// The devices asked for. A directory stands for all devices in it.
pub(crate) fn look_up(devices: &[Device]) -> Result<Vec<HostDevice>, SpecError> {
    let mut found = Vec::new();
    for device in devices {
        let access = access(&device.permissions)?;
        let container_path = absolute("container_path of a device", &device.container_path)?;
        let host_path = absolute("host_path of a device", &device.host_path)?;
        let host_path = fs::canonicalize(host_path).map_err(SpecError::io("find a device"))?;
        let metadata = fs::metadata(&host_path).map_err(SpecError::io("find a device"))?;
        if metadata.is_dir() {
            let walk = Walk { root: &host_path, seen_as: container_path, access };
            walk.all(&mut found).map_err(SpecError::io("list devices"))?;
        } else {
            let device = node(container_path, &metadata, access).ok_or_else(|| {
                let reason = format!("{} is not a device", host_path.display());
                SpecError::invalid("host_path of a device", reason)
            })?;
            found.push(device);
        }
    }
    Ok(found)
}

/// All devices in the host's `/dev`, for a privileged container.
pub(crate) fn of_host(dev: &Path) -> Result<Vec<HostDevice>, SpecError> {
    let mut found = Vec::new();
    let walk = Walk { root: dev, seen_as: Path::new("/dev"), access: "rwm" };
    walk.all(&mut found).map_err(SpecError::io("list devices"))?;
    found.retain(|device| !OWN.iter().any(|own| device.path == Path::new(own)));
    Ok(found)
}

/// What the device controller lets the container use, beside what every container may use, which
/// the OCI runtime adds.
pub(super) fn rules(devices: &[HostDevice], privileged: bool) -> Vec<LinuxDeviceCgroup> {
    let mut everything = LinuxDeviceCgroup::default();
    everything.set_allow(privileged).set_access(Some("rwm".to_owned()));
    if privileged {
        return vec![everything];
    }
    let mut rules = vec![everything];
    rules.extend(devices.iter().map(|device| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(device.kind))
            .set_major(Some(device.major.into()))
            .set_minor(Some(device.minor.into()))
            .set_access(Some(device.access.clone()));
        rule
    }));
    rules
}

/// One node for each path; the last wins.
pub(super) fn nodes(devices: &[HostDevice]) -> Vec<LinuxDevice> {
    let mut nodes: Vec<LinuxDevice> = Vec::with_capacity(devices.len());
    for device in devices {
        let mut node = LinuxDevice::default();
        node.set_path(device.path.clone())
            .set_typ(device.kind)
            .set_major(device.major.into())
            .set_minor(device.minor.into())
            .set_file_mode(Some(device.mode))
            .set_uid(Some(device.uid))
            .set_gid(Some(device.gid));
        match nodes.iter_mut().find(|known| known.path() == &device.path) {
            Some(known) => *known = node,
            None => nodes.push(node),
        }
    }
    nodes
}

struct Walk<'a> {
    root: &'a Path,
    /// Where `root` is in the container.
    seen_as: &'a Path,
    access: &'a str,
}

impl Walk<'_> {
    /// In the order of their names. Not across mounts (`pts`, `shm`, `mqueue`, `hugepages`: none
    /// holds devices of the host), and not along symbolic links.
    fn all(&self, found: &mut Vec<HostDevice>) -> io::Result<()> {
        let file_system = fs::symlink_metadata(self.root)?.dev();
        let mut paths = fs::read_dir(self.root)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // Unplugged while we look.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let name = path.file_name().expect("an entry of a directory has a name");
            let seen_as = self.seen_as.join(name);
            if metadata.is_dir() && metadata.dev() == file_system {
                Walk { root: &path, seen_as: &seen_as, access: self.access }.all(found)?;
            } else {
                found.extend(node(&seen_as, &metadata, self.access));
            }
        }
        Ok(())
    }
}

/// `None` for what is not a device.
fn node(path: &Path, metadata: &std::fs::Metadata, access: &str) -> Option<HostDevice> {
    let file_type = metadata.file_type();
    let kind = if file_type.is_char_device() {
        LinuxDeviceType::C
    } else if file_type.is_block_device() {
        LinuxDeviceType::B
    } else {
        return None;
    };
    Some(HostDevice {
        path: path.to_owned(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

fn absolute<'a>(field: &'static str, path: &'a str) -> Result<&'a Path, SpecError> {
    let absolute = Some(Path::new(path)).filter(|path| path.is_absolute());
    absolute.ok_or_else(|| SpecError::invalid(field, format!("{path:?} is not absolute")))
}

fn access(permissions: &str) -> Result<&str, SpecError> {
    if !permissions.is_empty() && permissions.bytes().all(|byte| b"rwm".contains(&byte)) {
        return Ok(permissions);
    }
    let reason = format!("{permissions:?} is not one or more of r, w, m");
    Err(SpecError::invalid("permissions of a device", reason))
}
