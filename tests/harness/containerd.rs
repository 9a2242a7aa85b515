//! The peer: a containerd of its own beside the machine's, for the bench, and to see that the
//! images of the conformance suite are right.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use std::{env, ffi::OsString};

use cria_proto::{PodSandboxConfig, VersionRequest};

use crate::blocking::elsewhere;
use crate::cri::{Cri, on_host_network};
use crate::daemon::Daemon;
use crate::place::{Place, hierarchies};
use crate::registry::Registry;
use crate::tools::{tool, tools_path};
use crate::{leftovers, network};

const READY: Duration = Duration::from_secs(60);
const ENDED: Duration = Duration::from_secs(30);

/// The image containerd runs in every pod; the registry must have it.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";

/// The cgroup of pods that are given none, as critest's.
const PODS_WITHOUT_PARENT: &str = "k8s.io";

pub struct Containerd {
    daemon: Daemon,
    cri: Cri,
    place: Place,
}

impl Containerd {
    /// Runs containers with `runc`. Images of `hosts` (such as registry.k8s.io, which [`PAUSE`]
    /// needs) come from `registry`, and so do those named by its address.
    #[track_caller]
    pub fn start(runc: &Path, registry: &Registry, hosts: &[&str]) -> Self {
        let place = Place::take();
        for name in ["root", "state", "opt", "logs"] {
            place.make(name);
        }
        for host in hosts.iter().copied().chain([registry.address()]) {
            map(&place.make(&format!("certs.d/{host}")), host, registry.address());
        }
        let cni = network::configure(&place);
        let config = place.folder().join("config.toml");
        fs_err::write(&config, configuration(place.folder(), runc, &cni)).expect("own folder");

        let daemon = Daemon::new("containerd", place.folder().join("containerd.log"));
        let cri = Cri::connect(&place.folder().join("containerd.sock"));
        let mut node = Self { daemon, cri, place };
        node.resume();
        node
    }

    /// Kills the daemon as a crash would; nothing answers until [`Containerd::resume`].
    #[track_caller]
    pub fn kill9(&mut self) {
        self.daemon.kill9();
    }

    /// Starts the daemon again and waits until it answers.
    #[track_caller]
    pub fn resume(&mut self) {
        let mut command = self.place.command_in_cgroup(&tool("containerd"));
        let config = self.place.folder().join("config.toml");
        self.daemon.start(command.arg("--config").arg(config).env("PATH", path_with_tools()));
        let cri = &self.cri;
        self.daemon.await_ready(READY, || cri.version(VersionRequest::default()).ok());
    }

    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    pub fn socket(&self) -> PathBuf {
        self.place.folder().join("containerd.sock")
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// A pod of this node, on the pod network.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        self.place.pod(name)
    }

    /// The same on the host's network.
    pub fn host_pod(&self, name: &str) -> PodSandboxConfig {
        on_host_network(self.place.pod(name))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.daemon.runs() {
            let cri = self.cri.clone();
            // What stays is removed below by force.
            let _ = elsewhere(move || cri.remove_all_pods());
            let _ = elsewhere(|| self.daemon.terminate(ENDED));
        }
        self.daemon.kill9();
        let left = leftovers::remove(&self.place);
        for hierarchy in hierarchies() {
            // Another containerd may have pods there.
            let _ = fs_err::remove_dir(hierarchy.join(PODS_WITHOUT_PARENT));
        }
        assert!(left.is_empty() || thread::panicking(), "cannot be removed: {left:#?}");
    }
}

/// Writes where containerd finds `host`.
fn map(folder: &Path, host: &str, address: &str) {
    let hosts = format!(
        "server = \"http://{host}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    fs_err::write(folder.join("hosts.toml"), hosts).expect("own folder");
}

fn configuration(folder: &Path, runc: &Path, cni: &Path) -> String {
    let folder = folder.display();
    let (runc, cni) = (runc.display(), cni.display());
    let plugins = network::CNI_PLUGINS;
    format!(
        r#"version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{folder}/containerd.sock"

[ttrpc]
address = "{folder}/containerd.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{folder}/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{cni}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
"#
    )
}

/// containerd looks for its shim in PATH.
fn path_with_tools() -> OsString {
    let rest = env::var_os("PATH").unwrap_or_default();
    let all = [tools_path()].into_iter().chain(env::split_paths(&rest));
    env::join_paths(all).expect("the paths came from such a list")
}
