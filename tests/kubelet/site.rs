//! What a check works with: pods put into the kubelet's folder, and what the kubelet says of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cria_proto::{
    ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};
use harness::Cri;
use harness::wait::is_over;
use serde_json::{Value, json};

use crate::images::{Images, Registries};
use crate::process::{Api, Files, NODE_NAME};

/// How long anything may take that a node does in a second or ten. Generous, for it is only waited
/// out when the check fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(150);
/// Between two looks at the clock while nothing is heard.
const LOOK: Duration = Duration::from_secs(1);

/// How often the kubelet is asked for its pods.
const PERIOD: Duration = Duration::from_millis(200);

pub(crate) struct Site {
    pub(crate) cri: Cri,
    pub(crate) api: Api,
    pub(crate) files: Files,
    pub(crate) images: Images,
    /// Where the images come from.
    pub(crate) registries: Registries,
    /// Under which the kubelet's `kubepods` is, as a path from the root of each hierarchy.
    pub(crate) cgroup: String,
    /// How the pods' addresses begin.
    pub(crate) subnet: String,
    /// A folder of the host, for host path volumes.
    pub(crate) scratch: PathBuf,
    pub(crate) kubelet_log: PathBuf,
    pub(crate) is_cria: bool,
    seen: Mutex<Seen>,
    news: Condvar,
}

/// What the kubelet has said of its pods.
#[derive(Default)]
pub(crate) struct Seen {
    /// The pods as they are now, by the names of their manifests.
    now: HashMap<String, Value>,
    /// Every reason that a container of a pod was ever waiting for.
    reasons: BTreeSet<(String, String)>,
}

impl Site {
    #[expect(clippy::too_many_arguments, reason = "called once")]
    pub(crate) fn new(
        cri: Cri,
        api: Api,
        files: Files,
        (images, registries): (Images, Registries),
        (cgroup, subnet): (String, String),
        scratch: PathBuf,
        kubelet_log: PathBuf,
        is_cria: bool,
    ) -> Self {
        let (seen, news) = (Mutex::default(), Condvar::new());
        Self {
            cri,
            api,
            files,
            images,
            registries,
            cgroup,
            subnet,
            scratch,
            kubelet_log,
            is_cria,
            seen,
            news,
        }
    }

