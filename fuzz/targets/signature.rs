//! Whatever a signature is made of: OpenPGP keys and messages, payloads, keys in PEM, attachments.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cria_images::fuzzing::signature(bytes));
