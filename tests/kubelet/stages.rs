//! The order of things: single pods, then restarts, then what takes long, then the end.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use cria_proto::{ListContainersRequest, ListPodSandboxRequest};
use harness::leftovers::await_none;
use harness::wait::within;

use crate::cases::streams::{CROWDED, crowded};
use crate::cases::{self, Case, is_wanted, standing};
use crate::process::Kubelet;
use crate::report::Report;
use crate::restarts::Before;
use crate::runtime::Runtime;
use crate::site::{LIMIT, Site, read};
use crate::{cgroup, restarts};

const KILLED: &str = "kill -9 of the runtime under load: no container notices";
const UNSEEN: &str = "a container that ends meanwhile: its true exit code";
const RESTARTED: &str = "restart of the kubelet: no container notices";
const LASTING: &str = "minutes after all restarts: every container as it was before";
const GONE: &str = "all pods go with their manifests, and leave nothing";
const NODE_CLEAN: &str = "nothing of the pods is left on the node";

pub(crate) struct Stages<'a> {
    pub(crate) site: &'a Site,
    pub(crate) report: &'a Report,
    // Dropped in this order: the kubelet would bring back the pods that go with the runtime.
    pub(crate) kubelet: Kubelet,
    pub(crate) runtime: Runtime,
}

impl Stages<'_> {
    pub(crate) fn run(mut self) {
        let (site, report) = (self.site, self.report);
        standing::apply(site).expect("the temporary folder is writable");
        self.side_by_side(&cases::single_pods());

        if is_wanted(CROWDED) {
            report.row(CROWDED, || crowded(site));
        }
        standing::release_image(site).unwrap_or_else(|error| println!("{error:#}"));
        let before = Before::look(site);
        if is_wanted(KILLED) {
            report.row(KILLED, || restarts::kill_runtime(site, &mut self.runtime));
        }
        if is_wanted(UNSEEN) {
            // The codes of others are lost with them.
            match site.is_cria {
                true => report.row(UNSEEN, || restarts::exit_unseen(site, &mut self.runtime)),
                false => report.not_asked(UNSEEN),
            }
        }
        let at_length = cases::at_length();
        if is_wanted(RESTARTED) || at_length.iter().any(Case::is_wanted) {
            report.row(RESTARTED, || restarts::restart_kubelet(site, &mut self.kubelet));
        }
        self.side_by_side(&at_length);

        if is_wanted(LASTING) {
            report.row(LASTING, || before?.but(site, &standing::ENDED)?.await_same(site));
        }
        report.row(GONE, || all_gone(site));
        self.kubelet.stop();
        if let Runtime::Cria(node) = &mut self.runtime {
            report.row(NODE_CLEAN, || {
                // The kubelet binds its own root to itself, which is not the pods'.
                let own = format!("mount {}", site.files.root().display());
                let left = await_none(LIMIT, || {
                    node.leftovers().into_iter().filter(|line| *line != own).collect()
                });
                ensure!(left.is_empty(), "{left:#?}");
                Ok(())
            });
        } else {
            report.not_asked(NODE_CLEAN);
        }
    }

    fn side_by_side(&self, cases: &[Case]) {
        thread::scope(|scope| {
            for case in cases.iter().filter(|case| case.is_wanted()) {
                scope.spawn(|| self.try_one(case));
            }
        });
    }

    fn try_one(&self, case: &Case) {
        if case.cria_only && !self.site.is_cria {
            return self.report.not_asked(case.name);
        }
        self.report.row(case.name, || (case.check)(self.site));
    }
}

/// Takes all manifests away and waits until the kubelet and the runtime have nothing of them.
fn all_gone(site: &Site) -> Result<()> {
    for manifest in fs_err::read_dir(site.files.manifests())?.flatten() {
        fs_err::remove_file(manifest.path())?;
    }
    let mut left = vec![];
    // The kubelet removes sandboxes and logs once a minute.
    let gone = within(2 * LIMIT, || {
        left = what_is_left(site).unwrap_or_else(|error| vec![format!("{error:#}")]);
        left.is_empty().then_some(())
    });
    gone.with_context(|| format!("{left:#?}"))
}

fn what_is_left(site: &Site) -> Result<Vec<String>> {
    let sandboxes = site.cri.list_pod_sandbox(ListPodSandboxRequest::default())?.items;
    let containers = site.cri.list_containers(ListContainersRequest::default())?.containers;
    let name = |name: Option<String>| name.unwrap_or_default();
    let mut left: Vec<_> = sandboxes
        .into_iter()
        .map(|pod| format!("sandbox of {}", name(pod.metadata.map(|metadata| metadata.name))))
        .collect();
    left.extend(containers.into_iter().map(|container| {
        format!("container {}", name(container.metadata.map(|metadata| metadata.name)))
    }));
    let pods = site.files.root().join("pods");
    left.extend(entries(&pods).chain(entries(&site.files.pod_logs())).map(show));
    left.extend(cgroup::of_pods(site).into_iter().map(show));
    let table = read("/proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mounts = mounts.filter(|point| Path::new(point).starts_with(&pods));
    left.extend(mounts.map(|point| format!("mount {point}")));
    Ok(left)
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path())
}

#[expect(clippy::needless_pass_by_value, reason = "it ends an iterator's chain")]
fn show(path: PathBuf) -> String {
    path.display().to_string()
}
