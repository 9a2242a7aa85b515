//! Directories that go with all that is in them. It blocks.

use std::io;
use std::path::Path;

/// One that is not there is no error.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    let removed = match fs_err::remove_dir_all(directory) {
        // A last write of the object's record has just come to its end in there.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            fs_err::remove_dir_all(directory)
        }
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
