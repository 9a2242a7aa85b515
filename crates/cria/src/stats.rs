//! TEMPORARY
#[derive(Default)]
pub(crate) struct Samples;
pub(crate) struct Usage { pub(crate) bytes: u64, pub(crate) inodes: u64 }
impl Samples { pub(crate) fn disk(&self) -> Option<Usage> { None } }
