//! Containers.

pub(crate) mod config;
