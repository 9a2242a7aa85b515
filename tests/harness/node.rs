//! A node with a real cria on it: its own folders, socket, bridge, cgroup; removed to the last
//! trace when it is dropped.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use cria_proto::{PodSandboxConfig, VersionRequest};
use nix::mount::{MsFlags, mount};

use crate::blocking::elsewhere;
use crate::cri::{Cri, Pod, on_host_network};
use crate::daemon::Daemon;
use crate::place::Place;
use crate::registry::Registry;
use crate::tools::binary;
use crate::wait::within;
use crate::{leftovers, network, scripts};

const READY: Duration = Duration::from_secs(20);
const ENDED: Duration = Duration::from_secs(30);

/// What the image store keeps when all pods are gone.
const IMAGES: [&str; 2] = ["images", "layers"];

/// The policy for images in the node's folder.
const POLICY: &str = "policy.json";

/// The scripted OCI runtime in the node's folder.
const OCI_RUNTIME: &str = "oci-runtime";

pub struct Node {
    daemon: Daemon,
    cri: Cri,
    setup: Setup,
    /// What lies in the daemon's folders when no pod does.
    own_files: BTreeSet<PathBuf>,
    place: Place,
}

/// How a node is to be started.
#[derive(Default)]
pub struct Setup {
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    config: String,
    registries: String,
    /// Files of trust by their place in the node's folder.
    trust: Vec<(&'static str, String)>,
    /// cria's `--log-level`; debug unless given.
    log_level: Option<&'static str>,
    oci_runtime: Option<String>,
    monitor: Option<PathBuf>,
    root_size: Option<&'static str>,
    own_hierarchy: Option<&'static str>,
    shell: Option<&'static str>,
}

impl Node {
    /// A node that knows `registry`, by its address.
    #[track_caller]
    pub fn start(registry: &Registry) -> Self {
        Self::setup().registry(registry).start()
    }

    pub fn setup() -> Setup {
        Setup::default()
    }

    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    pub fn socket(&self) -> PathBuf {
        self.place.folder().join("cria.sock")
    }

    /// cria's `--root`.
    pub fn root(&self) -> PathBuf {
        self.place.folder().join("root")
    }

    /// cria's `--run-dir`.
    pub fn run_dir(&self) -> PathBuf {
        self.place.folder().join("run")
    }

    pub fn netns_dir(&self) -> PathBuf {
        self.place.folder().join("netns")
    }

    pub fn cni_conf_dir(&self) -> PathBuf {
        self.place.folder().join("cni")
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The root directory with the mounts that the daemon sees.
    pub fn view(&self) -> PathBuf {
        format!("/proc/{}/root", self.pid()).into()
    }

    /// What the daemon has said, over all its starts.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// A pod of this node, on the pod network: its logs and its cgroup are the node's.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        self.place.pod(name)
    }

    /// The same on the host's network.
    pub fn host_pod(&self, name: &str) -> PodSandboxConfig {
        on_host_network(self.place.pod(name))
    }

    #[track_caller]
    pub fn run_pod(&self, config: PodSandboxConfig) -> Pod {
        self.cri.run_pod(config)
    }

    /// Kills the daemon as a crash would; nothing answers until [`Node::resume`].
    #[track_caller]
    pub fn kill9(&mut self) {
        self.daemon.kill9();
    }

    /// Ends the daemon as systemd would.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.daemon.terminate(ENDED)
    }

    /// Starts the daemon again and waits until it answers.
    #[track_caller]
    pub fn resume(&mut self) {
        self.begin();
        self.await_ready();
    }

    /// Starts the daemon and does not wait.
    #[track_caller]
    pub fn begin(&mut self) {
        let mut command = self.command();
        self.daemon.start(&mut command);
    }

    #[track_caller]
    pub fn await_ready(&mut self) {
        let cri = &self.cri;
        self.daemon.await_ready(READY, || cri.version(VersionRequest::default()).ok());
    }

