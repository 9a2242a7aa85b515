//! An archive read as [`unpack`](super::unpack) reads it, with nothing made of it: a thousand times
//! faster, so the parsers see far more archives than files could be made from.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};

use super::archive::Members;
use super::attributes::Attributes;
use super::name;

/// Reads all members, what their headers say, and their data; how many bytes of data there were.
pub(crate) fn read(archive: &[u8]) -> io::Result<u64> {
    let mut members = Members::new(archive);
    let mut length = 0;
    while let Some(member) = members.next()? {
        let Ok(path) = name::clean(&member.name) else { continue };
        let _ = name::meaning(&path);
        let _ = name::clean(&member.link);
        let _ = Attributes::of(&member);
        match member.sparse {
            Some(sparse) => {
                let file = File::from(memfd_create("sparse", MemfdFlags::CLOEXEC)?);
                sparse.write(&mut members, &file)?;
            }
            None => length += io::copy(&mut members, &mut io::sink())?,
        }
    }
    Ok(length)
}
