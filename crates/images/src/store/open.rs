//! Opening a store: what a crash left is cleaned up, what is whole is taken in.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::image::Image;
use super::lease::erase_in_background;
use super::record::{ImageRecord, LayerRecord, Places, read_record};
use super::{HeldImage, HeldLayer, Shared, Sources, State, Store, StoreOptions};
use crate::digest::{Digest, ImageId};
use crate::pull::Jobs;

pub(super) fn open(root: &Path, options: StoreOptions) -> io::Result<Store> {
    let places = Places::create(root)?;
    let leftovers = entries(&places.incoming())?;
    let mut state = State::default();
    for path in entries(&places.layers())? {
        match read_layer(&path, &options.boot_id) {
            Ok((layer, held)) => drop(state.layers.insert(layer, held)),
            Err(why) => drop_item(&places, &path, &why),
        }
    }
    for path in entries(&places.images())? {
        if path.extension() != Some(OsStr::new("json")) {
            continue;
        }
        match read_image(&path, &options, &state) {
            Ok(held) => drop(state.images.insert(held.record.id, held)),
            Err(why) => drop_item(&places, &path, &why),
        }
    }
    for image in state.images.values() {
        for layer in &image.image.mounted {
            if let Some(layer) = state.layers.get_mut(layer) {
                layer.waits_since = None;
            }
        }
    }
    drop_lost_marks(&places, &state)?;
    erase_in_background(leftovers);
    let sources = Sources {
        registries: Arc::clone(&options.registries),
        node_credentials: options.node_credentials.clone(),
    };
    Ok(Store {
        shared: Arc::new(Shared {
            places,
            writing: Mutex::default(),
            state: Mutex::new(state),
            sources: RwLock::new(sources),
            layer_jobs: Jobs::default(),
            config_jobs: Jobs::default(),
            slots: Semaphore::new(options.parallel_layers.get()),
            options,
        }),
    })
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs_err::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

/// Takes in a layer, or says why not.
fn read_layer(path: &Path, boot_id: &str) -> Result<(Digest, HeldLayer), String> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let layer = Digest::from_hex(name).ok_or("not a layer")?;
    let record: LayerRecord =
        read_record(&path.join("layer.json")).map_err(|error| error.to_string())?;
    let synced = path.join("synced").exists();
    if record.diff_id != layer {
        return Err("record of another layer".to_owned());
    }
    if !synced && record.boot_id != boot_id {
        return Err("not known to have reached the disk before the node went down".to_owned());
    }
    if !path.join("fs").is_dir() {
        return Err("no content".to_owned());
    }
    let waits_since = Some(Instant::now());
    Ok((layer, HeldLayer { usage: record.usage(), synced, waits_since }))
}

/// Takes in an image, or says why not.
fn read_image(path: &Path, options: &StoreOptions, state: &State) -> Result<HeldImage, String> {
    let record: ImageRecord = read_record(path).map_err(|error| error.to_string())?;
    let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    if record.id.digest().hex() != name {
        return Err("record of another image".to_owned());
    }
    let synced = path.with_extension("synced").exists();
    if !synced && record.boot_id != options.boot_id {
        return Err("not known to have reached the disk before the node went down".to_owned());
    }
    if let Some(layer) = record.mounted.iter().find(|layer| !state.layers.contains_key(layer)) {
        return Err(format!("layer {layer} is missing"));
    }
    let image = Image::from_record(&record, &options.pinned)?;
    let record_bytes = path.metadata().map_err(|error| error.to_string())?.len();
    Ok(HeldImage { image: Arc::new(image), record, record_bytes, synced })
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
