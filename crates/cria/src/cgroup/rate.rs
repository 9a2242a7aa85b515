//! How many nanoseconds of processor time per second: the slope between two samples. Pure.

use std::time::{Duration, Instant};

/// Two clients that ask at nearly the same time must not make a slope of noise.
const SHORTEST: Duration = Duration::from_secs(1);

/// The slope so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct CpuRate {
    base: Option<(Instant, u64)>,
    nano_cores: Option<u64>,
}

impl CpuRate {
    /// Takes in a sample and answers the rate since an earlier one. `None` until there are two.
    pub(crate) fn note(&mut self, at: Instant, usage_ns: u64) -> Option<u64> {
        let Some((base_at, base_usage)) = self.base else {
            self.base = Some((at, usage_ns));
            return None;
        };
        let elapsed = at.saturating_duration_since(base_at);
        if usage_ns < base_usage {
            // Another cgroup of the same name counts from zero.
            *self = Self { base: Some((at, usage_ns)), nano_cores: None };
        } else if elapsed >= SHORTEST {
            self.base = Some((at, usage_ns));
            self.nano_cores = slope(usage_ns - base_usage, elapsed);
        }
        self.nano_cores
    }
}

fn slope(used_ns: u64, elapsed: Duration) -> Option<u64> {
    let per_second = u128::from(used_ns) * 1_000_000_000 / elapsed.as_nanos();
    per_second.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_slope_between_samples_that_are_far_enough_apart() {
        let start = Instant::now();
        let mut rate = CpuRate::default();
        for (at_ms, usage_ns, expected) in [
            (0, 5_000_000_000, None),
            // Too soon: nothing is known yet.
            (300, 5_300_000_000, None),
            (2_000, 6_000_000_000, Some(500_000_000)),
            // Too soon: what was known, and the base stays.
            (2_500, 9_000_000_000, Some(500_000_000)),
            (4_000, 10_000_000_000, Some(2_000_000_000)),
            (6_000, 10_000_000_000, Some(0)),
            // It began anew.
            (8_000, 1_000, None),
            (9_000, 1_000_001_000, Some(1_000_000_000)),
        ] {
            let at = start + Duration::from_millis(at_ms);
            assert_eq!(rate.note(at, usage_ns), expected, "{at_ms}");
        }
    }
}
