//! What the plugins last said to STATUS. A run of them costs processes and may hang, so that the
//! RPCs that ask get the last answer while a new one is fetched behind them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Cni, CniError, NetworkConfig};

/// How old an answer may be before the next is asked for.
const FRESH: Duration = Duration::from_secs(5);

/// How long a caller waits where there is no answer at all.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Readiness {
    last: Mutex<Option<Checked>>,
    /// Held while the plugins run: once at a time.
    checking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Checked {
    network: NetworkConfig,
    at: Instant,
    outcome: Result<(), Arc<CniError>>,
}

struct Known {
    fresh: bool,
    outcome: Result<(), Arc<CniError>>,
}

impl Readiness {
    /// The last answer of this very network.
    fn known(&self, network: &NetworkConfig) -> Option<Known> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = last.as_ref().filter(|checked| checked.network == *network)?;
        Some(Known { fresh: checked.at.elapsed() < FRESH, outcome: checked.outcome.clone() })
    }

    fn note(&self, network: NetworkConfig, outcome: Result<(), Arc<CniError>>) {
        let checked = Checked { network, at: Instant::now(), outcome };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(checked);
    }
}

impl Cni {
    pub(super) async fn cached_status(
        self: &Arc<Self>,
        network: NetworkConfig,
    ) -> Result<(), Arc<CniError>> {
        match self.readiness.known(&network) {
            Some(Known { fresh: true, outcome }) => outcome,
            Some(Known { fresh: false, outcome }) => {
                tokio::spawn(Arc::clone(self).check(network));
                outcome
            }
            None => {
                let check = tokio::spawn(Arc::clone(self).check(network.clone()));
                // The check goes on if we stop waiting for it.
                let _ = timeout(FIRST_ANSWER, check).await;
                let pending =
                    || Err(CniError::StatusPending { network: network.name.clone() }.into());
                self.readiness.known(&network).map_or_else(pending, |known| known.outcome)
            }
        }
    }

    async fn check(self: Arc<Self>, network: NetworkConfig) {
        let _turn = self.readiness.checking.lock().await;
        if self.readiness.known(&network).is_some_and(|known| known.fresh) {
            return;
        }
        let outcome = self.status(&network).await.map_err(Arc::new);
        self.readiness.note(network, outcome);
    }
}
