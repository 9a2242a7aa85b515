//! Containers.

pub(crate) mod config;
pub(crate) mod spec;
