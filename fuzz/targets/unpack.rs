//! Layers: whatever an archive holds, nothing appears or changes outside the directory that it is
//! unpacked into.

#![no_main]

use std::os::unix::fs::MetadataExt;

use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const SIZE: std::ops::Range<usize> = 124..136;

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let (root, neighbour) = (folder.path().join("root"), folder.path().join("neighbour"));
    fs_err::create_dir(&root).expect("own folder");
    fs_err::write(&neighbour, "as it was").expect("own folder");
    let before = fs_err::metadata(&neighbour).expect("own file");

    // How far it comes is not the matter here.
    let _ = cria_images::fuzzing::unpack(&with_checksums(data), &root);

    assert_eq!(fs_err::read_dir(folder.path()).expect("own folder").count(), 2);
    let after = fs_err::metadata(&neighbour).expect("it is still there");
    assert_eq!(fs_err::read(&neighbour).expect("it is still a file"), b"as it was");
    assert_eq!(
        (before.mode(), before.uid(), before.gid(), before.mtime(), before.nlink()),
        (after.mode(), after.uid(), after.gid(), after.mtime(), after.nlink()),
    );
});

/// Gives each header its true checksum, which no fuzzer guesses.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[CHECKSUM].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = std::str::from_utf8(&header[SIZE]).unwrap_or_default();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(BLOCK).saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
    archive
}
