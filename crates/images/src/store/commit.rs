//! What changes a store: a layer or an image is added, an image forgotten, all of it synced.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Instant;

use tracing::info;

use super::directories::{self, Stacked};
use super::image::Image;
use super::lease::KEPT_FOR_RETRY;
use super::record::{ImageRecord, LayerRecord, erase, read_record};
use super::stamp::{LayerStamp, Stamp};
use super::{HeldImage, HeldLayer, Home, OwnRecord, Pins, Shared};
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::manifest::{MOST_LAYERS, mounted};
use crate::reference::Reference;
use crate::trust::Found;
use crate::unpack::{Noted, Unpacked, measure, open_own_directory};

/// An image whose layers are all here.
pub(crate) struct NewImage<'a> {
    pub(crate) id: ImageId,
    pub(crate) reference: &'a Reference,
    /// Of what the reference led to: the index, if there is one.
    pub(crate) pulled: Digest,
    pub(crate) manifest: &'a str,
    /// None for an artifact.
    pub(crate) config: Option<&'a str>,
    /// Diff ids, bottom first.
    pub(crate) layers: Vec<Digest>,
    /// Signatures, if any were asked for.
    pub(crate) evidence: Option<Found>,
    /// Whoever pulled it still waits.
    pub(crate) wanted: Weak<()>,
}

impl Shared {
    /// Removes what was to become a layer.
    pub(crate) fn abandon(&self, directory: &Path) {
        erase(directory);
    }

    /// Makes a directory to unpack a layer into.
    pub(crate) fn incoming_layer(&self) -> io::Result<Arc<Path>> {
        let directory = self.places.fresh();
        fs_err::create_dir_all(directory.join("fs")).inspect_err(|_| erase(&directory))?;
        Ok(directory.into())
    }

    /// Takes in the layer that was made in `directory`. If it is here already, that one stays; if
    /// nobody needs it any more, and the disk was full, it goes.
    pub(crate) fn commit_layer(
        &self,
        layer: Digest,
        directory: &Path,
        unpacked: &Unpacked,
    ) -> io::Result<()> {
        let record =
            LayerRecord::new(layer, &unpacked.measured, &unpacked.noted, &self.options.boot_id);
        self.places.write_record(&directory.join("layer.json"), &record)?;
        let writing = self.writing();
        if self.state().layers.contains_key(&layer) {
            erase(directory);
            return Ok(());
        }
        let stamp = LayerStamp::of_directory(directory)?;
        fs_err::rename(directory, self.places.layer(layer))?;
        let mut state = self.state();
        // Its pull may have ended meanwhile, for want of space, and what it left been collected.
        let was_full = state.full_at.is_some_and(|at| at.elapsed() < KEPT_FOR_RETRY);
        let is_needed = state.references.contains_key(&layer) || !was_full;
        let held = HeldLayer {
            home: Home::Own,
            usage: unpacked.measured.usage,
            synced: false,
            stamp,
            is_counted: true,
            waits_since: is_needed.then(Instant::now),
        };
        state.layers.insert(layer, held);
        drop(state);
        drop(writing);
        if !is_needed {
            self.collect();
        }
        Ok(())
    }

    /// Takes in an image, or a new name of one that is here. Its layers must be pinned; the pins
    /// of what is added to them are returned, to be kept until the image is in.
    pub(crate) fn commit_image(self: &Arc<Self>, new: &NewImage<'_>) -> Result<Arc<Image>, Error> {
        let name = new.reference.to_string();
        let failed = |error| Error::writing(&name, "store an image", error);
        let mut mounted = mounted(new.layers.iter().copied());
        let top = self.directory_layer(&mounted).map_err(failed)?;
        if let Some((layer, _)) = top {
            mounted.insert(0, layer);
        }
        if mounted.len() > MOST_LAYERS {
            let layers = mounted.len();
            return Err(Error::TooManyLayers { image: name, layers, most: MOST_LAYERS });
        }
        let _writing = self.writing();
        if new.wanted.strong_count() == 0 {
            return Err(Error::Cancelled { image: name });
        }
        let record = self.record(new, mounted);
        let image = Image::from_record(&record, &self.options.pinned)
            .map_err(|why| failed(io::Error::new(io::ErrorKind::InvalidData, why)))?;
        for tag in &record.tags {
            self.take_tag(tag, record.id).map_err(failed)?;
        }
        self.write_image(record, image).map_err(failed)
    }

