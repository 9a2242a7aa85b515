//! The plugins of a former daemon, which are left to finish: nobody else may do the same, or undo
//! it, meanwhile.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::orphans::{self, Orphan};
use crate::sys;

/// A killed process that is not gone by then hangs in the kernel; we do not hang with it.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Former {
    /// What the marks of those that finish start with; a sandbox's id follows.
    mark: String,
    /// By the sandbox's id.
    plugins: Mutex<HashMap<String, Vec<Orphan>>>,
}

impl Former {
    pub(super) fn new(mark: String) -> Self {
        Self { mark, plugins: Mutex::default() }
    }

    /// Finds them, and answers how many there are. Blocks.
    pub(super) fn find(&self) -> io::Result<usize> {
        let found = orphans::marked(&self.mark)?;
        let count = found.len();
        let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        for orphan in found {
            plugins.entry(orphan.subject.clone()).or_default().push(orphan);
        }
        Ok(count)
    }

    /// Returns when none is left that concerns `sandbox`. What takes longer than `deadline` is
    /// killed, as is what a plugin left behind.
    pub(super) async fn finish(&self, sandbox: &str, deadline: Duration) {
        let plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
        let Some(plugins) = plugins else { return };
        info!(sandbox, "awaiting a plugin that a former daemon had started");
        for plugin in plugins.into_iter().filter(|plugin| plugin.leads) {
            // The rest is killed below.
            let _ = timeout(deadline, ended(plugin.process)).await;
        }
        let mark = format!("{}{sandbox}", self.mark);
        let killed = spawn_blocking(move || orphans::end_orphans(&mark, DEATH_DEADLINE)).await;
        if let Err(error) = killed.map_err(io::Error::other).and_then(|killed| killed) {
            warn!(sandbox, %error, "a former daemon's plugin does not end");
        }
    }
}

/// A pidfd is readable once its process has ended.
async fn ended(process: OwnedFd) -> io::Result<()> {
    sys::watch(process)?.readable().await.map(drop)
}
