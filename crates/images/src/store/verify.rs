//! Damage that came after the start: found when a thing is used, and costing that thing alone.
//!
//! Every use looks at stamps (see [`stamp`](super::stamp)): a few system calls per layer. A pull
//! looks closer once per layer and process: it counts what a layer that it did not see made
//! consists of. What is damaged is dropped, with the images that are not whole without it; their
//! other layers wait for the next pull, which then fetches what is missing and no more.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;
use tracing::warn;

use super::lease::erase_in_background;
use super::record::{ImageRecord, LayerRecord, read_record};
use super::stamp::{LayerStamp, Stamp};
use super::{HeldLayer, Home, Image, Shared, Store};
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::unpack::{measure, open_own_directory};

impl Store {
    /// As [`Store::find`], but what is found has been looked at: an image that was damaged behind
    /// our back is dropped, and not found.
    pub async fn find_intact(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let Some(image) = self.find(name)? else { return Ok(None) };
        let (shared, id) = (Arc::clone(&self.shared), image.id);
        let is_intact = spawn_blocking(move || shared.is_image_intact(id)).await;
        match is_intact {
            Ok(true) => Ok(Some(image)),
            Ok(false) => Ok(None),
            Err(panic) => Err(Error::io("look at an image", io::Error::other(panic))),
        }
    }

    /// Looks at an image and counts what those of `layers` consist of that are here and were not
    /// counted yet; drops what is damaged. Before they are pinned: what somebody holds is set
    /// aside, not erased.
    pub(crate) async fn verify(&self, image: ImageId, layers: Vec<Digest>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let verifying = move || {
            shared.is_image_intact(image);
            layers.into_iter().for_each(|layer| shared.verify_layer(layer));
        };
        spawn_blocking(verifying)
            .await
            .map_err(|panic| Error::io("verify an image", io::Error::other(panic)))
    }
}

impl Shared {
    fn is_image_intact(&self, id: ImageId) -> bool {
        let Some((own, layers)) = self.state().images.get(&id).map(|held| {
            let own = held.own.as_ref().map(|own| own.stamp);
            (own, held.mounted.clone())
        }) else {
            return false;
        };
        let damaged: Vec<_> =
            layers.into_iter().filter(|layer| !self.is_layer_intact(*layer)).collect();
        if !damaged.is_empty() {
            return false;
        }
        match own.and_then(|stamp| changed(Stamp::of(&self.places.image(id)), stamp)) {
            Some(why) => {
                self.drop_image(id, &why);
                false
            }
            None => true,
        }
    }

    /// Whether a layer is here and bears its stamps; drops it if not.
    fn is_layer_intact(&self, layer: Digest) -> bool {
        let Some(held) = self.state().layers.get(&layer).cloned() else { return false };
        let found = LayerStamp::of(self.places_of(&held.home), layer);
        match changed(found, held.stamp) {
            Some(why) => {
                self.drop_layer(layer, &held, &why);
                false
            }
            None => true,
        }
    }

    fn verify_layer(&self, layer: Digest) {
        if !self.is_layer_intact(layer) {
            return;
        }
        let Some(held) = self.state().layers.get(&layer).cloned() else { return };
        if held.is_counted {
            return;
        }
        match self.recount(&held, layer) {
            Ok(true) => {
                if let Some(held) = self.state().layers.get_mut(&layer) {
                    held.is_counted = true;
                }
            }
            Ok(false) => self.drop_layer(layer, &held, "its files are not all there"),
            Err(error) if is_damage(&error) => self.drop_layer(layer, &held, &error.to_string()),
            Err(error) => warn!(%layer, %error, "cannot verify a layer"),
        }
    }

    /// Whether what a layer consists of is what its record says.
    fn recount(&self, held: &HeldLayer, layer: Digest) -> io::Result<bool> {
        let places = self.places_of(&held.home);
        let record: LayerRecord = read_record(&places.layer_record(layer))?;
        let root = open_own_directory(&places.layer_root(layer))?;
        Ok(record.fits(&measure(root.as_fd(), &self.options.limits)?))
    }

    /// Takes a layer and the images that need it out of the store, unless another has come in its
    /// place.
    fn drop_layer(&self, layer: Digest, damaged: &HeldLayer, why: &str) {
        let _writing = self.writing();
        let (images, is_used) = {
            let mut state = self.state();
            if state.layers.get(&layer).is_none_or(|held| held.stamp != damaged.stamp) {
                return;
            }
            state.layers.remove(&layer);
            let images = state.images.values().filter(|held| held.mounted.contains(&layer));
            let images: Vec<_> = images.map(|held| held.id).collect();
            (images, state.references.contains_key(&layer))
        };
        let path = self.places_of(&damaged.home).layer(layer);
        warn!(path = %path.display(), why, "dropping a damaged layer");
        for image in images {
            self.forget_damaged(image);
        }
        match &damaged.home {
            Home::Own => self.clear_away(&path, damaged, is_used),
            Home::Additional(_) => {}
        }
    }

    fn clear_away(&self, layer: &Path, damaged: &HeldLayer, is_used: bool) {
        let cleared = match is_used {
            true => self.places.set_aside(layer, &self.options.boot_id).map(|()| {
                self.state().set_aside += damaged.whole_usage();
            }),
            false => self.places.discard(layer).map(|aside| erase_in_background(vec![aside])),
        };
        match cleared {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, "cannot drop it");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn drop_image(&self, id: ImageId, why: &str) {
        let _writing = self.writing();
        warn!(image = %id, why, "dropping a damaged image");
        if let Some(record) = self.forget_damaged(id) {
            self.state().take_additional(record);
        }
    }

    /// Removes an image whose layers may be missing. Those that are here wait for the next pull.
    /// Answers what an additional store says of it.
    fn forget_damaged(&self, id: ImageId) -> Option<ImageRecord> {
        for path in [self.places.image_mark(id), self.places.image(id)] {
            if let Err(error) = super::commit::remove_if_there(&path) {
                warn!(%error, "cannot drop a damaged image; the next start tries again");
            }
        }
        let mut state = self.state();
        let held = state.images.remove(&id)?;
        for layer in &held.mounted {
            if let Some(layer) = state.layers.get_mut(layer) {
                layer.waits_since = Some(Instant::now());
            }
        }
        held.additional
    }
}

/// What is wrong with what was found, if it is known to be wrong.
fn changed<T: PartialEq>(found: io::Result<T>, known: T) -> Option<String> {
    match found {
        Ok(found) => (found != known).then(|| "it was changed".to_owned()),
        Err(error) => is_damage(&error).then(|| error.to_string()),
    }
}

/// Whether an error says something of what was looked at, and not of whoever looks.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound, UnexpectedEof};
    // JSON that cannot be read becomes the last two.
    matches!(error.kind(), NotFound | NotADirectory | InvalidData | UnexpectedEof)
        || matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::IO.raw_os_error()
            || code == rustix::io::Errno::UCLEAN.raw_os_error())
}
