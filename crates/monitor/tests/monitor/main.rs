//! The real monitor with the real OCI runtime, and a daemon's part played by the tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod adopt;
mod container;
mod cost;
mod ends;
mod node;
mod roles;
mod traced;
