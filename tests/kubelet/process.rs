//! The kubelet as a process: its configuration, its start and restart, and its own HTTP API.

use std::fmt;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::blocking::block_on;
use harness::daemon::Daemon;
use harness::tools::tool;
use reqwest::Client;
use serde_json::{Value, json};

/// Static pods are called after themselves and their node.
pub(crate) const NODE_NAME: &str = "node";

const READY: Duration = Duration::from_secs(120);
const ENDED: Duration = Duration::from_secs(60);

/// Logs above this are rotated, at the next of the kubelet's looks at them.
const LOG_SIZE: &str = "64Ki";

/// Where the kubelet links logs for others to find, whatever it is told.
const LINKS: &str = "/var/log/containers";

/// What it makes beside its root, parents first.
const ELSEWHERE: [&str; 3] = [LINKS, "/var/lib/kubelet", "/var/lib/kubelet/device-plugins"];

/// Who provides the metrics of pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stats {
    /// The default: cAdvisor for the node, the CRI for containers.
    Default,
    /// `PodAndContainerStatsFromCRI`.
    FromCri,
}

pub(crate) struct Kubelet {
    daemon: Daemon,
    files: Files,
    port: u16,
    api: Api,
    /// Folders that were not there before, parents first.
    made: Vec<PathBuf>,
}

/// Where the kubelet finds and leaves what is its own, all under one folder.
#[derive(Clone)]
pub(crate) struct Files {
    folder: PathBuf,
}

/// The kubelet's HTTP API.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    address: String,
}

impl Files {
    pub(crate) fn new(folder: &Path) -> Self {
        let files = Self { folder: folder.to_owned() };
        for path in [files.root(), files.manifests(), files.pod_logs(), files.plugins()] {
            fs_err::create_dir_all(path).expect("own folder");
        }
        files
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    pub(crate) fn pod_logs(&self) -> PathBuf {
        self.folder.join("pods")
    }

    /// The kubelet's own certificate, with its authority's behind it.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("pki/kubelet.crt")
    }

    fn plugins(&self) -> PathBuf {
        self.folder.join("plugins")
    }
}

impl Kubelet {
    /// A kubelet that does not run yet, on the runtime behind `socket`. Its pods' cgroups are
    /// beneath `cgroup`, made by `driver`.
    pub(crate) fn new(files: Files, socket: &Path, cgroup: &str, driver: &str) -> Self {
        let port = free_port();
        let config = configuration(&files, socket, (cgroup, driver), port);
        fs_err::write(files.folder.join("config.yaml"), config.to_string()).expect("own folder");
        // The kubelet signs its certificate itself.
        let client = Client::builder().tls_danger_accept_invalid_certs(true).build();
        let client = client.expect("the client's settings are constant");
        let daemon = Daemon::new("kubelet", files.folder.join("kubelet.log"));
        let api = Api { client, address: format!("https://127.0.0.1:{port}") };
        let made = ELSEWHERE.iter().map(PathBuf::from).filter(|path| !path.exists()).collect();
        Self { daemon, files, port, api, made }
    }

    /// Starts it and waits until it serves.
    pub(crate) fn start(&mut self, stats: Stats) {
        let folder = &self.files.folder;
        let mut command = Command::new(tool("kubelet"));
        command
            .args(["--config".as_ref(), folder.join("config.yaml").as_os_str()])
            .args(["--root-dir".as_ref(), self.files.root().as_os_str()])
            .args(["--cert-dir".as_ref(), folder.join("pki").as_os_str()])
            .args(["--hostname-override", NODE_NAME])
            .args(["--feature-gates", stats.gates()])
            .arg("--v=3");
        self.daemon.start(&mut command);
        let api = self.api.clone();
        self.daemon.await_ready(READY, || api.text("/healthz").ok());
    }

    /// Ends it as systemd would: its pods go on.
    pub(crate) fn stop(&mut self) {
        self.daemon.terminate(ENDED);
    }

    fn remove_links(&self) {
        for link in Path::new(LINKS).read_dir().into_iter().flatten().flatten() {
            let target = link.path().read_link().unwrap_or_default();
            if target.starts_with(&self.files.folder) {
                // It goes by itself with a container that goes now.
                let _ = fs_err::remove_file(link.path());
            }
        }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.daemon.log_file().to_owned()
    }
}

impl fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubelet on port {}", self.port)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if self.daemon.runs() {
            self.daemon.kill9();
        }
        self.remove_links();
        for folder in self.made.iter().rev() {
            // It leaves its socket there when it ends.
            let _ = fs_err::remove_file(folder.join("kubelet.sock"));
            // Another kubelet on this machine may use it by now.
            let _ = fs_err::remove_dir(folder);
        }
    }
}

impl Api {
    /// The pods the kubelet has, with their statuses.
    pub(crate) fn pods(&self) -> Result<Vec<Value>> {
        let mut list = self.json("/pods")?;
        Ok(serde_json::from_value(list["items"].take()).unwrap_or_default())
    }

    /// Where it is: scheme, host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn json(&self, path: &str) -> Result<Value> {
        let text = self.text(path)?;
        serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
    }

    pub(crate) fn text(&self, path: &str) -> Result<String> {
        self.answer(path, self.client.get(format!("{}{path}", self.address)))
    }

    /// Runs `command` in a container, as ExecSync does; the answer is what it wrote.
    pub(crate) fn run(&self, pod: &str, container: &str, command: &str) -> Result<String> {
        let url = format!("{}/run/default/{pod}/{container}", self.address);
        // The kubelet splits it at its spaces.
        let url = reqwest::Url::parse_with_params(&url, [("cmd", command)])?;
        self.answer("/run", self.client.post(url))
    }

    fn answer(&self, what: &str, request: reqwest::RequestBuilder) -> Result<String> {
        let request = request.timeout(Duration::from_secs(60));
        let (status, text) = block_on(async {
            let answer = request.send().await?;
            anyhow::Ok((answer.status(), answer.text().await?))
        })?;
        ensure!(status.is_success(), "{what}: {status}: {text}");
        Ok(text)
    }
}

impl Stats {
    fn gates(self) -> &'static str {
        match self {
            Self::Default => "PodAndContainerStatsFromCRI=false",
            Self::FromCri => "PodAndContainerStatsFromCRI=true",
        }
    }
}

fn configuration(files: &Files, socket: &Path, (cgroup, driver): (&str, &str), port: u16) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "staticPodPath": files.manifests(),
        "podLogsDir": files.pod_logs(),
        "volumePluginDir": files.plugins(),
        "address": "127.0.0.1",
        "port": port,
        "healthzPort": 0,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": driver,
        "cgroupRoot": cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": false,
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%" },
        "syncFrequency": "10s",
        "fileCheckFrequency": "1s",
        "registryPullQPS": 0,
        "serializeImagePulls": false,
        "imageMinimumGCAge": "1s",
        "imageMaximumGCAge": "2m",
        "containerLogMaxSize": LOG_SIZE,
        // More than the test's run can make: no line may be dropped as too old.
        "containerLogMaxFiles": 10_000,
        "containerLogMonitorInterval": "3s",
        // A container that crashes is tried again every ten seconds.
        "crashLoopBackOff": { "maxContainerRestartPeriod": "10s" },
    })
}

/// A port that nobody listens on at the moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    listener.local_addr().expect("it is bound").port()
}
