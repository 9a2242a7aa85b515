//! Control groups: where the daemon reads and writes them, and knows the trees of version 1 from
//! that of version 2.
//!
//! The limits of containers are written by the OCI runtime, in the words that `container/spec` and
//! `container/update` choose by [`Version`]; a monitor is told the files of its container
//! ([`Hierarchy::for_monitor`]) and watches those. Here are names and places, what was used, and the
//! removal of what was left behind. All calls are synchronous: cgroup files are the kernel's memory.

mod hierarchy;
mod limits;
mod parse;
mod path;
mod rate;
mod remove;
pub(crate) mod scope;
mod stats;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

pub(crate) use self::hierarchy::{Hierarchy, Version};
pub(crate) use self::parse::{Psi, PsiLine};
pub(crate) use self::path::{CgroupPath, Driver, Parent};
pub(crate) use self::rate::CpuRate;
pub(crate) use self::stats::{CgroupStats, Cpu, Memory, Sample, Swap};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The request's fault, or the kubelet's configuration.
    #[error("cgroup parent {parent:?} {reason}")]
    Parent { parent: String, reason: &'static str },
    #[error("cgroup v2 file {key:?} cannot be set: {reason}")]
    UnifiedKey { key: String, reason: &'static str },
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
    #[error("processes in cgroup {} did not die", .0.display())]
    Busy(PathBuf),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
