//! Who needs which layer, and the collection of those that nobody does.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::{Shared, State};
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::store::record::erase;

/// How long a layer of an interrupted pull waits for the next try.
pub(super) const KEPT_FOR_RETRY: Duration = Duration::from_secs(15 * 60);

/// Keeps an image's layers on disk until dropped, whatever becomes of the image.
#[derive(Debug)]
pub struct Lease {
    image: ImageId,
    pins: Pins,
}

impl Lease {
    pub(super) fn new(image: ImageId, pins: Pins) -> Self {
        Self { image, pins }
    }

    pub fn image(&self) -> ImageId {
        self.image
    }

    /// What [`Store::lease_layers`](crate::Store::lease_layers) takes: the layers that are
    /// mounted, top first.
    pub fn layers(&self) -> &[Digest] {
        &self.pins.layers
    }

    /// What overlayfs mounts, top first, each directory once.
    pub fn lower_directories(&self) -> Vec<PathBuf> {
        let shared = &self.pins.shared;
        let state = shared.state();
        let root_of = |layer: &Digest| match state.layers.get(layer) {
            Some(held) => shared.places_of(&held.home).layer_root(*layer),
            None => shared.places.layer_root(*layer),
        };
        self.pins.layers.iter().map(root_of).collect()
    }
}

/// Layers that must stay, held or still to come.
#[derive(Debug)]
pub(crate) struct Pins {
    shared: Arc<Shared>,
    layers: Vec<Digest>,
}

impl Pins {
    pub(super) fn new(shared: &Arc<Shared>, state: &mut State, layers: Vec<Digest>) -> Self {
        for layer in &layers {
            *state.references.entry(*layer).or_default() += 1;
        }
        Self { shared: Arc::clone(shared), layers }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            for layer in &self.layers {
                if let Some(count) = state.references.get_mut(layer) {
                    *count -= 1;
                    if *count == 0 {
                        state.references.remove(layer);
                    }
                }
            }
        }
        self.shared.collect();
    }
}

impl Shared {
    /// What a failed pull leaves waits for the next try, unless the disk is full: then the space
    /// is needed more.
    pub(crate) fn fail_pull(&self, error: &Error) {
        if matches!(error, Error::NoSpace { .. }) {
            let mut state = self.state();
            state.full_at = Some(Instant::now());
            state.layers.values_mut().for_each(|layer| layer.waits_since = None);
            drop(state);
            self.collect();
        }
    }

    /// Takes out of sight what no image and nobody else needs, and removes it in the background.
    pub(super) fn collect(&self) {
        let _writing = self.writing();
        let garbage = self.state().take_garbage();
        let mut aside = Vec::new();
        for layer in garbage {
            debug!(%layer, "removing an unused layer");
            match self.places.discard(&self.places.layer(layer)) {
                Ok(path) => aside.push(path),
                Err(error) => warn!(%layer, %error, "cannot remove a layer"),
            }
        }
        erase_in_background(aside);
    }
}

impl State {
    fn take_garbage(&mut self) -> Vec<Digest> {
        if !self.collecting {
            return Vec::new();
        }
        let used: HashSet<_> =
            self.images.values().flat_map(|image| image.mounted.iter().copied()).collect();
        let now = Instant::now();
        let garbage: Vec<_> = self
            .layers
            .iter()
            .filter(|(layer, held)| {
                let waits = held.waits_since.is_some_and(|since| now - since < KEPT_FOR_RETRY);
                let is_needed = used.contains(*layer) || self.references.contains_key(*layer);
                held.is_own() && !is_needed && !waits
            })
            .map(|(layer, _)| *layer)
            .collect();
        for layer in &garbage {
            self.layers.remove(layer);
        }
        garbage
    }
}

/// Large trees take long to remove; nobody waits for it, and the next start ends it if this
/// process does not.
pub(super) fn erase_in_background(paths: Vec<PathBuf>) {
    if paths.is_empty() {
        return;
    }
    let erase_all = move || paths.iter().for_each(|path| erase(path));
    let thread = std::thread::Builder::new().name("erase".to_owned()).spawn(erase_all);
    if let Err(error) = thread {
        warn!(%error, "cannot remove in the background; the next start does it");
    }
}
