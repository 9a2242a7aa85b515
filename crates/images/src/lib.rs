//! Pulls images from registries and keeps them, by content.
//!
//! ```text
//!  reference ──▶ registries ──▶ registry ──▶ manifest ──▶ pull ──┬─▶ layer ──▶ unpack ──▶ store
//!  what was      where that is  asks, with   what it     one job └─▶ layer ──▶ unpack ──▶
//!  asked for     and its trust  credentials  consists of per layer
//! ```
//!
//! A layer is kept unpacked under its diff id and shared by every image that has it. Nothing is
//! visible before it is complete: things are made in `incoming/` and renamed. This crate has never
//! heard of a container: whoever uses an image's layers holds a [`Lease`].

#![forbid(unsafe_code)]

mod artifact;
mod auth;
mod blob;
mod certificates;
mod digest;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod jobs;
mod layer;
mod manifest;
mod platform;
mod progress;
mod pull;
mod reference;
mod registries;
mod registry;
mod shares;
mod store;
mod trust;
mod unpack;

pub use auth::{AuthFields, Credentials, NodeCredentials};
pub use certificates::Certificates;
pub use digest::{Digest, ImageId};
pub use error::Error;
pub use platform::Platform;
pub use progress::{PullCounts, PullProgress};
pub use pull::PullRequest;
pub use reference::Reference;
pub use registries::{Registries, Unqualified};
pub use store::{Image, Lease, Store, StoreOptions, Usage, User};
pub use trust::{Trust, TrustFiles};
pub use unpack::Limits;
