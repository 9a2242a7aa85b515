//! Stores that somebody else keeps, and this one reads: images that come with a node's system.
//!
//! They have our layout (`images` and `layers`) and are never written to. What is in them counts
//! as held; what is damaged, or missing altogether, is merely not there. A record of our own wins
//! over theirs: it holds what was pulled here since, and the tags that an image has lost.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use super::open::{Trust, entries, image_paths, read_image, read_layer};
use super::record::{ImageRecord, Places};
use super::{HeldImage, Home, Image, State, StoreOptions};

/// Takes in the layers that the additional stores have and `state` lacks.
pub(super) fn take_in_layers(options: &StoreOptions, state: &mut State) {
    for root in &options.additional_stores {
        let places = Arc::new(Places::of_another(root));
        for path in listed(entries(&places.layers())) {
            match read_layer(&path, Home::Additional(Arc::clone(&places)), Trust::AsItIs) {
                Ok((layer, held)) => drop(state.layers.entry(layer).or_insert(held)),
                Err(why) => leave_out(&path, &why),
            }
        }
    }
}

/// Takes in the additional stores' images. Their layers, and our own images, must be in.
pub(super) fn take_in_images(options: &StoreOptions, state: &mut State) {
    for root in &options.additional_stores {
        let places = Places::of_another(root);
        for path in listed(image_paths(&places.images())) {
            match read_image(&path, options, Trust::AsItIs, state) {
                Ok(held) => state.take_additional(held.record),
                Err(why) => leave_out(&path, &why),
            }
        }
    }
}

/// What a directory of an additional store lists, if it is there at all.
fn listed(entries: io::Result<Vec<PathBuf>>) -> Vec<PathBuf> {
    entries.unwrap_or_else(|error| {
        warn!(%error, "an additional store is left out");
        Vec::new()
    })
}

fn leave_out(path: &Path, why: &str) {
    warn!(path = %path.display(), why, "an item of an additional store is left out");
}

impl State {
    /// Lists what an additional store has under this record, or notes it with an image of our own.
    pub(super) fn take_additional(&mut self, mut record: ImageRecord) {
        if let Some(held) = self.images.get_mut(&record.id) {
            held.additional.get_or_insert(record);
            // Shared with nobody yet, or replaced whole: a listed image is never changed.
            held.image = Arc::new(Image { pinned: true, ..(*held.image).clone() });
            return;
        }
        let original = record.clone();
        record.tags.retain(|tag| self.images.values().all(|held| !held.tags.contains(tag)));
        // It was read from such a record before.
        let Ok(mut image) = Image::from_record(&record, &[]) else { return };
        image.pinned = true;
        let held =
            HeldImage { image: Arc::new(image), record, own: None, additional: Some(original) };
        self.images.insert(held.id, held);
    }
}
