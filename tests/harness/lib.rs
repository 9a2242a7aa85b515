//! What the tests stand on: real nodes, real registries, real images, and their clean end.
//!
//! Everything here blocks; a test is a plain `#[test]`, and does several things at once with
//! threads. What a test starts is gone when its value is dropped, also when the test panics.

#![expect(clippy::print_stderr, reason = "a failed test shows the logs of what it ran")]

pub mod artifact;
pub mod blocking;
pub mod busybox;
pub mod certificate;
pub mod containerd;
pub mod cri;
pub mod critest;
pub mod critest_images;
pub mod daemon;
pub mod image;
pub mod layer;
pub mod leftovers;
pub mod limits;
pub mod network;
pub mod node;
pub mod place;
pub mod random;
pub mod registry;
pub mod remote;
pub mod scene;
pub mod scripts;
pub mod signing;
pub mod spdy;
pub mod tools;
pub mod wait;
pub mod websocket;

pub use artifact::Artifact;
pub use containerd::Containerd;
pub use cri::{Cri, Pod};
pub use image::{Format, Image, Index};
pub use layer::{Compression, Layer};
pub use node::Node;
pub use registry::Registry;
pub use scene::Scene;
pub use wait::until;
