//! Exec, attach and port-forward over HTTP, as the kubelet, kubectl and crictl speak them.
//!
//! ```text
//!  Exec RPC ──▶ token, URL                         daemon
//!  client ──▶ server ──▶ upgrade ──▶ spdy, ─────┬─▶ command ──▶ a process's descriptors
//!             tokens     negotiates  websocket └─▶ forward ──▶ connections into a pod
//! ```
//!
//! This crate knows neither the CRI nor containers: whoever asks for a URL gives what is to be done
//! when a client comes for it ([`Pending`]). Nothing is buffered without bound: neither protocol has
//! a flow control that its clients keep to, so whoever is slow is waited for, by TCP. A session at
//! rest holds no buffers at all.

#![forbid(unsafe_code)]

mod activity;
mod channel;
mod chunk;
mod client;
mod command;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hangup;
mod ports;
mod process;
mod protocol;
mod server;
mod socket;
mod spdy;
mod status;
mod tls;
mod tokens;
mod upgrade;
mod websocket;

use std::time::Duration;

pub use process::{AsyncFd, End, Output, Process, Size, Stdin};
pub use server::Server;
pub use tls::{Identity, IdentityError};
pub use tokens::{Command, Connect, Pending, PortForward, Start, TooMany, Wanted};

/// How long clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A session in which nothing is said for so long is ended.
    pub idle: Duration,
    /// From the upgrade until the client has opened all its streams.
    pub creation: Duration,
}