    /// Ends the daemon as systemd would, and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.terminate();
        self.resume();
    }

    /// What is on the machine of this node beyond the daemon itself: processes, mounts, cgroups,
    /// addresses, interfaces, rules, files. Empty once every pod is removed. The cgroup that a
    /// pod was given as its parent is the kubelet's, and does not count.
    pub fn leftovers(&mut self) -> Vec<String> {
        let daemon = self.daemon.runs().then(|| self.daemon.pid());
        let own = [self.run_dir(), self.netns_dir(), self.root()];
        let mut found = leftovers::list(&self.place, daemon, &own);
        let files = self.files();
        found.extend(
            files.difference(&self.own_files).map(|path| format!("file {}", path.display())),
        );
        found
    }

    /// Panics if [`Node::leftovers`] are not gone within `limit`.
    #[track_caller]
    pub fn assert_nothing_left(&mut self, limit: Duration) {
        let left = leftovers::await_none(limit, || self.leftovers());
        assert!(left.is_empty(), "left on the node: {left:#?}");
    }

    /// Panics if there are [`Node::leftovers`]. Only for images that are out of sight, which go in the
    /// background, it waits.
    #[track_caller]
    pub fn assert_clean(&mut self) {
        let going = self.root().join("incoming");
        within(ENDED, || going.read_dir().into_iter().flatten().next().is_none().then_some(()));
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    /// Replaces the pod network by one plugin, a script: see [`scripts::cni_plugin`].
    pub fn cni_script(&self, body: &str) {
        let plugin = self.place.folder().join("cni-bin/scripted");
        scripts::write(&plugin, &scripts::cni_plugin(self.place.folder(), body));
        // The first file by name is the pod network.
        let list =
            r#"{"cniVersion": "1.0.0", "name": "scripted", "plugins": [{"type": "scripted"}]}"#;
        fs_err::write(self.cni_conf_dir().join("05-scripted.conflist"), list).expect("own folder");
    }

    /// The calls of the scripted plugin so far: command and sandbox.
    pub fn cni_calls(&self) -> Vec<String> {
        let calls = fs_err::read_to_string(self.place.folder().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Replaces the policy for images, of one namespace or of the node, as configuration is: written
    /// aside, and renamed.
    pub fn replace_policy(&self, namespace: Option<&str>, text: &str) {
        let folder = self.place.folder();
        let path = match namespace {
            Some(namespace) => folder.join(format!("policies/{namespace}.json")),
            None => folder.join(POLICY),
        };
        fs_err::write(folder.join("aside"), text).expect("own folder");
        fs_err::rename(folder.join("aside"), path).expect("own folder");
    }

    /// Makes an empty file in the node's folder: what scripts wait for or look at.
    pub fn flag(&self, name: &str) -> PathBuf {
        let path = self.place.folder().join(name);
        fs_err::write(&path, "").expect("own folder");
        path
    }

    pub fn has_flag(&self, name: &str) -> bool {
        self.place.folder().join(name).exists()
    }

    /// The command that starts this node's daemon, for tests that look at a start that fails.
    pub fn command(&self) -> Command {
        let folder = self.place.folder();
        let program = binary("cria");
        let mut command = match (self.setup.own_hierarchy, self.setup.shell) {
            (Some(controller), _) => self.place.command_with_hierarchy(controller, &program),
            (None, None) => self.place.command_in_cgroup(&program),
            (None, Some(shell)) => {
                let mut command = self.place.command_in_cgroup(Path::new("sh"));
                command.args(["-euc", &format!("{shell}\nexec \"$@\""), "sh"]).arg(program);
                command
            }
        };
        let monitor = self.setup.monitor.clone().unwrap_or_else(|| binary("cria-monitor"));
        command
            .args(["--config".as_ref(), folder.join("cria.toml").as_os_str()])
            .args(["--config-dir".as_ref(), folder.join("cria.toml.d").as_os_str()])
            .args(["--root".as_ref(), self.root().as_os_str()])
            .args(["--run-dir".as_ref(), self.run_dir().as_os_str()])
            .args(["--listen".as_ref(), self.socket().as_os_str()])
            .args(["--registries-conf".as_ref(), folder.join("registries.conf").as_os_str()])
            .args(["--netns-dir".as_ref(), self.netns_dir().as_os_str()])
            .args(["--cni-conf-dir".as_ref(), self.cni_conf_dir().as_os_str()])
            .args(["--cni-bin-dir".as_ref(), folder.join("cni-bin").as_os_str()])
            .args(["--cni-bin-dir", network::CNI_PLUGINS])
            .args(["--monitor".as_ref(), monitor.as_os_str()])
            .args(["--log-level", self.setup.log_level.unwrap_or("debug")])
            .args(&self.setup.arguments)
            .envs(self.setup.variables.iter().map(|(name, value)| (name, value)));
        if self.setup.oci_runtime.is_some() {
            command.args(["--oci-runtime".as_ref(), folder.join(OCI_RUNTIME).as_os_str()]);
        }
        command
    }

    /// The files and folders of the daemon, down to those of one object.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for folder in [self.root(), self.run_dir(), self.netns_dir()] {
            collect(&folder, 3, &mut found);
        }
        found.retain(|path| !IMAGES.iter().any(|name| path.starts_with(self.root().join(name))));
        found
    }
}

impl Setup {
    /// Images named `address/...` come from `registry`, over plain HTTP.
    #[must_use]
    pub fn registry(self, registry: &Registry) -> Self {
        self.mapped(registry.address(), registry)
    }

    /// Images named `prefix/...` come from `registry` under the same repository.
    #[must_use]
    pub fn mapped(mut self, prefix: &str, registry: &Registry) -> Self {
        let location = registry.address();
        self.registries += &format!(
            "[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{location}\"\ninsecure = true\n\n"
        );
        self
    }

    /// More of registries.conf, as it is.
    #[must_use]
    pub fn registries(mut self, text: &str) -> Self {
        self.registries += text;
        self
    }

