//! Archives: whatever the headers say, no more data comes out than went in.

#![no_main]

mod checksums;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let archive = checksums::with_checksums(data);
    if let Ok(length) = cria_images::fuzzing::archive(&archive) {
        assert!(length <= archive.len() as u64, "{length} bytes of {}", archive.len());
    }
});
