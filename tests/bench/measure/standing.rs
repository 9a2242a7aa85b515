//! What is measured while many pods are up: exec, queries, memory, and the daemon's restart.

use std::time::{Duration, Instant};

use cria_proto::{
    ContainerFilter, ExecSyncRequest, ListContainerStatsRequest, ListContainersRequest,
    ListPodSandboxRequest,
};
use harness::Cri;
use harness::cri::Pod;
use harness::until;

use super::rate::{count, down, up};
use super::{Mark, Row, Value, in_turns};
use crate::arguments::Measurement;
use crate::images::Images;
use crate::plan::Plan;
use crate::sample::{AT_ONCE, at_once, millis, timed};
use crate::subject::{Network, Subject};

/// After how long a daemon that is not back is called broken.
pub(super) const BACK: Duration = Duration::from_secs(60);

/// Pods of one subject, and the container of each.
struct Standing {
    cri: Cri,
    pods: Vec<Pod>,
    containers: Vec<String>,
}

pub(super) fn rows(subjects: &mut [Subject], images: &Images, plan: &Plan) -> Vec<Row> {
    use Measurement::{Exec, Memory, Queries, Restart};
    if ![Exec, Queries, Memory, Restart].iter().any(|one| plan.asks_for(*one)) {
        return vec![];
    }
    plan.progress(&format!("bringing up {} pods each", plan.pods));
    let mut standing: Vec<_> =
        subjects.iter().map(|subject| stand(subject, images, plan)).collect();
    let mut rows = vec![];
    // Before anything else is asked of the daemons: what they need for the pods alone.
    if plan.asks_for(Memory) {
        rows.extend(memory(subjects, plan));
    }
    if plan.asks_for(Exec) {
        rows.extend(exec(&standing, plan));
    }
    if plan.asks_for(Queries) {
        rows.extend(queries(&standing, plan));
    }
    if plan.asks_for(Restart) {
        let more = plan.restart_pods.saturating_sub(plan.pods);
        for (subject, standing) in subjects.iter().zip(&mut standing) {
            standing.pods.extend(at_once(more, |_| up(subject, Network::Host, images)).1);
        }
        rows.extend(restart(subjects, plan));
    }
    for standing in &standing {
        at_once(standing.pods.len(), |number| down(&standing.pods[number]));
    }
    rows
}

fn stand(subject: &Subject, images: &Images, plan: &Plan) -> Standing {
    let (_, pods) = at_once(plan.pods, |_| up(subject, Network::Host, images));
    let containers = pods.iter().map(|pod| {
        let filter = ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        let found = subject.cri().list_containers(request).expect("containers are listed");
        found.containers.into_iter().next().expect("each pod has a container").id
    });
    Standing { cri: subject.cri().clone(), containers: containers.collect(), pods }
}

fn memory(subjects: &[Subject], plan: &Plan) -> Vec<Row> {
    plan.progress("memory");
    let per_pod = |key: &'static str| {
        let of = |subject: &Subject| {
            let all = subject.monitors();
            let sum: f64 = all.iter().filter_map(|pid| rollup(*pid, key)).sum();
            (!all.is_empty()).then(|| Value { typical: sum / count(plan.pods), p90: None })
        };
        subjects.iter().map(of).collect::<Vec<_>>()
    };
    let pods = plan.pods;
    vec![
        Row::new("monitor per container, PSS", "KiB", per_pod("Pss")).marked(Mark::AtMost(250.0)),
        Row::new("monitor per container, RSS", "KiB", per_pod("Rss")),
        Row::new("monitor per container, private", "KiB", per_pod("Private")),
        Row::new(
            format!("daemon RSS, {pods} pods"),
            "MiB",
            subjects.iter().map(daemon_rss).collect(),
        )
        .marked(Mark::AtMost(30.0)),
    ]
}

/// In MiB.
pub(super) fn daemon_rss(subject: &Subject) -> Option<Value> {
    Value::one(rollup(subject.daemon(), "Rss")? / 1024.0)
}

/// KiB in the lines of the process's smaps_rollup that begin with `key`, so that `Private` is
/// clean and dirty; nothing if the process is gone.
pub(super) fn rollup(pid: i32, key: &str) -> Option<f64> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(sum_of(&text, key))
}

fn sum_of(rollup: &str, key: &str) -> f64 {
    rollup
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| *name == key || key == "Private" && is_private(name))
        .filter_map(|(_, rest)| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok())
        .sum()
}

