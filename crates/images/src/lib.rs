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

mod auth;
mod digest;
mod error;
mod layer;
mod manifest;
mod platform;
mod pull;
mod reference;
mod registries;
mod registry;
mod store;
mod unpack;

pub use auth::{AuthFields, Credentials, NodeCredentials};
pub use digest::{Digest, ImageId};
pub use error::Error;
pub use platform::Platform;
pub use pull::PullRequest;
pub use reference::Reference;
pub use registries::Registries;
pub use store::{Image, Lease, Store, StoreOptions, Usage, User};
