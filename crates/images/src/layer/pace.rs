//! Whether a download gets on. Pure.

use std::time::Duration;

/// So many bytes are worth a second of waiting. A registry that sends fewer for long keeps a slot
/// that others need.
const BYTES_PER_SECOND: u64 = 1 << 10;

/// How long a download has waited in vain: for an answer, for bytes, for its next try. What the
/// reader of the bytes takes does not count.
#[derive(Debug)]
pub(super) struct Pace {
    patience: Duration,
    waited: Duration,
}

impl Pace {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, waited: Duration::ZERO }
    }

    /// It took `waited` until `skipped` bytes that were here already had come, and `new` ones after
    /// them. New ones make good what was waited before, too.
    pub(super) fn note(&mut self, waited: Duration, skipped: u64, new: u64) {
        self.waited += waited.saturating_sub(worth(skipped));
        self.waited = self.waited.saturating_sub(worth(new));
    }

    /// How much longer it may take.
    pub(super) fn left(&self) -> Duration {
        self.patience.saturating_sub(self.waited)
    }
}

fn worth(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_for_what_trickles_and_not_for_what_pauses() {
        let seconds = Duration::from_secs;
        // Each round's wait, bytes that were here, new bytes; how many rounds of 100 are endured.
        for (waited, skipped, new, rounds) in [
            (29, 0, 1, 11),
            (1, 0, 0, 300),
            (1, 0, 1023, 1000),
            (1, 0, 1024, 1000),
            (250, 0, 300 << 10, 1000),
            (29, 1, 0, 11),
            (29, 1 << 20, 0, 1000),
            (301, 0, 100 << 10, 2),
        ] {
            let mut pace = Pace::new(seconds(300));
            let endures = |_: &u32| {
                pace.note(seconds(waited), skipped, new);
                !pace.left().is_zero()
            };
            let endured = (1..1000).take_while(endures).count() + 1;
            assert_eq!(endured, rounds, "{waited} s, {skipped} and {new} bytes");
        }
    }
}
