//! What registries call a config, for a manifest of one layer.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cria_images::fuzzing::config(data));
