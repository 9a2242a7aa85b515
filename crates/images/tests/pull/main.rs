//! The store against registries: a real one on loopback, and a scripted one for what a real one
//! does on its worst days.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod failures;
mod real;
mod scripted;
mod sharing;
mod speed;
mod support;
