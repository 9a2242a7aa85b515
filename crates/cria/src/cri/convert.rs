//! CRI messages to domain types and back. Pure; what it refuses is the client's mistake.

mod container;
mod mounts;
mod namespaces;
mod resources;
mod sandbox;
mod security;
mod signal;

pub(super) use container::container_config;
pub(super) use mounts::mount_asked;
pub(super) use namespaces::namespaces_asked;
pub(super) use resources::{resources, resources_held};
pub(super) use sandbox::sandbox_config;
pub(super) use signal::signal;
use signal::signal_number;

use crate::error::Error;

/// A value of an enum that this release knows.
fn known<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, Error> {
    E::try_from(value).map_err(|_| Error::invalid(field, format!("{value} is unknown")))
}

fn list<A, B>(items: Vec<A>, convert: impl Fn(A) -> Result<B, Error>) -> Result<Vec<B>, Error> {
    items.into_iter().map(convert).collect()
}
