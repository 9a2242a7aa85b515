//! What is measured: a cria or a containerd of the bench's own, or whatever serves at a socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use cria_proto::{
    CgroupDriver, PodSandboxConfig, RuntimeConfigRequest, VersionRequest, VersionResponse,
};
use harness::cri::on_host_network;
use harness::place::Place;
use harness::{Containerd, Cri, Node, Registry, critest_images};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::cgroup;

/// Parent of the pods where systemd owns the cgroups and the bench has no place of its own.
const SLICE: &str = "criabench.slice";

pub(crate) struct Subject {
    kind: Kind,
    cri: Cri,
    socket: PathBuf,
    /// The program that stands over each container; any if unknown.
    monitor: Option<String>,
}

enum Kind {
    Cria(Box<Node>),
    Containerd(Box<Containerd>),
    Socket { place: Place, systemd: bool },
}

/// Which network a pod is on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Network {
    Host,
    Bridge,
}

impl Subject {
    pub(crate) fn cria(registry: &Registry, oci_runtime: Option<&Path>) -> Self {
        let setup = Node::setup().registry(registry).log_level("info");
        let setup = match oci_runtime {
            Some(path) => setup.argument("--oci-runtime").argument(path),
            None => setup,
        };
        let node = setup.start();
        Self {
            cri: node.cri().clone(),
            socket: node.socket(),
            monitor: Some("cria-monitor".to_owned()),
            kind: Kind::Cria(Box::new(node)),
        }
    }

    pub(crate) fn containerd(registry: &Registry, runc: &Path) -> Self {
        critest_images::push_pause(registry);
        let containerd = Containerd::start(runc, registry, &["registry.k8s.io"]);
        Self {
            cri: containerd.cri().clone(),
            socket: containerd.socket(),
            monitor: Some("containerd-shim-runc-v2".to_owned()),
            kind: Kind::Containerd(Box::new(containerd)),
        }
    }

    pub(crate) fn at(socket: &Path, monitor: Option<&str>) -> Self {
        let cri = Cri::connect(socket);
        let config = cri.runtime_config(RuntimeConfigRequest::default()).unwrap_or_default();
        let driver = config.linux.unwrap_or_default().cgroup_driver();
        let systemd = driver == CgroupDriver::Systemd;
        Self {
            cri,
            socket: socket.to_owned(),
            monitor: monitor.map(str::to_owned),
            kind: Kind::Socket { place: Place::take(), systemd },
        }
    }

    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    /// A word for the progress.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Cria(_) => "cria",
            Kind::Containerd(_) => "containerd",
            Kind::Socket { .. } => "socket",
        }
    }

    /// What it says it is.
    pub(crate) fn version(&self) -> String {
        let VersionResponse { runtime_name, runtime_version, .. } =
            self.cri.version(VersionRequest::default()).expect("the socket serves the CRI");
        format!("{runtime_name} {runtime_version}")
    }

    pub(crate) fn pod(&self, name: &str, network: Network) -> PodSandboxConfig {
        let config = match &self.kind {
            Kind::Cria(node) => node.pod(name),
            Kind::Containerd(containerd) => containerd.pod(name),
            Kind::Socket { place, systemd } => {
                let mut config = place.pod(name);
                if *systemd {
                    config.linux.get_or_insert_default().cgroup_parent = SLICE.to_owned();
                }
                config
            }
        };
        match network {
            Network::Host => on_host_network(config),
            Network::Bridge => config,
        }
    }

    /// The daemon's pid, from the socket itself.
    pub(crate) fn daemon(&self) -> i32 {
        let stream = UnixStream::connect(&self.socket).expect("the socket serves");
        getsockopt(&stream, PeerCredentials).expect("a unix socket knows its peer").pid()
    }

    /// The processes that stand over the containers of all pods here.
    pub(crate) fn monitors(&self) -> Vec<i32> {
        let pods = match &self.kind {
            Kind::Cria(node) => format!("{}/pods", node.place().cgroup()),
            Kind::Containerd(containerd) => format!("{}/pods", containerd.place().cgroup()),
            Kind::Socket { systemd: true, .. } => format!("/{SLICE}"),
            Kind::Socket { place, .. } => format!("{}/pods", place.cgroup()),
        };
        cgroup::outside_parents(&pods, self.monitor.as_deref())
    }

    /// The node, where it is ours to kill and start.
    pub(crate) fn node(&mut self) -> Option<&mut Node> {
        match &mut self.kind {
            Kind::Cria(node) => Some(node),
            Kind::Containerd(_) | Kind::Socket { .. } => None,
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // Nodes and containerd clean up themselves; what runs at a socket is not ours, our pods
        // are removed where they are made.
        if let Kind::Socket { place, .. } = &self.kind {
            harness::leftovers::remove(place);
        }
    }
}