    /// The record of `new`, with the names that the image has already.
    fn record(&self, new: &NewImage<'_>, mounted: Vec<Digest>) -> ImageRecord {
        let state = self.state();
        let known = state.images.get(&new.id).map(|held| &held.record);
        let mut tags = known.map(|record| record.tags.clone()).unwrap_or_default();
        let mut digests = known.map(|record| record.digests.clone()).unwrap_or_default();
        tags.extend(new.reference.tagged());
        digests.push(format!("{}@{}", new.reference.repository(), new.pulled));
        for names in [&mut tags, &mut digests] {
            names.sort();
            names.dedup();
        }
        let mut evidence = known.map(|record| record.evidence.clone()).unwrap_or_default();
        if let Some(found) = &new.evidence {
            found.add_to(&mut evidence);
        }
        let bytes = |layer| state.layers.get(layer).map_or(0, |held| held.usage.bytes);
        let unpacked: u64 = mounted.iter().map(bytes).sum();
        let told = new.manifest.len() + new.config.map_or(0, str::len);
        ImageRecord {
            version: ImageRecord::VERSION,
            id: new.id,
            size_bytes: unpacked + told as u64,
            manifest: new.manifest.to_owned(),
            manifest_digest: Some(Digest::of(new.manifest.as_bytes())),
            config: new.config.map(str::to_owned),
            tags,
            digests,
            layers: new.layers.clone(),
            mounted,
            evidence,
            boot_id: self.options.boot_id.clone(),
            other: known.map(|record| record.other.clone()).unwrap_or_default(),
        }
    }

    /// A tag names one image: any other loses it.
    fn take_tag(&self, tag: &String, new_owner: ImageId) -> io::Result<()> {
        let loser = {
            let state = self.state();
            let mut others = state.images.values().filter(|held| held.id != new_owner);
            others.find(|held| held.tags.contains(tag)).map(|held| held.record.clone())
        };
        let Some(mut record) = loser else { return Ok(()) };
        record.tags.retain(|known| known != tag);
        record.boot_id.clone_from(&self.options.boot_id);
        let image = Image::from_record(&record, &self.options.pinned)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
        self.write_image(record, image).map(drop)
    }

    fn write_image(&self, record: ImageRecord, mut image: Image) -> io::Result<Arc<Image>> {
        let is_same = self.state().images.get(&record.id).is_some_and(|held| {
            ImageRecord { boot_id: held.record.boot_id.clone(), ..record.clone() } == held.record
        });
        if is_same {
            return Ok(Arc::clone(&self.state().images[&record.id].image));
        }
        // The mark is for what is replaced.
        remove_if_there(&self.places.image_mark(record.id))?;
        let path = self.places.image(record.id);
        self.places.write_record(&path, &record)?;
        let own = Some(OwnRecord { synced: false, stamp: Stamp::of(&path)? });
        let mut state = self.state();
        let additional = state.images.get(&record.id).and_then(|held| held.additional.clone());
        image.pinned |= additional.is_some();
        let image = Arc::new(image);
        for layer in &record.mounted {
            if let Some(layer) = state.layers.get_mut(layer) {
                layer.waits_since = None;
            }
        }
        info!(image = %record.id, tags = ?record.tags, "image stored");
        let held = HeldImage { image: Arc::clone(&image), record, own, additional };
        state.images.insert(image.id, held);
        Ok(image)
    }

