//! The store: layers by content, images by id, and who uses them.
//!
//! Memory follows the disk: a thing is in the maps only after its rename. Lists and look-ups never
//! touch the disk. Changes are made one at a time (`writing`), never while the maps are locked for
//! longer than it takes to read or change them.

mod commit;
mod directories;
mod image;
mod lease;
mod open;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::auth::NodeCredentials;
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::platform::Platform;
use crate::pull::Jobs;
use crate::reference::Reference;
use crate::registries::Registries;

pub(crate) use commit::NewImage;
use image::Lookup;
pub use image::{Image, User};
pub use lease::Lease;
pub(crate) use lease::Pins;
use record::{ImageRecord, Places};

pub use crate::unpack::Usage;

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Most layers that are downloaded and unpacked at once, over all pulls; also of one pull.
    pub parallel_layers: NonZeroUsize,
    /// What images must run on.
    pub platform: Platform,
    /// Of the running kernel, `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Images never to be collected: exact names, `prefix*`, `*keyword*`.
    pub pinned: Vec<String>,
    pub registries: Arc<Registries>,
    /// Used for pulls whose caller brings no credentials.
    pub node_credentials: NodeCredentials,
    /// A connection on which nothing arrives for so long is given up and made anew.
    pub stall_timeout: Duration,
}

impl StoreOptions {
    /// The defaults, on a kernel with this boot id.
    pub fn new(boot_id: impl Into<String>) -> Self {
        Self {
            parallel_layers: const { NonZeroUsize::new(6).unwrap() },
            platform: Platform::host(),
            boot_id: boot_id.into(),
            pinned: Vec::new(),
            registries: Arc::default(),
            node_credentials: NodeCredentials::default(),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Images and their layers on disk. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) places: Places,
    pub(crate) options: StoreOptions,
    /// Held by whoever changes the disk and then the maps.
    writing: Mutex<()>,
    state: Mutex<State>,
    sources: RwLock<Sources>,
    pub(crate) layer_jobs: Jobs<()>,
    pub(crate) config_jobs: Jobs<Arc<[u8]>>,
    /// Layers under way.
    pub(crate) slots: Semaphore,
}

/// Where images come from; replaced whole.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) registries: Arc<Registries>,
    pub(crate) node_credentials: NodeCredentials,
}

#[derive(Default)]
struct State {
    images: BTreeMap<ImageId, HeldImage>,
    layers: HashMap<Digest, HeldLayer>,
    /// How many leases and running pulls need a layer, held or not.
    references: HashMap<Digest, usize>,
    /// Nothing is collected before whoever holds leases has renewed them.
    collecting: bool,
}

struct HeldImage {
    image: Arc<Image>,
    record: ImageRecord,
    record_bytes: u64,
    synced: bool,
}

impl std::ops::Deref for HeldImage {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

#[derive(Clone, Copy)]
struct HeldLayer {
    usage: Usage,
    synced: bool,
    /// Since when it waits for its image, if it never had one.
    waits_since: Option<Instant>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.places.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `root`, making it if need be. What a crash left half-made is removed;
    /// what a crash of the node may have damaged, and what cannot be read, is dropped, each thing
    /// by itself with a warning. Blocking.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Self, Error> {
        open::open(root, options).map_err(|error| Error::io("open the image store", error))
    }

    /// Takes new rules for where images come from. Pulls under way keep theirs.
    pub fn use_sources(&self, registries: Arc<Registries>, node_credentials: NodeCredentials) {
        let mut sources = self.shared.sources.write().unwrap_or_else(PoisonError::into_inner);
        *sources = Sources { registries, node_credentials };
    }

