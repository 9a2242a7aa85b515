//! What registries call a manifest, an index or a config: up to a NUL the one, then the other.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (manifest, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    cria_images::fuzzing::manifest(manifest, config);
});
