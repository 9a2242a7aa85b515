//! Control groups: the one place that knows version 1 from version 2.
//!
//! The limits of containers are written by the OCI runtime; here are their names and places, what
//! they used, and the removal of what was left behind. All calls are synchronous: cgroup files are
//! the kernel's memory.

mod hierarchy;
mod limits;
mod parse;
mod path;
mod rate;
mod remove;
mod stats;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

pub(crate) use self::hierarchy::{Hierarchy, Version};
pub(crate) use self::path::{CgroupPath, Driver, Parent};
pub(crate) use self::rate::CpuRate;
pub(crate) use self::stats::{CgroupStats, Cpu, Memory, Psi, PsiLine, Sample, Swap};

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
