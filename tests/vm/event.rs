//! What the tests in the machine tell the host: one JSON object per line, through a virtio port.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The machine has booted, for the first time or once more.
    Up,
    /// A test begins, and may take so long.
    Begun { name: String, limit_seconds: u64 },
    /// A test ended; without a fault it passed. `said` is all its output.
    Ended { name: String, seconds: f64, fault: Option<String>, said: String },
    /// The machine is ready for its power to be cut.
    CutThePower,
    /// All tests have run.
    Done,
}

impl Event {
    /// Begins a line in what a test says that is shown although it passed.
    pub(crate) const MEASURED: &str = "measured: ";
}