fn is_private(name: &str) -> bool {
    name == "Private_Clean" || name == "Private_Dirty"
}

fn exec(standing: &[Standing], plan: &Plan) -> Vec<Row> {
    plan.progress("ExecSync");
    in_turns(standing, 1, |_, standing| exec_true(standing, 0));
    let single = in_turns(standing, plan.samples * 6, |round, standing| {
        millis(timed(|| exec_true(standing, round)).0)
    });
    let many = in_turns(standing, plan.rounds, |_, standing| {
        let (time, done) = at_once(plan.burst * 2, |number| exec_true(standing, number));
        count(done.len()) / time.as_secs_f64()
    });
    vec![
        Row::new("ExecSync true", "ms", single.iter().map(|all| Value::spread(all)).collect())
            .marked(Mark::RatioAtMost(0.9)),
        Row::new(
            format!("ExecSync true, {AT_ONCE} at a time"),
            "per s",
            many.iter().map(|all| Value::middle(all)).collect(),
        ),
    ]
}

/// Each call in another pod, as probes are.
fn exec_true(standing: &Standing, number: usize) {
    let container_id = standing.containers[number % standing.containers.len()].clone();
    let request = ExecSyncRequest { container_id, cmd: vec!["true".to_owned()], timeout: 60 };
    let answer = standing.cri.exec_sync(request).expect("exec runs");
    assert_eq!(answer.exit_code, 0, "true failed");
}

fn queries(standing: &[Standing], plan: &Plan) -> Vec<Row> {
    plan.progress("queries");
    let pods = standing.first().map_or(0, |standing| standing.pods.len());
    let stats = in_turns(standing, plan.samples, |_, standing| {
        let request = ListContainerStatsRequest::default();
        let (time, answer) = timed(|| standing.cri.list_container_stats(request));
        let found = answer.expect("stats are listed").stats.len();
        assert!(found >= pods, "stats of {found} containers where {pods} run");
        millis(time)
    });
    let lists = in_turns(standing, plan.samples, |_, standing| {
        let (time, ()) = timed(|| {
            let containers = standing.cri.list_containers(ListContainersRequest::default());
            assert!(containers.expect("containers are listed").containers.len() >= pods);
            let sandboxes = standing.cri.list_pod_sandbox(ListPodSandboxRequest::default());
            assert!(sandboxes.expect("pods are listed").items.len() >= pods);
        });
        millis(time)
    });
    let spread = |samples: &[Vec<f64>]| samples.iter().map(|all| Value::spread(all)).collect();
    vec![
        Row::new(format!("ListContainerStats, {pods} containers"), "ms", spread(&stats))
            .marked(Mark::RatioAtMost(0.2)),
        Row::new(format!("ListContainers + ListPodSandbox, {pods} pods"), "ms", spread(&lists)),
    ]
}

/// From the start of the process until it lists all its containers, after a kill.
fn restart(subjects: &mut [Subject], plan: &Plan) -> Option<Row> {
    if !subjects.iter_mut().any(|subject| subject.node().is_some()) {
        return None;
    }
    plan.progress("restart");
    let values = subjects.iter_mut().map(|subject| {
        let samples: Vec<_> = (0..plan.rounds).map_while(|_| restarted(subject, plan)).collect();
        (!samples.is_empty()).then(|| Value::middle(&samples)).flatten()
    });
    let what = format!("restart to serving, {} pods", plan.restart_pods);
    Some(Row::new(what, "ms", values.collect()).marked(Mark::AtMost(500.0)))
}

fn restarted(subject: &mut Subject, plan: &Plan) -> Option<f64> {
    let node = subject.node()?;
    node.kill9();
    let begun = Instant::now();
    node.begin();
    until("all containers are listed again", BACK, || {
        let listed = node.cri().list_containers(ListContainersRequest::default()).ok()?;
        (listed.containers.len() >= plan.restart_pods).then_some(())
    });
    Some(millis(begun.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::sum_of;

    #[test]
    fn memory_is_read_from_the_lines_that_are_meant() {
        let text = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\n\
                    Rss:                1200 kB\nPss:                 300 kB\n\
                    Pss_Dirty:           100 kB\nPrivate_Clean:        40 kB\n\
                    Private_Dirty:       60 kB\nPrivate_Hugetlb:      8 kB\n";
        for (key, kib) in [("Rss", 1200.0), ("Pss", 300.0), ("Private", 100.0), ("Swap", 0.0)] {
            assert!((sum_of(text, key) - kib).abs() < 1e-9, "{key}");
        }
    }
}
