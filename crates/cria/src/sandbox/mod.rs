//! Pod sandboxes.

pub(crate) mod config;
