//! The plugins of a former daemon that are left to finish: nobody else may do the same meanwhile.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::sys;

/// A killed process that is not gone by then hangs in the kernel; we do not hang with it.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);

/// By the id of the sandbox they are about.
#[derive(Debug, Default)]
pub(super) struct Former(Mutex<HashMap<String, Vec<OwnedFd>>>);

impl Former {
    pub(super) fn remember(&self, plugins: Vec<(String, OwnedFd)>) {
        let mut former = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (sandbox, process) in plugins {
            former.entry(sandbox).or_default().push(process);
        }
    }

    /// Returns when none is left that concerns `sandbox`; what takes longer than `deadline` is
    /// killed.
    pub(super) async fn finish(&self, sandbox: &str, deadline: Duration) {
        let plugins = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
        for process in plugins.into_iter().flatten() {
            info!(sandbox, "awaiting a plugin that a former daemon had started");
            if let Err(error) = await_end(process, deadline).await {
                warn!(sandbox, %error, "a former daemon's plugin does not end");
            }
        }
    }
}

/// A pidfd is readable once its process has ended.
async fn await_end(process: OwnedFd, deadline: Duration) -> std::io::Result<()> {
    let process = sys::watch(process)?;
    if let Ok(ended) = timeout(deadline, process.readable()).await {
        return ended.map(drop);
    }
    // It may have ended just now.
    let _ = pidfd_send_signal(process.get_ref(), Signal::KILL);
    match timeout(DEATH_DEADLINE, process.readable()).await {
        Ok(ended) => ended.map(drop),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}
