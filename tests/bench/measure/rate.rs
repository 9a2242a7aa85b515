//! Pods with one container each, brought up many at a time.

use harness::cri::{Pod, container_config};

use super::life::PROGRAM;
use super::{Mark, Row, Value, in_turns};
use crate::images::Images;
use crate::plan::Plan;
use crate::sample::{AT_ONCE, at_once};
use crate::subject::{Network, Subject};

pub(super) fn row(subjects: &[Subject], network: Network, images: &Images, plan: &Plan) -> Row {
    let place = match network {
        Network::Host => "host network",
        Network::Bridge => "bridge",
    };
    plan.progress(&format!("pods per second, {place}: {} x {}", plan.rounds, plan.burst));
    let rates = in_turns(subjects, plan.rounds, |_, subject| {
        let (time, pods) = at_once(plan.burst, |_| up(subject, network, images));
        at_once(pods.len(), |number| down(&pods[number]));
        count(plan.burst) / time.as_secs_f64()
    });
    let values = rates.iter().map(|rates| Value::middle(rates)).collect();
    let row = Row::new(format!("pods up, {AT_ONCE} at a time, {place}"), "per s", values);
    match network {
        Network::Host => row.marked(Mark::RatioAtLeast(1.5)),
        Network::Bridge => row,
    }
}

/// A pod that runs one container.
pub(super) fn up(subject: &Subject, network: Network, images: &Images) -> Pod {
    let pod = subject.cri().run_pod(subject.pod("many", network));
    pod.run(container_config("many", &images.busybox, &PROGRAM));
    pod
}

/// Ends it, its container with it.
pub(super) fn down(pod: &Pod) {
    pod.stop().expect("a pod is stopped");
    pod.remove().expect("a pod is removed");
}

pub(super) fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("nobody counts so far"))
}
