//! What the kubelet runs its pods on: a cria of the test's own, the one that is installed on this
//! node, or containerd to see whether a failure is cria's.

use std::env;
use std::path::PathBuf;

use harness::place::Place;
use harness::{Containerd, Cri, Node, Registry, tools};

use crate::installed::Installed;

/// Where containerd's pause image comes from.
const PAUSE_HOST: &str = "registry.k8s.io";

pub(crate) enum Runtime {
    Cria(Box<Node>),
    Containerd(Box<Containerd>),
    Installed(Box<Installed>),
}

impl Runtime {
    /// As `$CRIA_KUBELET_PEER` says; cria if it says nothing. Images come from `registry` and from
    /// `private`.
    pub(crate) fn start(registry: &Registry, private: &Registry) -> Self {
        let peer = env::var("CRIA_KUBELET_PEER").unwrap_or_else(|_| "cria".to_owned());
        match peer.as_str() {
            "cria" => {
                Self::Cria(Box::new(Node::setup().registry(registry).registry(private).start()))
            }
            "containerd" => {
                harness::critest_images::push_pause(registry);
                let runc = tools::tool("runc");
                Self::Containerd(Box::new(Containerd::start(&runc, registry, &[PAUSE_HOST])))
            }
            "installed" => Self::Installed(Box::new(Installed::set_up(&[registry, private]))),
            other => panic!("CRIA_KUBELET_PEER is cria, installed or containerd, not {other}"),
        }
    }

    pub(crate) fn is_cria(&self) -> bool {
        matches!(self, Self::Cria(_) | Self::Installed(_))
    }

    /// Under which the kubelet is to have its pods' cgroups, and who makes them.
    pub(crate) fn cgroup(&self) -> (String, &'static str) {
        match self {
            Self::Cria(_) | Self::Containerd(_) => {
                (format!("{}/kubelet", self.place().cgroup()), "cgroupfs")
            }
            Self::Installed(_) => ("/".to_owned(), "systemd"),
        }
    }

    pub(crate) fn cri(&self) -> &Cri {
        match self {
            Self::Cria(node) => node.cri(),
            Self::Containerd(node) => node.cri(),
            Self::Installed(node) => node.cri(),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        match self {
            Self::Cria(node) => node.socket(),
            Self::Containerd(node) => node.socket(),
            Self::Installed(node) => node.socket(),
        }
    }

    pub(crate) fn place(&self) -> &Place {
        match self {
            Self::Cria(node) => node.place(),
            Self::Containerd(node) => node.place(),
            Self::Installed(node) => node.place(),
        }
    }

    pub(crate) fn kill9(&mut self) {
        match self {
            Self::Cria(node) => node.kill9(),
            Self::Containerd(node) => node.kill9(),
            Self::Installed(node) => node.kill9(),
        }
    }

    pub(crate) fn resume(&mut self) {
        match self {
            Self::Cria(node) => node.resume(),
            Self::Containerd(node) => node.resume(),
            Self::Installed(node) => node.resume(),
        }
    }
}
