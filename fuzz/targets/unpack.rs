//! Layers: whatever an archive holds, nothing appears or changes outside the directory that it is
//! unpacked into.

#![no_main]

mod checksums;

use std::os::unix::fs::MetadataExt;

use libfuzzer_sys::fuzz_target;

use checksums::with_checksums;

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
