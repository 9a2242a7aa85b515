//! What the fuzz targets reach of this crate beyond what it offers to the daemon. Only there in
//! their builds (`cfg(fuzzing)`).

use std::path::Path;

use crate::manifest::{Manifest, parse_config};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registries::Registries;
use crate::unpack::Limits;
use crate::{trust, unpack};

/// Reads a `registries.conf`, and asks where it sends an image.
pub fn registries(file: &str, reference: &str) {
    let Ok(registries) = Registries::parse(Path::new("registries.conf"), file) else { return };
    if let Ok(reference) = registries.reference(reference) {
        let _ = registries.endpoints(&reference);
    }
}

/// Reads a manifest and says what its layers are; one of an image is paired with the config.
pub fn manifest(manifest: &[u8], config: &[u8]) {
    match Manifest::parse(manifest, &Platform::host()) {
        Ok(Manifest::Image(manifest)) => {
            if let Ok(config) = parse_config(config) {
                let _ = manifest.layers(&config);
            }
        }
        Ok(Manifest::Artifact(manifest)) => drop(manifest.layers()),
        Ok(Manifest::Index(_)) | Err(_) => {}
    }
}

/// Reads a config, and pairs it with a manifest.
pub fn config(config: &[u8]) {
    let manifest = include_bytes!("../../../fuzz/seeds/manifest/image");
    let manifest = manifest.split(|byte| *byte == 0).next().unwrap_or_default();
    let Ok(Manifest::Image(manifest)) = Manifest::parse(manifest, &Platform::host()) else {
        panic!("the manifest is one of an image");
    };
    if let Ok(config) = parse_config(config) {
        let _ = manifest.layers(&config);
    }
}

/// Reads a policy and a `registries.d` file, and asks them about an image.
pub fn policy(policy: &str, places: &str, reference: &str) {
    if let Ok(reference) = Reference::parse(reference, None) {
        trust::fuzzing::policy(policy, places, &reference);
    }
}

/// Reads bytes as everything that signatures are made of: a keyring, a message, a payload, keys in
/// PEM, a list of attachments.
pub fn signature(bytes: &[u8]) {
    trust::fuzzing::signature(bytes);
}

/// Unpacks an archive; whether it could.
pub fn unpack(archive: &[u8], into: &Path) -> bool {
    unpack::unpack(archive, into, Limits::default()).is_ok()
}

/// Reads an archive and makes nothing of it; how many bytes of files there were.
pub fn archive(archive: &[u8]) -> std::io::Result<u64> {
    unpack::fuzzing::read(archive)
}
