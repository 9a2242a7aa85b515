//! The daemon.

mod container;
mod id;
mod sandbox;

fn main() {}
