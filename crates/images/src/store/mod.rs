//! The store: layers by content, images by id, and who uses them.
//!
//! Memory follows the disk: a thing is in the maps only after its rename. Lists and look-ups never
//! touch the disk. Changes are made one at a time (`writing`), never while the maps are locked for
//! longer than it takes to read or change them.

mod additional;
mod commit;
mod directories;
mod image;
mod lease;
mod open;
mod record;
mod stamp;
mod verify;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::auth::NodeCredentials;
use crate::certificates::Certificates;
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::jobs::Jobs;
use crate::platform::Platform;
use crate::progress::{Progress, PullCounts, PullProgress};
use crate::reference::Reference;
use crate::registries::Registries;
use crate::registry::Connections;
use crate::shares::Shares;

pub(crate) use commit::NewImage;
use image::Lookup;
pub use image::{Image, User};
pub use lease::Lease;
pub(crate) use lease::Pins;
use record::{ImageRecord, Places};
use stamp::{LayerStamp, Stamp};

use crate::trust::{Evidence, Trust};
use crate::unpack::Limits;
pub use crate::unpack::Usage;

/// What a file of a record takes at least.
const PAGE: u64 = 4096;

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Most layers of one pull that are downloaded and unpacked at once. All pulls share as many;
    /// beyond them, up to as many pulls that have none have one.
    pub parallel_layers: NonZeroUsize,
    /// What one layer may be at most.
    pub limits: Limits,
    /// What images must run on.
    pub platform: Platform,
    /// Of the running kernel, `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Images never to be collected: exact names, `prefix*`, `*keyword*`.
    pub pinned: Vec<String>,
    /// Directories with stores that somebody else keeps: read, never written to.
    pub additional_stores: Vec<PathBuf>,
    pub registries: Arc<Registries>,
    /// Used for pulls whose caller brings no credentials.
    pub node_credentials: NodeCredentials,
    /// Which images may be pulled and used.
    pub trust: Trust,
    /// Of registries, besides the system's.
    pub certificates: Certificates,
    /// A connection on which nothing arrives for so long is given up and made anew.
    pub stall_timeout: Duration,
}

impl StoreOptions {
    /// The defaults, on a kernel with this boot id.
    pub fn new(boot_id: impl Into<String>) -> Self {
        Self {
            parallel_layers: const { NonZeroUsize::new(6).unwrap() },
            limits: Limits::default(),
            platform: Platform::host(),
            boot_id: boot_id.into(),
            pinned: Vec::new(),
            additional_stores: Vec::new(),
            registries: Arc::default(),
            node_credentials: NodeCredentials::default(),
            trust: Trust::default(),
            certificates: Certificates::default(),
            stall_timeout: Duration::from_secs(30),
        }
    }

    fn connections(&self) -> Connections {
        Connections::new(self.certificates.clone(), self.stall_timeout)
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
    pub(crate) shares: Arc<Shares>,
    pub(crate) progress: Progress,
}

/// Where images come from, and which; replaced whole.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) registries: Arc<Registries>,
    pub(crate) node_credentials: NodeCredentials,
    pub(crate) trust: Trust,
    pub(crate) connections: Connections,
}

#[derive(Default)]
struct State {
    images: BTreeMap<ImageId, HeldImage>,
    layers: HashMap<Digest, HeldLayer>,
    /// How many leases and running pulls need a layer, held or not.
    references: HashMap<Digest, usize>,
    /// Nothing is collected before whoever holds leases has renewed them.
    collecting: bool,
    /// When a pull last found the disk full.
    full_at: Option<Instant>,
    /// What damaged layers take that somebody mounts: they are there until the next boot.
    set_aside: Usage,
}

struct HeldImage {
    image: Arc<Image>,
    record: ImageRecord,
    /// Our own record on disk; none if only an additional store has the image.
    own: Option<OwnRecord>,
    /// What an additional store says of the image.
    additional: Option<ImageRecord>,
}

struct OwnRecord {
    synced: bool,
    stamp: Stamp,
}

