//! Taking samples, and what is said of many. Numbers only.

use std::thread;
use std::time::{Duration, Instant};

/// How many calls are under way where something is measured "8 at a time".
pub(crate) const AT_ONCE: usize = 8;

/// How long `work` took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let done = work();
    (begun.elapsed(), done)
}

/// Does `work(0)`, `work(1)` ... `work(count - 1)` on [`AT_ONCE`] threads, and times the whole.
pub(crate) fn at_once<T: Send>(
    count: usize,
    work: impl Fn(usize) -> T + Sync,
) -> (Duration, Vec<T>) {
    timed(|| {
        thread::scope(|scope| {
            let hands = (0..AT_ONCE).map(|hand| {
                let work = &work;
                scope.spawn(move || (hand..count).step_by(AT_ONCE).map(work).collect::<Vec<_>>())
            });
            let hands: Vec<_> = hands.collect();
            hands.into_iter().flat_map(|hand| hand.join().expect("work panicked")).collect()
        })
    })
}

/// The sample below which `share` of all samples lie.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let mut rest = sorted.into_iter().skip(nearest(share, last));
    rest.next().unwrap_or(f64::NAN)
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The whole number nearest to `share * last`, found without a cast.
fn nearest(share: f64, last: usize) -> usize {
    let percent = [50, 90].into_iter().find(|percent| f64::from(*percent) / 100.0 >= share);
    let percent = usize::try_from(percent.unwrap_or(100)).unwrap_or(100);
    (last * percent + 50) / 100
}

#[cfg(test)]
mod tests {
    use super::{at_once, quantile};

    #[test]
    fn quantiles_are_samples_and_the_order_does_not_matter() {
        let samples: Vec<_> = (1..=11).rev().map(f64::from).collect();
        for (share, value) in [(0.5, 6.0), (0.9, 10.0), (1.0, 11.0)] {
            assert!((quantile(&samples, share) - value).abs() < 1e-9, "{share}");
        }
        assert!((quantile(&[7.0], 0.9) - 7.0).abs() < 1e-9);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn all_the_work_is_done_once() {
        let (_, mut done) = at_once(21, |number| number);
        done.sort_unstable();
        assert_eq!(done, (0..21).collect::<Vec<_>>());
    }
}
