//! The sandbox state machine. Pure.
//!
//! ```text
//!           stop              removed
//!  Ready ────────▶ NotReady ──────────▶ (no record)
//! ```
//!
//! A sandbox is NotReady from the first StopPodSandbox on, also while its network is still being
//! taken down, or cannot be; and when its init dies.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Ready,
    NotReady,
}
