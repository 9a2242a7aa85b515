//! How pulls get on: counted while bytes move, told when somebody asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::blob::LayerBlob;
use crate::digest::Digest;
use crate::error::Error;
use crate::layer::{LargeWindow, Windows};
use crate::reference::Reference;
use crate::shares::PullId;

/// A pull under way.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    pub image: String,
    /// Since it was asked for.
    pub elapsed_seconds: u64,
    /// Distinct layers; none before the manifest is here.
    pub layers: usize,
    /// Of them, those that are complete, whichever pull brought them.
    pub layers_here: usize,
    /// Of the layers' blobs.
    pub bytes: u64,
    /// Of these bytes, those that need not be fetched any more.
    pub bytes_here: u64,
}

/// What all pulls since the start have come to.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PullCounts {
    pub succeeded: u64,
    pub failed: u64,
    /// Whoever asked has gone away before the end.
    pub given_up: u64,
    pub layers_fetched: u64,
    /// Layers that a pull needed and found here.
    pub layers_held: u64,
    /// Of blobs, over the network.
    pub bytes_received: u64,
    /// Downloads that were cut or stalled, and continued.
    pub downloads_resumed: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    succeeded: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
    layers_fetched: AtomicU64,
    layers_held: AtomicU64,
    bytes_received: AtomicU64,
    downloads_resumed: AtomicU64,
}

/// All pulls under way.
#[derive(Default)]
pub(crate) struct Progress {
    counters: Arc<Counters>,
    next: AtomicU64,
    large_window: LargeWindow,
    pulls: Mutex<Vec<Weak<Pull>>>,
    /// Bytes received of the layers under way.
    layers: Mutex<HashMap<Digest, Weak<AtomicU64>>>,
}

/// One pull: what it has to itself, and how it gets on. Dropped without an end, it was given up.
pub(crate) struct Pull {
    pub(crate) id: PullId,
    /// Memory for the windows of its zstd streams.
    pub(crate) windows: Windows,
    image: String,
    began: Instant,
    plan: Mutex<Vec<LayerBlob>>,
    counters: Arc<Counters>,
    has_ended: AtomicBool,
}

/// Counts the bytes of one download.
#[derive(Clone)]
pub(crate) struct Meter {
    received: Arc<AtomicU64>,
    counters: Arc<Counters>,
}

impl Progress {
    pub(crate) fn begin(&self, reference: &Reference) -> Arc<Pull> {
        let pull = Arc::new(Pull {
            id: PullId(self.next.fetch_add(1, Ordering::Relaxed)),
            windows: Windows::new(self.large_window.clone()),
            image: reference.to_string(),
            began: Instant::now(),
            plan: Mutex::default(),
            counters: Arc::clone(&self.counters),
            has_ended: AtomicBool::new(false),
        });
        let mut pulls = lock(&self.pulls);
        pulls.retain(|pull| pull.strong_count() > 0);
        pulls.push(Arc::downgrade(&pull));
        pull
    }

    /// Of a download that is part of no layer.
    pub(crate) fn meter(&self) -> Meter {
        Meter { received: Arc::default(), counters: Arc::clone(&self.counters) }
    }

    /// Of a layer's download, for as long as it is kept.
    pub(crate) fn layer_meter(&self, layer: Digest) -> Meter {
        let meter = self.meter();
        let mut layers = lock(&self.layers);
        layers.retain(|_, received| received.strong_count() > 0);
        layers.insert(layer, Arc::downgrade(&meter.received));
        meter
    }

    pub(crate) fn layer_was_fetched(&self) {
        self.counters.layers_fetched.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn layer_was_held(&self) {
        self.counters.layers_held.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> PullCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        PullCounts {
            succeeded: read(&counters.succeeded),
            failed: read(&counters.failed),
            given_up: read(&counters.given_up),
            layers_fetched: read(&counters.layers_fetched),
            layers_held: read(&counters.layers_held),
            bytes_received: read(&counters.bytes_received),
            downloads_resumed: read(&counters.downloads_resumed),
        }
    }

    /// Every pull under way, the oldest first.
    pub(crate) fn pulls(&self, has_layer: impl Fn(Digest) -> bool) -> Vec<PullProgress> {
        let pulls: Vec<_> = lock(&self.pulls).iter().filter_map(Weak::upgrade).collect();
        let layers = lock(&self.layers).clone();
        let received = |layer: &LayerBlob| {
            let received = layers.get(&layer.diff_id).and_then(Weak::upgrade);
            received.map_or(0, |received| received.load(Ordering::Relaxed).min(layer.blob.size))
        };
        pulls.iter().map(|pull| pull.progress(&has_layer, received)).collect()
    }
}

impl Pull {
    /// What the manifest asks for; a layer that it names twice counts once.
    pub(crate) fn plan(&self, mut layers: Vec<LayerBlob>) {
        layers.sort_by_key(|layer| layer.diff_id);
        layers.dedup_by_key(|layer| layer.diff_id);
        *lock(&self.plan) = layers;
    }

    pub(crate) fn end<T>(&self, answer: &Result<T, Error>) {
        let counter = match answer {
            Ok(_) => &self.counters.succeeded,
            Err(_) => &self.counters.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.has_ended.store(true, Ordering::Relaxed);
    }

    fn progress(
        &self,
        has_layer: impl Fn(Digest) -> bool,
        received: impl Fn(&LayerBlob) -> u64,
    ) -> PullProgress {
        let plan = lock(&self.plan);
        let mut progress = PullProgress {
            image: self.image.clone(),
            elapsed_seconds: self.began.elapsed().as_secs(),
            layers: plan.len(),
            layers_here: 0,
            bytes: 0,
            bytes_here: 0,
        };
        for layer in &*plan {
            let is_here = has_layer(layer.diff_id);
            progress.layers_here += usize::from(is_here);
            progress.bytes += layer.blob.size;
            progress.bytes_here += if is_here { layer.blob.size } else { received(layer) };
        }
        progress
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        if !self.has_ended.load(Ordering::Relaxed) {
            self.counters.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Meter {
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.counters.bytes_received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn resumed(&self) {
        self.counters.downloads_resumed.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
