//! `registries.conf`, and where it sends an image: up to a NUL the file, then a reference.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (file, reference) = text.split_once('\0').unwrap_or((text, "docker.io/library/busybox:1"));
    cria_images::fuzzing::registries(file, reference);
});