impl std::ops::Deref for HeldImage {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

/// Which store has something.
#[derive(Clone)]
enum Home {
    Own,
    Additional(Arc<Places>),
}

#[derive(Clone)]
struct HeldLayer {
    home: Home,
    usage: Usage,
    synced: bool,
    stamp: LayerStamp,
    /// This process has made it, or counted what it consists of.
    is_counted: bool,
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

    /// Takes new rules for where images come from, and which. Pulls under way keep theirs.
    pub fn use_sources(
        &self,
        registries: Arc<Registries>,
        node_credentials: NodeCredentials,
        trust: Trust,
        certificates: Certificates,
    ) {
        let connections = Connections::new(certificates, self.shared.options.stall_timeout);
        let mut sources = self.shared.sources.write().unwrap_or_else(PoisonError::into_inner);
        *sources = Sources { registries, node_credentials, trust, connections };
    }

    /// Which images may be used, by the files as they were read last.
    pub fn trust(&self) -> Trust {
        self.sources().trust
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
    /// counts as removed, and one of an additional store is refused, but for the names that it
    /// was pulled by here. Layers that are leased stay until their leases end; the rest is taken
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
    /// image itself may be gone; so may some of the layers: the others stay.
    pub fn lease_layers(&self, layers: Vec<Digest>, image: ImageId) -> Result<Lease, Error> {
        let mut state = self.shared.state();
        let mut missing = layers.iter().filter(|layer| !state.layers.contains_key(layer));
        if missing.clone().count() == layers.len()
            && let Some(layer) = missing.next()
        {
            return Err(Error::NoSuchLayer { layer: *layer, image: image.to_string() });
        }
        // Nobody is about to pull them again: when the lease ends they can go.
        for layer in &layers {
            if let Some(held) = state.layers.get_mut(layer) {
                held.waits_since = None;
            }
        }
        Ok(Lease::new(image, Pins::new(&self.shared, &mut state, layers)))
    }

    /// Removes the layers that nothing uses. Until the first call nothing is ever collected, so
    /// that leases of an earlier process can be renewed first.
    pub fn collect(&self) {
        self.shared.state().collecting = true;
        self.shared.collect();
    }

    /// What the store takes of its disk, as recorded when each thing was made. What is being made or
    /// removed is not in it: it does not stay so. No IO.
    pub fn usage(&self) -> Usage {
        let state = self.shared.state();
        let mut usage = state.set_aside;
        for layer in state.layers.values().filter(|layer| layer.is_own()) {
            usage += layer.whole_usage();
        }
        for own in state.images.values().filter_map(|image| image.own.as_ref()) {
            usage += Usage { bytes: own.stamp.length().next_multiple_of(PAGE), inodes: 1 };
        }
        usage
    }

    /// The pulls under way, the oldest first. No IO.
    pub fn pulls(&self) -> Vec<PullProgress> {
        self.shared.progress.pulls(|layer| self.has_layer(layer))
    }

    /// What all pulls of this process have come to. No IO.
    pub fn pull_counts(&self) -> PullCounts {
        self.shared.progress.counts()
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

    /// The signatures that an image of this repository came with, by what its name led to.
    pub(crate) fn evidence(&self, repository: &str, manifests: &[Digest]) -> Option<Arc<Evidence>> {
        let state = self.shared.state();
        let mut all = state.images.values().flat_map(|held| &held.record.evidence);
        let found = all.find(|kept| kept.repository == repository && kept.manifests == manifests);
        found.cloned()
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

    fn places_of<'a>(&'a self, home: &'a Home) -> &'a Places {
        match home {
            Home::Own => &self.places,
            Home::Additional(places) => places,
        }
    }
}

impl HeldLayer {
    fn is_own(&self) -> bool {
        matches!(self.home, Home::Own)
    }

    /// With its directory and its record.
    fn whole_usage(&self) -> Usage {
        let mut usage = self.usage;
        usage += Usage { bytes: 2 * PAGE, inodes: 2 };
        usage
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
