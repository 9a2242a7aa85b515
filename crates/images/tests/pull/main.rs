//! The store against registries: a real one on loopback, and a scripted one for what a real one
//! does on its worst days.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod additional;
mod artifacts;
mod authority;
mod bounds;
mod cuts;
mod damage;
mod differential;
mod failures;
mod memory;
mod real;
mod scripted;
mod shares;
mod sharing;
mod speed;
mod support;
mod tools;
mod trust;
