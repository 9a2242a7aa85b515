//! The limits of a running container that no OCI runtime's `update` sets.

use std::collections::BTreeMap;
use std::path::Path;

use super::CgroupError;
use super::hierarchy::{Hierarchy, Version};
use super::path::CgroupPath;

impl Hierarchy {
    /// Sets v2 files of `cgroup` by name, in order. Only for names that the OCI runtime does not
    /// set itself.
    pub(crate) fn write_unified(
        &self,
        cgroup: &CgroupPath,
        values: &BTreeMap<String, String>,
    ) -> Result<(), CgroupError> {
        for (key, value) in values {
            let bad = |reason| CgroupError::UnifiedKey { key: key.clone(), reason };
            let root = match self.version() {
                Version::V2 => self.unified().ok_or(CgroupError::NotMounted)?,
                Version::V1 => return Err(bad("this node has cgroup v1")),
            };
            check_key(key).map_err(bad)?;
            write_existing(&cgroup.below(root).join(key), value)?;
        }
        Ok(())
    }

    /// Takes the quota of processor time away, on v1. (On v2 OCI runtimes can.)
    pub(crate) fn lift_cpu_quota(&self, cgroup: &CgroupPath) -> Result<(), CgroupError> {
        let directory = self.dir("cpu", cgroup).ok_or(CgroupError::NotMounted)?;
        Ok(write_existing(&directory.join("cpu.cfs_quota_us"), "-1")?)
    }

    /// Limits the pages of each size (`2MB`), those in use and, where the kernel tells them apart,
    /// those that are only promised.
    pub(crate) fn write_hugepages(
        &self,
        cgroup: &CgroupPath,
        limits: &[(String, u64)],
    ) -> Result<(), CgroupError> {
        let most = match self.version() {
            Version::V1 => "limit_in_bytes",
            Version::V2 => "max",
        };
        for (size, limit) in limits {
            let directory = self.dir("hugetlb", cgroup).ok_or(CgroupError::NotMounted)?;
            let name = format!("hugetlb.{size}");
            check_key(&name)
                .map_err(|reason| CgroupError::UnifiedKey { key: name.clone(), reason })?;
            let promised = directory.join(format!("{name}.rsvd.{most}"));
            // First what is promised, which may not be less than what is in use.
            if promised.exists() {
                write_existing(&promised, &limit.to_string())?;
            }
            write_existing(&directory.join(format!("{name}.{most}")), &limit.to_string())?;
        }
        Ok(())
    }
}

/// A file of a controller. The core's own move and kill processes.
fn check_key(key: &str) -> Result<(), &'static str> {
    match key.split_once('.') {
        _ if key.contains('/') => Err("it is not a file name"),
        None | Some(("", _) | (_, "")) => Err("it is not the name of a controller's file"),
        Some(("cgroup", _)) => Err("it is not a limit"),
        Some(_) => Ok(()),
    }
}

fn write_existing(file: &Path, value: &str) -> std::io::Result<()> {
    let mut file = fs_err::OpenOptions::new().write(true).open(file)?;
    std::io::Write::write_all(&mut file, value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::OwnCgroup;

    #[test]
    fn keys_that_are_no_limits_are_refused() {
        for key in ["memory.high", "hugetlb.2MB.max", "io.max"] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for key in ["", "memory", ".x", "x.", "../memory.high", "a/b.c", "cgroup.procs"] {
            assert!(check_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn unified_files_are_refused_on_v1_and_must_exist_on_v2() {
        let hierarchy = Hierarchy::detect().unwrap();
        let cgroup = OwnCgroup::new(&hierarchy);
        let values = [("memory.absent".to_owned(), "1".to_owned())].into();
        let refused = hierarchy.write_unified(&cgroup.path, &values).unwrap_err();
        match hierarchy.version() {
            Version::V1 => assert!(refused.to_string().ends_with("this node has cgroup v1")),
            Version::V2 => assert!(matches!(refused, CgroupError::Io(_))),
        }
    }
}
