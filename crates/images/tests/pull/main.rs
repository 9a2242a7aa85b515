//! The store against registries: a real one on loopback, and a scripted one for what a real one
//! does on its worst days.

mod failures;
mod real;
mod scripted;
mod sharing;
mod support;
