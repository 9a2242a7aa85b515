//! The runtime is killed and the kubelet restarted, under load, and no container notices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cria_proto::{ListPodSandboxRequest, PodSandbox};
use harness::wait::{after, within};
use serde_json::{Value, json};

use crate::cgroup;
use crate::process::{Kubelet, NODE_NAME, Stats};
use crate::runtime::Runtime;
use crate::site::{LIMIT, Site, container_id, restarts, statuses, terminated, text};

/// Restarts by what is tried with it, or says no reason to stay as it is.
const RESTLESS: [&str; 2] = ["failing-probe", "crash-loop"];

/// How long the runtime is let be between its deaths: different moments of what is under way.
const PAUSES: [u64; 5] = [300, 1700, 50, 900, 2500];

/// What may not change while a pod runs.
#[derive(Clone, Debug, PartialEq)]
struct Unchanged {
    id: String,
    restarts: u64,
    started: String,
    /// The first process of the container.
    init: Option<u32>,
}

/// Every container that runs and is to go on, by pod and name.
type Running = BTreeMap<(String, String), Unchanged>;

/// What runs now. Pods of the load are not of it.
fn running(site: &Site) -> Running {
    let names = site.names().into_iter();
    let names =
        names.filter(|name| !RESTLESS.contains(&name.as_str()) && !name.starts_with("load-"));
    names.flat_map(|name| containers(site, &name)).collect()
}

fn containers(site: &Site, name: &str) -> Vec<((String, String), Unchanged)> {
    let pod = site.now(name);
    let running = statuses(&pod).filter(|status| status["state"]["running"].is_object());
    running
        .map(|status| {
            let container = text(&status["name"]);
            let unchanged = Unchanged {
                id: container_id(status),
                restarts: restarts(&pod, &container),
                started: text(&status["state"]["running"]["startedAt"]),
                init: cgroup::init(site, &pod, &container),
            };
            ((name.to_owned(), container), unchanged)
        })
        .collect()
}

/// The ids of the sandboxes of the pods that run. Those of others go as the kubelet sees fit.
fn sandboxes(site: &Site, running: &Running) -> Result<BTreeSet<String>> {
    let names: BTreeSet<_> = running.keys().map(|(pod, _)| format!("{pod}-{NODE_NAME}")).collect();
    let pods = site.cri.list_pod_sandbox(ListPodSandboxRequest::default())?.items;
    let runs = |pod: &PodSandbox| {
        pod.metadata.as_ref().is_some_and(|metadata| names.contains(&metadata.name))
    };
    Ok(pods.into_iter().filter(runs).map(|pod| pod.id).collect())
}

/// What was there before the first restart.
pub(crate) struct Before {
    running: Running,
    sandboxes: BTreeSet<String>,
}

impl Before {
    pub(crate) fn look(site: &Site) -> Result<Self> {
        let running = running(site);
        ensure!(!running.is_empty(), "nothing runs");
        let sandboxes = sandboxes(site, &running)?;
        Ok(Self { running, sandboxes })
    }

    /// Without the pods that were ended since, as was intended.
    pub(crate) fn but(mut self, site: &Site, pods: &[&str]) -> Result<Self> {
        self.running.retain(|(pod, _), _| !pods.contains(&pod.as_str()));
        let left = sandboxes(site, &self.running)?;
        self.sandboxes.retain(|id| left.contains(id));
        Ok(self)
    }

    /// Waits until the kubelet says that all is as it was; what it said earlier does not count.
    pub(crate) fn await_same(&self, site: &Site) -> Result<()> {
        site.forget();
        await_unchanged(site, &self.running)?;
        // None is gone, and none was made for a pod that has one.
        let (old, now) = (&self.sandboxes, sandboxes(site, &self.running)?);
        ensure!(now == *old, "sandboxes {old:?} became {now:?}");
        Ok(())
    }
}

/// Waits until the kubelet sees all that ran before, as it was.
fn await_unchanged(site: &Site, before: &Running) -> Result<()> {
    let changed = |now: &Running| {
        let differs = |(key, old): &(&(String, String), &Unchanged)| now.get(*key) != Some(*old);
        let changed = before.iter().filter(differs);
        changed.map(|(key, old)| format!("{key:?}: {old:?} is {:?}", now.get(key))).collect()
    };
    let mut left: Vec<String> = vec![];
    let same = within(LIMIT, || {
        left = changed(&running(site));
        left.is_empty().then_some(())
    });
    same.with_context(|| format!("changed:\n{}", left.join("\n")))
}

/// Kills the runtime again and again while pods come and go.
pub(crate) fn kill_runtime(site: &Site, runtime: &mut Runtime) -> Result<()> {
    let before = Before::look(site)?;
    let done = AtomicBool::new(false);
    let load = thread::scope(|scope| {
        let load = scope.spawn(|| load(site, &done));
        for pause in PAUSES {
            after(Duration::from_millis(pause));
            runtime.kill9();
            runtime.resume();
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the load panicked")))
    });
    println!("    {} containers ran on, {} pods came and went", before.running.len(), load?);
    before.await_same(site)
}

/// Pods that come and go, four at once, until told to end; how many there were.
fn load(site: &Site, done: &AtomicBool) -> Result<u32> {
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        let names: Vec<_> = (count..count + 4).map(|number| format!("load-{number}")).collect();
        for name in &names {
            let spec = json!({
                "restartPolicy": "Never",
                "containers": [site.sh("main", "echo begins; sleep 0.3; echo ends; exit 5")],
            });
            site.apply(name, spec);
        }
        for name in &names {
            let pod = site.ended(name, "Failed")?;
            let end = terminated(&pod, "main").context("an ended pod's container has ended")?;
            // Others do not know the code of what ended while they were down.
            ensure!(end["exitCode"] == 5 || !site.is_cria, "{name}: {end}");
            let log = log_of_ended(site, name);
            ensure!(log == "begins\nends\n", "{name}: {log:?}, {pod}");
            site.remove(name);
        }
        count += 4;
    }
    Ok(count)
}

/// The kubelet asks the runtime where the log is, which may be dead at the moment.
fn log_of_ended(site: &Site, name: &str) -> String {
    let mut log = String::new();
    within(LIMIT, || {
        log = site.log(name, "main").unwrap_or_else(|error| format!("{error:#}"));
        (!log.contains("unable to retrieve container logs")).then_some(())
    });
    log
}

/// A container ends while nobody is there to see it.
pub(crate) fn exit_unseen(site: &Site, runtime: &mut Runtime) -> Result<()> {
    let pod = site.ready("leaver")?;
    let init = cgroup::init(site, &pod, "main").context("it runs")?;
    runtime.kill9();
    fs_err::write(site.scratch.join("standing/leave"), "")?;
    let process = PathBuf::from(format!("/proc/{init}"));
    let left = within(LIMIT, || is_over(&process).then_some(()));
    runtime.resume();
    left.context("it does not leave")?;
    let pod = site.ended("leaver", "Failed")?;
    let end: &Value = terminated(&pod, "main").context("it has ended")?;
    ensure!(end["exitCode"] == 42 && end["reason"] == "Error", "{end}");
    ensure!(site.log("leaver", "main")? == "leaves\n");
    Ok(())
}

/// Whether the process is gone, or only waits for somebody to take note.
fn is_over(process: &std::path::Path) -> bool {
    let stat = fs_err::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// A new kubelet takes over all that runs.
pub(crate) fn restart_kubelet(site: &Site, kubelet: &mut Kubelet) -> Result<()> {
    let before = Before::look(site)?;
    kubelet.stop();
    kubelet.start(Stats::FromCri);
    before.await_same(site)
}
