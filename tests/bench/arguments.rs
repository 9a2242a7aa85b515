//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures what pods cost on a CRI socket.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// Starts this peer beside a cria of its own and measures both, with the same runc.
    #[arg(long, conflicts_with = "socket")]
    pub(crate) peer: Option<Peer>,
    /// Measures what serves at this socket; starts nothing but a registry on loopback.
    #[arg(long)]
    pub(crate) socket: Option<PathBuf>,
    /// A second socket, to compare with the first.
    #[arg(long, requires = "socket")]
    pub(crate) beside: Option<PathBuf>,
    /// The program that stands over each container at the socket; any, if not given.
    #[arg(long, requires = "socket")]
    pub(crate) monitor: Option<String>,
    /// The OCI runtime of what is started; by default the runc of tests/tools beside a peer, and
    /// cria's own choice without one.
    #[arg(long, conflicts_with = "socket")]
    pub(crate) oci_runtime: Option<PathBuf>,
    /// Fewer and smaller samples: whether it works, not how fast.
    #[arg(long)]
    pub(crate) quick: bool,
    /// The table as Markdown.
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Exit code 1 if a mark is not met.
    #[arg(long)]
    pub(crate) gate: bool,
    /// Only these; all if none is named.
    pub(crate) only: Vec<Measurement>,
}

/// What can be started beside cria.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Peer {
    Containerd,
    /// containerd without cria, to see that the bench itself is right.
    ContainerdAlone,
}

/// What can be measured, in the order in which it is.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Measurement {
    /// A pod's life on the host's network, RPC by RPC.
    Host,
    /// The same on the pod network.
    Bridge,
    /// Pods up per second, 8 at a time.
    Rate,
    /// ExecSync of `true`, one at a time and 8 at a time.
    Exec,
    /// Exec and port-forward over SPDY: how fast, how soon, and what an idle session costs.
    Streams,
    /// Stats and lists with 30 pods.
    Queries,
    /// Memory with 30 pods.
    Memory,
    /// From the daemon's start until it lists its 30 pods; only of a cria of the bench's own.
    Restart,
    /// 64 MiB of lines through a container's log.
    Log,
    /// Pulls of six images: large layers, one, many, some of them held, many files.
    Pull,
}
