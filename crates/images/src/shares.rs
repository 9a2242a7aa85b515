//! Whose layer begins next, so that one huge pull does not keep others waiting.
//!
//! There are so many slots for layers. A pull that is alone may use them all; when one becomes
//! free it goes to the waiting pull that has the fewest layers under way. And a pull that has none
//! need not wait for a slot: it gets one beyond them, up to as many again, for a large layer may
//! hold its slot for an hour.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Which pull a layer is fetched for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct PullId(pub(crate) u64);

pub(crate) struct Shares {
    slots: usize,
    queue: Mutex<Queue<oneshot::Sender<Slot>>>,
}

/// The right to fetch a layer, until dropped.
pub(crate) struct Slot {
    shares: Arc<Shares>,
    pull: PullId,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shares.queue().ended(self.pull);
        self.shares.grant();
    }
}

impl Shares {
    pub(crate) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { slots, queue: Mutex::default() })
    }

    /// Waits for this pull's turn.
    pub(crate) async fn acquire(self: &Arc<Self>, pull: PullId) -> Slot {
        let (turn, waiting) = oneshot::channel();
        self.queue().waiting.push_back((pull, turn));
        self.grant();
        waiting.await.expect("whoever waits is sent a slot before it is forgotten")
    }

    fn grant(self: &Arc<Self>) {
        loop {
            let mut queue = self.queue();
            queue.waiting.retain(|(_, turn)| !turn.is_closed());
            let Some((pull, turn)) = queue.admit(self.slots) else { return };
            drop(queue);
            // One that has gone away meanwhile gives its slot back: it is dropped here.
            drop(turn.send(Slot { shares: Arc::clone(self), pull }));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<oneshot::Sender<Slot>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who has begun and who waits. Pure.
struct Queue<T> {
    running: HashMap<PullId, usize>,
    /// In the order of their coming.
    waiting: VecDeque<(PullId, T)>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { running: HashMap::new(), waiting: VecDeque::new() }
    }
}

impl<T> Queue<T> {
    /// Takes out whose turn it is, if it is anybody's.
    fn admit(&mut self, slots: usize) -> Option<(PullId, T)> {
        let of = |pull: &PullId| self.running.get(pull).copied().unwrap_or(0);
        let places = self.waiting.iter().enumerate();
        let (place, own) =
            places.map(|(place, (pull, _))| (place, of(pull))).min_by_key(|(_, own)| *own)?;
        let total: usize = self.running.values().sum();
        let most = if own == 0 { slots * 2 } else { slots };
        if total >= most {
            return None;
        }
        let next = self.waiting.remove(place)?;
        *self.running.entry(next.0).or_default() += 1;
        Some(next)
    }

    fn ended(&mut self, pull: PullId) {
        if let Some(count) = self.running.get_mut(&pull) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(&pull);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue in which pulls of these numbers wait, in this order.
    fn waiting(pulls: &[u64]) -> Queue<()> {
        let waiting = pulls.iter().map(|pull| (PullId(*pull), ())).collect();
        Queue { waiting, ..Queue::default() }
    }

    fn admitted(queue: &mut Queue<()>, slots: usize) -> Vec<u64> {
        std::iter::from_fn(|| queue.admit(slots)).map(|(pull, ())| pull.0).collect()
    }

    #[test]
    fn one_pull_alone_has_every_slot_and_no_more() {
        assert_eq!(admitted(&mut waiting(&[1; 9]), 3), [1, 1, 1]);
    }

    #[test]
    fn a_pull_without_a_layer_under_way_waits_for_nobody() {
        let mut queue = waiting(&[1, 1, 1, 1]);
        assert_eq!(admitted(&mut queue, 3), [1, 1, 1]);
        for pull in [2, 2, 3, 4, 5] {
            queue.waiting.push_back((PullId(pull), ()));
        }
        assert_eq!(admitted(&mut queue, 3), [2, 3, 4], "one each, up to as many again");
    }

    #[test]
    fn a_slot_that_becomes_free_goes_to_whoever_has_fewest() {
        let mut queue = waiting(&[1, 1, 1, 1, 2, 2]);
        assert_eq!(admitted(&mut queue, 4), [1, 2, 1, 2]);
        assert_eq!(admitted(&mut queue, 4), [0; 0]);
        queue.ended(PullId(2));
        queue.waiting.push_back((PullId(2), ()));
        assert_eq!(admitted(&mut queue, 4), [2]);
        queue.ended(PullId(1));
        assert_eq!(admitted(&mut queue, 4), [1]);
    }

    #[tokio::test]
    async fn a_slot_is_passed_on_also_when_whoever_waits_goes_away() {
        let shares = Shares::new(1);
        let first = shares.acquire(PullId(1)).await;
        let other = tokio::spawn({
            let shares = Arc::clone(&shares);
            async move { drop(shares.acquire(PullId(1)).await) }
        });
        tokio::task::yield_now().await;
        let last = shares.acquire(PullId(1));
        other.abort();
        drop(first);
        drop(last.await);
        assert!(shares.queue().running.is_empty());
    }
}
