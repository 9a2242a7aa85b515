//! A pod's life with one container, RPC by RPC, one pod at a time.

use std::time::Duration;

use harness::cri::{Pod, container_config};

use super::{Mark, Row, Value, in_turns};
use crate::images::Images;
use crate::plan::Plan;
use crate::sample::{millis, timed};
use crate::subject::{Network, Subject};

/// Ends at SIGTERM, as programs do that were written to; says when it is ready for it.
pub(super) const PROGRAM: [&str; 3] =
    ["sh", "-c", r#"trap "exit 0" TERM; echo ready; sleep 1000000 & wait"#];

/// Long enough that no container is killed for being late.
const GRACE: Duration = Duration::from_secs(30);

const RPCS: [&str; 7] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// The first three bring a pod up.
const UP: usize = 3;

/// The milliseconds each of [`RPCS`] took.
type Life = [f64; RPCS.len()];

pub(super) fn rows(
    subjects: &[Subject],
    network: Network,
    images: &Images,
    plan: &Plan,
) -> Vec<Row> {
    let place = match network {
        Network::Host => "host network",
        Network::Bridge => "bridge",
    };
    plan.progress(&format!("a pod's life, {place}: {} each", plan.samples));
    // The first pod of a daemon pays for what the others find: caches, the bridge.
    in_turns(subjects, 1, |_, subject| live(subject, network, images));
    let lives = in_turns(subjects, plan.samples, |_, subject| live(subject, network, images));

    let row = |what: &str, value: &dyn Fn(&Life) -> f64| {
        let of = |lives: &Vec<Life>| Value::spread(&lives.iter().map(value).collect::<Vec<_>>());
        Row::new(format!("{what}, {place}"), "ms", lives.iter().map(of).collect())
    };
    let mut rows: Vec<_> =
        RPCS.iter().enumerate().map(|(at, rpc)| row(rpc, &|life| life[at])).collect();
    let down = row("the four together", &|life| life[UP..].iter().sum());
    let up = row("the three together", &|life| life[..UP].iter().sum());
    // The marks are the host network's: on the bridge most of the time is CNI's.
    let gated = network == Network::Host;
    rows.push(if gated { down.marked(Mark::RatioAtMost(0.5)) } else { down });
    rows.insert(UP, if gated { up.marked(Mark::RatioAtMost(0.45)) } else { up });
    rows
}

fn live(subject: &Subject, network: Network, images: &Images) -> Life {
    let config = subject.pod("life", network);
    let program = container_config("life", &images.busybox, &PROGRAM);
    let (run, pod) = timed(|| subject.cri().run_pod(config));
    let (create, container) = timed(|| pod.create(program).expect("a container is created"));
    let (start, started) = timed(|| container.start());
    started.expect("a container is started");

    container.await_log("ready", GRACE);
    let (stop, stopped) = timed(|| container.stop(GRACE));
    stopped.expect("a container is stopped");
    let (remove, removed) = timed(|| container.remove());
    removed.expect("a container is removed");
    let (stop_pod, remove_pod) = end(&pod);
    [run, create, start, stop, remove, stop_pod, remove_pod].map(millis)
}

fn end(pod: &Pod) -> (Duration, Duration) {
    let (stop, stopped) = timed(|| pod.stop());
    stopped.expect("a pod is stopped");
    let (remove, removed) = timed(|| pod.remove());
    removed.expect("a pod is removed");
    (stop, remove)
}