    /// The policy for images; without it there is none.
    #[must_use]
    pub fn policy(mut self, text: &str) -> Self {
        self.trust.push((POLICY, text.to_owned()));
        self
    }

    /// Where signatures are.
    #[must_use]
    pub fn signatures(mut self, text: &str) -> Self {
        self.trust.push(("registries.d/tests.yaml", text.to_owned()));
        self
    }

    /// The OCI runtime is a script: see [`scripts::oci_runtime`].
    #[must_use]
    pub fn oci_runtime(mut self, body: &str) -> Self {
        self.oci_runtime = Some(body.to_owned());
        self
    }

    /// The monitor is a program of the test's own.
    #[must_use]
    pub fn monitor(mut self, program: &Path) -> Self {
        self.monitor = Some(program.to_owned());
        self
    }

    /// cria's `--root` is a file system of this size and no more.
    #[must_use]
    pub fn root_size(mut self, size: &'static str) -> Self {
        self.root_size = Some(size);
        self
    }

    /// The daemon has the cgroup v1 hierarchy of this controller mounted, which the machine has
    /// not; on cgroup v2 it is there anyway. See [`Node::view`].
    #[must_use]
    pub fn own_hierarchy(mut self, controller: &'static str) -> Self {
        let cgroup2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        self.own_hierarchy = (!cgroup2).then_some(controller);
        self
    }

    /// What the daemon logs, where the log's own cost matters.
    #[must_use]
    pub fn log_level(mut self, level: &'static str) -> Self {
        self.log_level = Some(level);
        self
    }

    /// What a shell does before it becomes the daemon, whose command line is `$@`.
    #[must_use]
    pub fn shell(mut self, script: &'static str) -> Self {
        self.shell = Some(script);
        self
    }

    /// More of the command line.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The configuration file; empty if not called.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config = text.to_owned();
        self
    }

    /// Makes the node and starts its daemon.
    #[track_caller]
    pub fn start(self) -> Node {
        let mut node = self.prepare();
        node.resume();
        node.own_files = node.files();
        node
    }

    /// Makes the node and does not start its daemon.
    pub fn prepare(self) -> Node {
        let place = Place::take();
        let folder = place.folder();
        for name in
            ["root", "run", "netns", "logs", "cria.toml.d", "cni-bin", "policies", "registries.d"]
        {
            place.make(name);
        }
        network::configure(&place);
        if let Some(body) = &self.oci_runtime {
            scripts::write(&folder.join(OCI_RUNTIME), &scripts::oci_runtime(folder, body));
        }
        // As a node has /run: nothing on it can be executed, nor be a device.
        mount_tmpfs(&folder.join("run"), MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "mode=755");
        if let Some(size) = self.root_size {
            let options = format!("size={size},mode=755");
            mount_tmpfs(&folder.join("root"), MsFlags::empty(), &options);
        }
        fs_err::write(folder.join("cria.toml"), &self.config).expect("own folder");
        fs_err::write(folder.join("registries.conf"), &self.registries).expect("own folder");
        // What the machine itself trusts is nothing to the tests.
        let trust = format!(
            "[images]\npolicy-file = \"{0}/{POLICY}\"\n\
             namespace-policies-dir = \"{0}/policies\"\nregistries-d = \"{0}/registries.d\"\n",
            folder.display()
        );
        fs_err::write(folder.join("cria.toml.d/00-trust.toml"), trust).expect("own folder");
        for (path, text) in &self.trust {
            fs_err::write(folder.join(path), text).expect("own folder");
        }
        Node {
            daemon: Daemon::new("cria", folder.join("cria.log")),
            cri: Cri::connect(&folder.join("cria.sock")),
            setup: self,
            own_files: BTreeSet::new(),
            place,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.daemon.runs() {
            let cri = self.cri.clone();
            if let Some(Err(status)) = elsewhere(move || cri.remove_all_pods()) {
                eprintln!("cria does not list its pods: {status}");
            }
            // If it does not end by itself, it is killed with all the rest.
            let _ = elsewhere(|| self.daemon.terminate(ENDED));
        }
        self.daemon.kill9();
        let left = leftovers::remove(&self.place);
        if let Some(controller) = self.setup.own_hierarchy {
            self.place.clear_hierarchy(controller);
        }
        assert!(left.is_empty() || thread::panicking(), "cannot be removed: {left:#?}");
    }
}

/// The monitors of the containers at `place`.
pub fn monitors(place: &Place) -> Vec<u32> {
    leftovers::processes_of(place, "cria-monitor")
}

/// The files in `folder` whose path names `id`.
pub fn files_named_after(folder: &Path, id: &str) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    collect(folder, 3, &mut found);
    found.retain(|path| path.is_file() && path.to_string_lossy().contains(id));
    found.into_iter().collect()
}

fn mount_tmpfs(target: &Path, flags: MsFlags, options: &str) {
    let kind = Some("tmpfs");
    mount(kind, target, kind, flags, Some(options)).expect("tests run as root");
}

fn collect(folder: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth - 1, found);
        }
        found.insert(entry.path());
    }
}