    /// Every image, by id. No IO.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.shared.state().images.values().map(|held| Arc::clone(&held.image)).collect()
    }

    /// An image by id (with or without `sha256:`, or an unambiguous beginning of it), tag or
    /// digest. Names are completed as for a pull. No IO.
    pub fn find(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let sources = self.sources();
        let lookup = Lookup::parse(name, |name| sources.registries.reference(name))?;
        let state = self.shared.state();
        let (reference, id_prefix) = match lookup {
            Lookup::Id(id) => return Ok(state.images.get(&id).map(|h| Arc::clone(&h.image))),
            Lookup::Name { reference, id_prefix } => (reference, id_prefix),
        };
        let by_name = reference.and_then(|reference| state.named(&reference));
        if by_name.is_some() {
            return Ok(by_name);
        }
        let Some(prefix) = id_prefix else { return Ok(None) };
        let mut fitting =
            state.images.iter().filter(|(id, _)| id.digest().hex().starts_with(&prefix));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(Error::Ambiguous { prefix }),
            (found, _) => Ok(found.map(|(_, held)| Arc::clone(&held.image))),
        }
    }

    /// Removes the image that `name` is one of the names of, with all its names; an unknown one
    /// counts as removed. Layers that are leased stay until their leases end; the rest is taken
    /// out of sight at once and removed in the background. Blocking, but short.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let Some(image) = self.find(name)? else { return Ok(()) };
        self.shared.forget(&image)?;
        self.shared.collect();
        Ok(())
    }

    /// Keeps an image's layers for as long as the lease lives.
    pub fn lease(&self, id: &ImageId) -> Result<Lease, Error> {
        let mut state = self.shared.state();
        let Some(held) = state.images.get(id) else {
            return Err(Error::NoSuchImage { image: id.to_string() });
        };
        let layers = held.mounted.clone();
        Ok(Lease::new(*id, Pins::new(&self.shared, &mut state, layers)))
    }

    /// Renews a lease that an earlier process held: `layers` as [`Lease::layers`] told them. The
    /// image itself may be gone.
    pub fn lease_layers(&self, layers: Vec<Digest>, image: ImageId) -> Result<Lease, Error> {
        let mut state = self.shared.state();
        if let Some(layer) = layers.iter().find(|layer| !state.layers.contains_key(layer)) {
            return Err(Error::NoSuchLayer { layer: *layer, image: image.to_string() });
        }
        Ok(Lease::new(image, Pins::new(&self.shared, &mut state, layers)))
    }

    /// Removes the layers that nothing uses. Until the first call nothing is ever collected, so
    /// that leases of an earlier process can be renewed first.
    pub fn collect(&self) {
        self.shared.state().collecting = true;
        self.shared.collect();
    }

    /// What the store takes of its disk, as recorded when each thing was made. No IO.
    pub fn usage(&self) -> Usage {
        /// What a file of a record takes at least.
        const PAGE: u64 = 4096;
        let state = self.shared.state();
        let mut usage = Usage::default();
        for layer in state.layers.values() {
            usage += layer.usage;
            // Its directory and its record.
            usage += Usage { bytes: 2 * PAGE, inodes: 2 };
        }
        for image in state.images.values() {
            usage += Usage { bytes: image.record_bytes.next_multiple_of(PAGE), inodes: 1 };
        }
        usage
    }

    /// Flushes what is new to the disk and marks it as safe from a power cut. Slow: a background
    /// task's work, never a request's. Blocking.
    pub fn sync(&self) -> Result<(), Error> {
        self.shared.sync().map_err(|error| Error::io("sync the image store", error))?;
        self.shared.collect();
        Ok(())
    }

    pub(crate) fn sources(&self) -> Sources {
        self.shared.sources.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a layer is complete and here.
    pub(crate) fn has_layer(&self, layer: Digest) -> bool {
        self.shared.state().layers.contains_key(&layer)
    }

    /// The config of an image that is already here.
    pub(crate) fn config(&self, id: ImageId) -> Option<Arc<[u8]>> {
        let state = self.shared.state();
        state.images.get(&id).map(|held| held.record.config.as_bytes().into())
    }

    /// Keeps layers from collection, held or still to come.
    pub(crate) fn pin(&self, layers: Vec<Digest>) -> Pins {
        Pins::new(&self.shared, &mut self.shared.state(), layers)
    }
}

impl Shared {
    /// Poisoning is ignored: every change of the maps is a single step that leaves them whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn named(&self, reference: &Reference) -> Option<Arc<Image>> {
        let found = self.images.values().find(|held| held.has_name(reference));
        found.map(|held| Arc::clone(&held.image))
    }
}

#[cfg(test)]
mod tests;
