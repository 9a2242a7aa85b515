//! Directories that go with all that is in them. It blocks.

use std::io;
use std::path::Path;

/// One that is not there is no error.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    match fs_err::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
