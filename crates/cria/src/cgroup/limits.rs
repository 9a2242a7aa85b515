//! The limits that a cgroup really has, and the v2 files that only we write.

use std::collections::BTreeMap;
use std::path::Path;

use super::hierarchy::{Hierarchy, Version};
use super::path::CgroupPath;
use super::{CgroupError, parse};
use crate::container::config::Resources;

impl Hierarchy {
    /// What the kernel enforces: 0 and empty where it tells nothing, -1 where there is no limit.
    /// `None` if the cgroup does not exist. Shares on v2 are those of its coarser weight.
    pub(crate) fn actual_resources(&self, cgroup: &CgroupPath) -> Option<Resources> {
        self.dir("memory", cgroup).filter(|dir| dir.is_dir())?;
        let read =
            |controller, file: &str| fs_err::read(self.dir(controller, cgroup)?.join(file)).ok();
        let bytes = |file| read("memory", file).map_or(0, |text| limit(&text));
        let list = |file| {
            let text = read("cpuset", file).unwrap_or_default();
            String::from_utf8_lossy(text.trim_ascii()).into_owned()
        };
        let resources = Resources {
            cpuset_cpus: list("cpuset.cpus"),
            cpuset_mems: list("cpuset.mems"),
            ..Resources::default()
        };
        Some(match self.version() {
            Version::V1 => Resources {
                cpu_shares: read("cpu", "cpu.shares").map_or(0, |text| number(&text)),
                cpu_quota: read("cpu", "cpu.cfs_quota_us").map_or(0, |text| number(&text)),
                cpu_period: read("cpu", "cpu.cfs_period_us").map_or(0, |text| number(&text)),
                memory_limit_bytes: bytes("memory.limit_in_bytes"),
                memory_swap_limit_bytes: bytes("memory.memsw.limit_in_bytes"),
                ..resources
            },
            Version::V2 => {
                let max = read("cpu", "cpu.max").and_then(|text| parse::cpu_max(&text));
                let (cpu_quota, cpu_period) = max.unwrap_or_default();
                let memory_limit_bytes = bytes("memory.max");
                Resources {
                    cpu_shares: read("cpu", "cpu.weight").map_or(0, |text| shares(number(&text))),
                    cpu_quota,
                    cpu_period,
                    memory_limit_bytes,
                    memory_swap_limit_bytes: with_swap(
                        memory_limit_bytes,
                        bytes("memory.swap.max"),
                    ),
                    ..resources
                }
            }
        })
    }

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

fn limit(text: &[u8]) -> i64 {
    parse::limit(text).map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(-1))
}

fn number(text: &[u8]) -> i64 {
    str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// v2 counts swap alone, the CRI as v1 did: memory and swap together.
fn with_swap(memory: i64, swap: i64) -> i64 {
    if memory < 0 || swap < 0 { -1 } else { memory.saturating_add(swap) }
}

/// The inverse of what the kubelet makes of shares.
fn shares(weight: i64) -> i64 {
    if weight == 0 { 0 } else { (weight - 1) * 262_142 / 9_999 + 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::OwnCgroup;

    #[test]
    fn shares_and_swap_of_v2_in_the_terms_of_v1() {
        for (weight, expected) in [(0, 0), (1, 2), (39, 998), (10_000, 262_144)] {
            assert_eq!(shares(weight), expected);
        }
        for (memory, swap, expected) in [(-1, 5, -1), (5, -1, -1), (5, 0, 5), (5, 6, 11)] {
            assert_eq!(with_swap(memory, swap), expected);
        }
    }

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
    fn the_limits_of_a_real_cgroup_are_read_back() {
        let hierarchy = Hierarchy::detect().unwrap();
        let cgroup = OwnCgroup::new(&hierarchy);
        let unlimited = hierarchy.actual_resources(&cgroup.path).unwrap();
        assert_eq!((unlimited.cpu_quota, unlimited.memory_limit_bytes), (-1, -1));
        assert!(!unlimited.cpuset_cpus.is_empty());

        let memory = hierarchy.dir("memory", &cgroup.path).unwrap();
        let file = match hierarchy.version() {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        fs_err::write(memory.join(file), "67108864").unwrap();
        let limited = hierarchy.actual_resources(&cgroup.path).unwrap();
        assert_eq!(limited.memory_limit_bytes, 64 << 20);

        let absent = CgroupPath::parse("/cria-test-absent").unwrap();
        assert_eq!(hierarchy.actual_resources(&absent), None);
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
