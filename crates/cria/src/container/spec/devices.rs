//! Device nodes: those the request names, and all of the host's for a privileged container.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fs_err as fs;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::SpecError;
use crate::container::config::{Device, SecurityContext};

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
        let host_path = resolve(host_path)?;
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

/// Another node may have what this one lacks.
fn resolve(host_path: &Path) -> Result<PathBuf, SpecError> {
    fs::canonicalize(host_path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            SpecError::not_here("a device", format!("there is no {}", host_path.display()))
        }
        _ => SpecError::io("find a device")(error),
    })
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
pub(super) fn rules(devices: &[HostDevice], security: &SecurityContext) -> Vec<LinuxDeviceCgroup> {
    let mut everything = LinuxDeviceCgroup::default();
    everything.set_allow(security.privileged).set_access(Some("rwm".to_owned()));
    if security.privileged {
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
    let by_path: BTreeMap<_, _> = devices.iter().map(|device| (&device.path, device)).collect();
    by_path.into_values().map(to_spec).collect()
}

fn to_spec(device: &HostDevice) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(device.path.clone())
        .set_typ(device.kind)
        .set_major(device.major.into())
        .set_minor(device.minor.into())
        .set_file_mode(Some(device.mode))
        .set_uid(Some(device.uid))
        .set_gid(Some(device.gid));
    node
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

#[cfg(test)]
mod tests {
    use rustix::fs::{FileType, Mode, makedev, mknodat};

    use super::*;

    fn make(path: &Path, kind: FileType, minor: u32) {
        let mode = Mode::from_raw_mode(0o640);
        mknodat(rustix::fs::CWD, path, kind, mode, makedev(7, minor)).unwrap();
    }

    /// `a` and `sub/b` are devices; the rest is what else there is in a /dev.
    fn dev() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        make(&dir.path().join("a"), FileType::BlockDevice, 1);
        make(&dir.path().join("sub/b"), FileType::CharacterDevice, 2);
        make(&dir.path().join("console"), FileType::CharacterDevice, 3);
        make(&dir.path().join("ptmx"), FileType::CharacterDevice, 4);
        make(&dir.path().join("fifo"), FileType::Fifo, 0);
        fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("sub", dir.path().join("link-to-sub")).unwrap();
        dir
    }

    fn device(host_path: &Path, container_path: &str, permissions: &str) -> Device {
        Device {
            host_path: host_path.to_str().unwrap().into(),
            container_path: container_path.into(),
            permissions: permissions.into(),
        }
    }

    fn paths(devices: &[HostDevice]) -> Vec<&str> {
        devices.iter().map(|device| device.path.to_str().unwrap()).collect()
    }

    #[test]
    fn a_device_keeps_its_number_owner_and_mode_under_its_new_path() {
        let dev = dev();
        for host_path in ["a", "link"] {
            let found = look_up(&[device(&dev.path().join(host_path), "/dev/x", "rw")]).unwrap();
            let expected = HostDevice {
                path: "/dev/x".into(),
                kind: LinuxDeviceType::B,
                major: 7,
                minor: 1,
                mode: 0o640,
                uid: 0,
                gid: 0,
                access: "rw".into(),
            };
            assert_eq!(found, [expected], "{host_path}");
        }
    }

    #[test]
    fn a_directory_stands_for_the_devices_in_it() {
        let dev = dev();
        let found = look_up(&[device(dev.path(), "/dev/d", "r")]).unwrap();
        let expected = ["/dev/d/a", "/dev/d/console", "/dev/d/ptmx", "/dev/d/sub/b"];
        assert_eq!(paths(&found), expected);
        assert!(found.iter().all(|device| device.access == "r"));
    }

    #[test]
    fn a_privileged_container_has_the_hosts_devices_but_not_its_terminals() {
        let dev = dev();
        assert_eq!(paths(&of_host(dev.path()).unwrap()), ["/dev/a", "/dev/sub/b"]);
        let host = of_host(Path::new("/dev")).unwrap();
        let host = paths(&host);
        assert!(host.contains(&"/dev/null"), "{host:?}");
        let hidden = ["/dev/pts/", "/dev/shm/", "/dev/mqueue/"];
        assert!(!host.iter().any(|path| hidden.iter().any(|hidden| path.starts_with(hidden))));
    }

    #[test]
    fn a_request_for_what_is_no_device_is_refused() {
        let dev = dev();
        for (host_path, container_path, permissions) in [
            ("file", "/dev/x", "rw"),
            ("fifo", "/dev/x", "rw"),
            ("missing", "/dev/x", "rw"),
            ("a", "dev/x", "rw"),
            ("a", "/dev/x", ""),
            ("a", "/dev/x", "rx"),
        ] {
            let request = device(&dev.path().join(host_path), container_path, permissions);
            assert!(look_up(&[request]).is_err(), "{host_path} {container_path} {permissions}");
        }
        assert!(look_up(&[device(Path::new("dev/null"), "/dev/x", "r")]).is_err());
    }

    #[test]
    fn all_is_denied_but_what_is_asked_for_unless_privileged() {
        let dev = dev();
        let devices = look_up(&[device(&dev.path().join("a"), "/dev/x", "r")]).unwrap();
        let json = |privileged| {
            let security = SecurityContext { privileged, ..Default::default() };
            serde_json::to_value(rules(&devices, &security)).unwrap()
        };
        let rule = serde_json::json!(
            {"allow": true, "type": "b", "major": 7, "minor": 1, "access": "r"}
        );
        assert_eq!(json(false), serde_json::json!([{"allow": false, "access": "rwm"}, rule]));
        assert_eq!(json(true), serde_json::json!([{"allow": true, "access": "rwm"}]));
    }

    #[test]
    fn of_two_devices_at_one_path_the_last_is_made() {
        let dev = dev();
        let asked = ["a", "sub/b"].map(|name| device(&dev.path().join(name), "/dev/x", "r"));
        let nodes = nodes(&look_up(&asked).unwrap());
        assert_eq!(nodes.iter().map(|node| node.minor()).collect::<Vec<_>>(), [2]);
    }
}
