//! A real kubelet runs its pods on a fresh cria, and says of each what users know from it.
//!
//! One node, one registry, some 75 static pods. The kubelet runs with its default gates until
//! every check of a single pod is done; then cria is killed and restarted under load, and the
//! kubelet starts anew with its statistics from the CRI alone. At the end the pods are taken away,
//! and nothing of them may stay.
//!
//! `CRIA_KUBELET_PEER=containerd` runs the same on containerd, `installed` on the node's own cria with
//! the systemd driver; `CRIA_KUBELET_ONLY=word,word` tries
//! only the rows whose name holds one of the words.

#![expect(clippy::print_stdout, reason = "the table of what was tried is this test's output")]

#[path = "kubelet/cases.rs"]
mod cases;
#[path = "kubelet/cgroup.rs"]
mod cgroup;
#[path = "kubelet/images.rs"]
mod images;
#[path = "kubelet/installed.rs"]
mod installed;
#[path = "kubelet/process.rs"]
mod process;
#[path = "kubelet/report.rs"]
mod report;
#[path = "kubelet/restarts.rs"]
mod restarts;
#[path = "kubelet/runtime.rs"]
mod runtime;
#[path = "kubelet/site.rs"]
mod site;
#[path = "kubelet/stages.rs"]
mod stages;

use std::sync::mpsc;
use std::thread;

use harness::Registry;

use crate::images::{Images, Registries};
use crate::process::{Files, Kubelet, Stats};
use crate::report::Report;
use crate::runtime::Runtime;
use crate::site::Site;
use crate::stages::Stages;

#[test]
fn a_kubelet_runs_its_pods() {
    let registries = Registries { open: Registry::start(), private: Registry::start_private() };
    let images = Images::push(&registries);
    let runtime = Runtime::start(&registries.open, &registries.private);

    let place = runtime.place();
    let files = Files::new(&place.make("kubelet"));
    let credentials = images::node_credentials(&registries.private).to_string();
    fs_err::write(files.root().join("config.json"), credentials).expect("own folder");
    let (cgroup, driver) = runtime.cgroup();
    cgroup::make(&cgroup);
    let mut kubelet = Kubelet::new(files.clone(), &runtime.socket(), &cgroup, driver);
    let site = Site::new(
        runtime.cri().clone(),
        kubelet.api().clone(),
        files,
        (images, registries),
        (cgroup, place.subnet()),
        place.make("scratch"),
        kubelet.log_file(),
        runtime.is_cria(),
    );
    kubelet.start(Stats::Default);

    let report = Report::new();
    thread::scope(|scope| {
        // Both ends are dropped with this closure, also when it panics.
        let (_watch, stop_watching) = mpsc::channel();
        let (_beat, stop_beating) = mpsc::channel();
        let (site, report) = (&site, &report);
        scope.spawn(move || site.watch(&stop_watching));
        scope.spawn(move || report.beat(&stop_beating));
        Stages { site, report, kubelet, runtime }.run();
    });
    let failed = report.finish();
    // What the registries have to say of requests that failed was asked for.
    drop(site);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