    /// Makes the layer of directories that a stack needs on top, if it does.
    fn directory_layer(self: &Arc<Self>, stack: &[Digest]) -> io::Result<Option<(Digest, Pins)>> {
        let mut stacked = Vec::with_capacity(stack.len());
        let mut names = "directories, 2\n".to_owned();
        for layer in stack {
            let home = self.state().layers.get(layer).map_or(Home::Own, |held| held.home.clone());
            let places = self.places_of(&home);
            let record: LayerRecord = read_record(&places.layer_record(*layer))?;
            stacked.push(Stacked::open(&places.layer_root(*layer), record.noted())?);
            names.push_str(&format!("{layer}\n"));
        }
        let plan = directories::plan(&stacked)?;
        if plan.is_empty() {
            return Ok(None);
        }
        // No archive has this digest: it is that of a text that begins with a word.
        let layer = Digest::of(names.as_bytes());
        let pins = Pins::new(self, &mut self.state(), vec![layer]);
        if !self.state().layers.contains_key(&layer) {
            let directory = self.incoming_layer()?;
            let make = || {
                let root = directory.join("fs");
                directories::build(&plan, &root)?;
                let measured = measure(open_own_directory(&root)?.as_fd(), &self.options.limits)?;
                let unpacked = Unpacked { noted: Noted::default(), measured };
                self.commit_layer(layer, &directory, &unpacked)
            };
            make().inspect_err(|_| erase(&directory))?;
        }
        Ok(Some((layer, pins)))
    }

    /// Removes an image's record, and with it all its names. An additional store's record cannot
    /// be removed: the image is as it was before anything was pulled here.
    pub(super) fn forget(&self, image: &Image) -> Result<(), Error> {
        let _writing = self.writing();
        if self.state().images.get(&image.id).is_some_and(|held| held.own.is_none()) {
            return Err(Error::ReadOnly { image: image.id.to_string() });
        }
        let remove = || {
            remove_if_there(&self.places.image_mark(image.id))?;
            remove_if_there(&self.places.image(image.id))
        };
        remove().map_err(|error| Error::io("remove an image", error))?;
        let mut state = self.state();
        let additional = state.images.remove(&image.id).and_then(|held| held.additional);
        additional.into_iter().for_each(|record| state.take_additional(record));
        drop(state);
        info!(image = %image.id, "image removed");
        Ok(())
    }

    /// Flushes the file system, then marks what was there before.
    pub(super) fn sync(&self) -> io::Result<()> {
        let (layers, images): (Vec<_>, Vec<_>) = {
            let state = self.state();
            let layers = state.layers.iter().filter(|(_, held)| held.is_own() && !held.synced);
            let is_new = |held: &&HeldImage| held.own.as_ref().is_some_and(|own| !own.synced);
            let stamp = |held: &HeldImage| held.own.as_ref().map(|own| (held.id, own.stamp));
            (
                layers.map(|(layer, held)| (*layer, held.stamp)).collect(),
                state.images.values().filter(is_new).filter_map(stamp).collect(),
            )
        };
        if layers.is_empty() && images.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(open_own_directory(&self.places.root)?)?;
        let _writing = self.writing();
        for (layer, stamp) in layers {
            self.mark_layer(layer, stamp)?;
        }
        for (image, stamp) in images {
            self.mark_image(image, stamp)?;
        }
        Ok(())
    }

    /// Marks the layer that had this stamp when all was flushed. It may have been removed since, and
    /// even come again, with the same content.
    pub(super) fn mark_layer(&self, layer: Digest, flushed: LayerStamp) -> io::Result<()> {
        if self.state().layers.get(&layer).is_some_and(|held| held.stamp == flushed) {
            fs_err::File::create(self.places.layer_mark(layer))?;
            if let Some(held) = self.state().layers.get_mut(&layer) {
                held.synced = true;
            }
        }
        Ok(())
    }

    /// As a layer.
    pub(super) fn mark_image(&self, id: ImageId, flushed: Stamp) -> io::Result<()> {
        let stamp = |held: &HeldImage| held.own.as_ref().map(|own| own.stamp);
        if self.state().images.get(&id).and_then(stamp) == Some(flushed) {
            fs_err::File::create(self.places.image_mark(id))?;
            let mut state = self.state();
            let own = state.images.get_mut(&id).and_then(|held| held.own.as_mut());
            if let Some(own) = own {
                own.synced = true;
            }
        }
        Ok(())
    }
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