    /// Asks the kubelet for its pods again and again, until the other end of `stop` is dropped.
    pub(crate) fn watch(&self, stop: &Receiver<()>) {
        while stop.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            // While it restarts it does not answer.
            let Ok(pods) = self.api.pods() else { continue };
            let mut seen = self.seen();
            seen.note(pods);
            drop(seen);
            self.news.notify_all();
        }
    }

    /// A container of the small image that runs `script` in a shell.
    pub(crate) fn sh(&self, name: &str, script: &str) -> Value {
        json!({
            "name": name,
            "image": self.images.busybox,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
        })
    }

    /// Puts a pod into the kubelet's folder. What `spec` does not say is as short as it can be.
    pub(crate) fn apply(&self, name: &str, spec: Value) {
        self.apply_with(name, json!({}), spec);
    }

    /// The same with more metadata.
    pub(crate) fn apply_with(&self, name: &str, metadata: Value, spec: Value) {
        let defaults = json!({
            "terminationGracePeriodSeconds": 1,
            "enableServiceLinks": false,
            "automountServiceAccountToken": false,
        });
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": with(json!({ "name": name, "labels": { "test": name } }), metadata),
            "spec": with(defaults, spec),
        });
        // The kubelet passes over names that begin with a dot, and sees a rename at once.
        let aside = self.files.manifests().join(format!(".{name}"));
        fs_err::write(&aside, manifest.to_string()).expect("own folder");
        fs_err::rename(&aside, self.manifest(name)).expect("own folder");
    }

    /// Takes the manifest away; the kubelet then ends the pod.
    pub(crate) fn remove(&self, name: &str) {
        // The pod may never have been there.
        let _ = fs_err::remove_file(self.manifest(name));
    }

    /// Waits until nothing of the pod runs. The kubelet no longer lists it by then, so the runtime
    /// is asked.
    pub(crate) fn await_gone(&self, pod: &Value) -> Result<()> {
        let uid = uid(pod);
        let gone = harness::wait::within(LIMIT, || self.runs_nothing(&uid).ok()?.then_some(()));
        gone.with_context(|| format!("{} still runs", pod["metadata"]["name"]))
    }

    /// Whether no container of the pod runs and its sandbox is not ready, or gone.
    fn runs_nothing(&self, uid: &str) -> Result<bool> {
        let labels = BTreeMap::from([("io.kubernetes.pod.uid".to_owned(), uid.to_owned())]);
        let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter {
            state: Some(state),
            label_selector: labels.clone(),
            ..Default::default()
        };
        let containers =
            self.cri.list_containers(ListContainersRequest { filter: Some(filter) })?.containers;
        let state = PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() };
        let filter =
            PodSandboxFilter { state: Some(state), label_selector: labels, ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let sandboxes = self.cri.list_pod_sandbox(request)?.items;
        Ok(containers.is_empty() && sandboxes.is_empty())
    }

    /// Forgets what the kubelet has said so far: only what it says from now on counts.
    pub(crate) fn forget(&self) {
        self.seen().now.clear();
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.seen().now.keys().cloned().collect()
    }

    /// The pod as it is now.
    pub(crate) fn now(&self, name: &str) -> Value {
        self.seen().now.get(name).cloned().unwrap_or_default()
    }

    /// Waits until `state` says something of the pod; `what` is said if it never does.
    pub(crate) fn pod<T>(
        &self,
        name: &str,
        what: &str,
        state: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        let found = self.when(LIMIT, |seen| seen.now.get(name).and_then(&state));
        found.with_context(|| {
            let pod = self.now(name);
            format!("{name}: never {what}; its status at the end: {:#}", pod["status"])
        })
    }

    /// Waits until every container of the pod is ready.
    pub(crate) fn ready(&self, name: &str) -> Result<Value> {
        self.pod(name, "ready", |pod| is_ready(pod).then(|| pod.clone()))
    }

    /// Waits for the pod's last phase: Succeeded or Failed.
    pub(crate) fn ended(&self, name: &str, phase: &str) -> Result<Value> {
        self.pod(name, phase, |pod| (pod["status"]["phase"] == phase).then(|| pod.clone()))
    }

    /// Waits until a container was waiting for `reason`, however short.
    pub(crate) fn waited_for(&self, name: &str, reason: &str) -> Result<()> {
        let wanted = (name.to_owned(), reason.to_owned());
        let found = self.when(LIMIT, |seen| seen.reasons.contains(&wanted).then_some(()));
        found.with_context(|| {
            let seen = self.seen();
            let reasons: Vec<_> = seen.reasons.iter().filter(|(pod, _)| pod == name).collect();
            let status = &seen.now.get(name).cloned().unwrap_or_default()["status"];
            format!("{name}: never waiting for {reason}, but for {reasons:?}; {status:#}")
        })
    }

    /// What a container has written, through the kubelet.
    pub(crate) fn log(&self, name: &str, container: &str) -> Result<String> {
        self.log_with(name, container, "")
    }

    /// The same with a query such as `tailLines=3`.
    pub(crate) fn log_with(&self, name: &str, container: &str, query: &str) -> Result<String> {
        self.api.text(&format!("/containerLogs/default/{name}-{NODE_NAME}/{container}?{query}"))
    }

    /// Waits until the container has written `text`, and returns all that it wrote.
    pub(crate) fn await_log(&self, name: &str, container: &str, text: &str) -> Result<String> {
        let mut log = String::new();
        let found = harness::wait::within(LIMIT, || {
            // Until the container runs there is no log.
            log = self.log(name, container).unwrap_or_else(|error| format!("{error:#}"));
            log.contains(text).then_some(())
        });
        found.with_context(|| format!("{name}/{container} never wrote {text:?}, only:\n{log}"))?;
        Ok(log)
    }

    /// Waits until the container has written the line `end`, and compares all that it wrote up to
    /// there with `lines`.
    pub(crate) fn expect_log(&self, name: &str, container: &str, lines: &[&str]) -> Result<()> {
        let log = self.await_log(name, container, "end\n")?;
        let log = log.split("end\n").next().unwrap_or("");
        let wanted = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        ensure!(log == wanted, "{name}/{container} wrote:\n{log}instead of:\n{wanted}");
        Ok(())
    }

    /// Runs `command`, words between single spaces, in a container through the kubelet.
    pub(crate) fn exec(&self, name: &str, container: &str, command: &str) -> Result<String> {
        self.api.run(&format!("{name}-{NODE_NAME}"), container, command)
    }

    /// Where the kubelet has the logs of a container.
    pub(crate) fn log_folder(&self, pod: &Value, container: &str) -> PathBuf {
        let (name, uid) = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]));
        self.files.pod_logs().join(format!("default_{name}_{uid}")).join(container)
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.files.manifests().join(format!("{name}.json"))
    }

    fn when<T>(&self, limit: Duration, state: impl Fn(&Seen) -> Option<T>) -> Result<T> {
        let begun = Instant::now();
        let mut seen = self.seen();
        loop {
            if let Some(value) = state(&seen) {
                return Ok(value);
            }
            if is_over(limit, begun) {
                bail!("not within {limit:?}");
            }
            let woken = self.news.wait_timeout(seen, LOOK);
            seen = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn note(&mut self, pods: Vec<Value>) {
        self.now.clear();
        for pod in pods {
            let name = text(&pod["metadata"]["name"]);
            let name = name.strip_suffix(&format!("-{NODE_NAME}")).unwrap_or(&name).to_owned();
            let reasons = statuses(&pod).map(|status| text(&status["state"]["waiting"]["reason"]));
            let reasons = reasons.filter(|reason| !reason.is_empty());
            self.reasons.extend(reasons.map(|reason| (name.clone(), reason)));
            self.now.insert(name, pod);
        }
    }
}

/// `base` with the entries of `more`.
pub(crate) fn with(mut base: Value, more: Value) -> Value {
    let entries = more.as_object().expect("an object is added").clone();
    base.as_object_mut().expect("to an object").extend(entries);
    base
}

/// The statuses of all containers of a pod, init containers first.
pub(crate) fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["initContainerStatuses", "containerStatuses"];
    lists.into_iter().filter_map(|list| pod["status"][list].as_array()).flatten()
}

/// The status of one container; null if there is none yet.
pub(crate) fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    statuses(pod).find(|status| status["name"] == container).unwrap_or(&Value::Null)
}

/// How the container ended, if it has.
pub(crate) fn terminated<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let ended = &status(pod, container)["state"]["terminated"];
    ended.is_object().then_some(ended)
}

pub(crate) fn restarts(pod: &Value, container: &str) -> u64 {
    status(pod, container)["restartCount"].as_u64().unwrap_or(0)
}

/// The container's id, without the name of the runtime.
pub(crate) fn container_id(status: &Value) -> String {
    let id = text(&status["containerID"]);
    id.rsplit("//").next().unwrap_or("").to_owned()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

pub(crate) fn uid(pod: &Value) -> String {
    text(&pod["metadata"]["uid"])
}

pub(crate) fn ip(pod: &Value) -> String {
    text(&pod["status"]["podIP"])
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The content of a file; the error names it.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    Ok(fs_err::read_to_string(path.as_ref())?)
}
