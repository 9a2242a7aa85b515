//! Opening a store: what a crash left is cleaned up, what is whole is taken in.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use tracing::{debug, warn};

use super::image::Image;
use super::lease::erase_in_background;
use super::record::{ImageRecord, LayerRecord, Places, read_record};
use super::stamp::{LayerStamp, Stamp};
use super::{
    HeldImage, HeldLayer, Home, OwnRecord, Shared, Sources, State, Store, StoreOptions, Usage,
    additional,
};
use crate::digest::{Digest, ImageId};
use crate::jobs::Jobs;
use crate::progress::Progress;
use crate::shares::Shares;
use crate::unpack::{measure, open_own_directory};

pub(super) fn open(root: &Path, options: StoreOptions) -> io::Result<Store> {
    let places = Places::create(root)?;
    let mut leftovers = entries(&places.incoming())?;
    let mut damaged = entries(&places.damaged())?;
    damaged.retain(|path| !is_of_boot(path, &options.boot_id));
    leftovers.extend(damaged);
    let mut state = State::default();
    for path in entries(&places.layers())? {
        match read_layer(&path, Home::Own, Trust::Synced { boot_id: &options.boot_id }) {
            Ok((layer, held)) => drop(state.layers.insert(layer, held)),
            Err(why) => drop_layer(&places, &path, &options.boot_id, &why),
        }
    }
    additional::take_in_layers(&options, &mut state);
    for path in image_paths(&places.images())? {
        let trust = Trust::Synced { boot_id: &options.boot_id };
        match read_image(&path, &options, trust, &state) {
            Ok(held) => drop(state.images.insert(held.record.id, held)),
            Err(why) => drop_item(&places, &path, &why),
        }
    }
    additional::take_in_images(&options, &mut state);
    for image in state.images.values() {
        for layer in &image.image.mounted {
            if let Some(layer) = state.layers.get_mut(layer) {
                layer.waits_since = None;
            }
        }
    }
    drop_lost_marks(&places, &state)?;
    state.set_aside = set_aside(&places, &options)?;
    erase_in_background(leftovers);
    let sources = Sources {
        registries: Arc::clone(&options.registries),
        node_credentials: options.node_credentials.clone(),
        trust: options.trust.clone(),
        connections: options.connections(),
    };
    Ok(Store {
        shared: Arc::new(Shared {
            places,
            writing: Mutex::default(),
            state: Mutex::new(state),
            sources: RwLock::new(sources),
            layer_jobs: Jobs::default(),
            config_jobs: Jobs::default(),
            shares: Shares::new(options.parallel_layers.get()),
            progress: Progress::default(),
            options,
        }),
    })
}

pub(super) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs_err::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

/// The records in a directory of images.
pub(super) fn image_paths(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = entries(directory)?;
    paths.retain(|path| path.extension() == Some(OsStr::new("json")));
    Ok(paths)
}

/// Whether a layer was set aside in this boot: otherwise nobody mounts it any more.
fn is_of_boot(path: &Path, boot_id: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(boot_id).is_some_and(|rest| rest.starts_with('.'))
}

/// What this boot's damaged layers take: there are seldom any.
fn set_aside(places: &Places, options: &StoreOptions) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut damaged = entries(&places.damaged())?;
    damaged.retain(|path| is_of_boot(path, &options.boot_id));
    for path in damaged {
        match open_own_directory(&path).and_then(|fd| measure(fd.as_fd(), &options.limits)) {
            Ok(measured) => usage += measured.usage,
            Err(error) => warn!(path = %path.display(), %error, "cannot measure it"),
        }
    }
    Ok(usage)
}

/// When something is known to have reached the disk.
#[derive(Clone, Copy)]
pub(super) enum Trust<'a> {
    /// If it bears the mark, or was written in this boot.
    Synced { boot_id: &'a str },
    /// Whoever keeps the store has seen to it.
    AsItIs,
}

impl Trust<'_> {
    fn check(self, synced: bool, written_in: &str) -> Result<(), String> {
        match self {
            Self::Synced { boot_id } if !synced && written_in != boot_id => {
                Err("not known to have reached the disk before the node went down".to_owned())
            }
            Self::Synced { .. } | Self::AsItIs => Ok(()),
        }
    }
}

/// Takes in a layer, or says why not.
pub(super) fn read_layer(
    path: &Path,
    home: Home,
    trust: Trust<'_>,
) -> Result<(Digest, HeldLayer), String> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let layer = Digest::from_hex(name).ok_or("not a layer")?;
    let record: LayerRecord =
        read_record(&path.join("layer.json")).map_err(|error| error.to_string())?;
    let synced = path.join("synced").exists();
    if record.diff_id != layer {
        return Err("record of another layer".to_owned());
    }
    trust.check(synced, &record.boot_id)?;
    if !path.join("fs").is_dir() {
        return Err("no content".to_owned());
    }
    let stamp = LayerStamp::of_directory(path).map_err(|error| error.to_string())?;
    let waits_since = Some(Instant::now());
    let (usage, is_counted) = (record.usage(), false);
    Ok((layer, HeldLayer { home, usage, synced, stamp, is_counted, waits_since }))
}

/// Takes in an image, or says why not.
pub(super) fn read_image(
    path: &Path,
    options: &StoreOptions,
    trust: Trust<'_>,
    state: &State,
) -> Result<HeldImage, String> {
    let stamp = Stamp::of(path).map_err(|error| error.to_string())?;
    let record: ImageRecord = read_record(path).map_err(|error| error.to_string())?;
    let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    if record.id.digest().hex() != name {
        return Err("record of another image".to_owned());
    }
    let synced = path.with_extension("synced").exists();
    trust.check(synced, &record.boot_id)?;
    if let Some(layer) = record.mounted.iter().find(|layer| !state.layers.contains_key(layer)) {
        return Err(format!("layer {layer} is missing"));
    }
    let image = Image::from_record(&record, &options.pinned)?;
    let own = Some(OwnRecord { synced, stamp });
    Ok(HeldImage { image: Arc::new(image), record, own, additional: None })
}

/// A layer that is damaged may be mounted even so: it stays until the next boot.
fn drop_layer(places: &Places, path: &Path, boot_id: &str, why: &str) {
    warn!(path = %path.display(), why, "dropping a damaged layer");
    if let Err(error) = places.set_aside(path, boot_id) {
        warn!(%error, "cannot drop it");
    }
}

/// One damaged thing costs that thing alone: it is pulled again.
fn drop_item(places: &Places, path: &Path, why: &str) {
    warn!(path = %path.display(), why, "dropping a damaged item of the image store");
    match places.discard(path) {
        Ok(aside) => erase_in_background(vec![aside]),
        Err(error) => warn!(%error, "cannot drop it"),
    }
}

/// A mark without its image must not vouch for a later image of that id.
fn drop_lost_marks(places: &Places, state: &State) -> io::Result<()> {
    for path in entries(&places.images())? {
        let id = path.file_stem().and_then(OsStr::to_str).and_then(Digest::from_hex);
        let is_known = id.is_some_and(|id| state.images.contains_key(&ImageId::from(id)));
        if !is_known {
            debug!(path = %path.display(), "removing a left-over");
            fs_err::remove_file(&path)?;
        }
    }
    Ok(())
}
