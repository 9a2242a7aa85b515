//! Streaming sessions over SPDY, as the kubelet has them: bytes out of an exec and out of a forwarded
//! port, how soon a command is done, and what a session costs that has nothing to say.

use std::time::Instant;

use cria_proto::{ExecRequest, PortForwardRequest};
use harness::Cri;
use harness::cri::{Container, Pod, container_config};
use harness::spdy::{Session, Spdy};
use harness::until;

use super::rate::{count, down};
use super::standing::rollup;
use super::{Mark, Row, Value, in_turns};
use crate::images::Images;
use crate::plan::Plan;
use crate::sample::{millis, timed};
use crate::subject::{Network, Subject};

/// Each connection gets zeros without an end.
const SERVER: [&str; 3] = ["sh", "-c", "nc -ll -p 9000 -e cat /dev/zero & wait"];
const PORT: &str = "9000";
/// As /proc/net/tcp writes it.
const LISTENING: &str = "cat /proc/net/tcp /proc/net/tcp6 | grep -q :2328";

/// A pod of one subject on its own network, with a server in it.
struct Streaming {
    cri: Cri,
    daemon: i32,
    pod: Pod,
    container: Container,
}

pub(super) fn rows(subjects: &[Subject], images: &Images, plan: &Plan) -> Vec<Row> {
    plan.progress("streams");
    let streaming: Vec<_> = subjects.iter().map(|subject| stand(subject, images)).collect();
    // What is needed once for the first session is not its cost.
    streaming.iter().for_each(run_true);
    // Before anything else has filled the daemons' free lists.
    let idle = streaming.iter().map(|one| idle(one, plan)).collect();
    let rate = |samples: Vec<Vec<f64>>| samples.iter().map(|all| Value::middle(all)).collect();
    let exec = in_turns(&streaming, plan.rounds, |_, one| exec_rate(one, plan));
    let forward = in_turns(&streaming, plan.rounds, |_, one| forward_rate(one, plan));
    let single = in_turns(&streaming, plan.samples * 6, |_, one| millis(timed(|| run_true(one)).0));
    for one in &streaming {
        down(&one.pod);
    }
    let mib = plan.stream_bytes >> 20;
    let sessions = plan.sessions;
    vec![
        Row::new(format!("exec over SPDY, {mib} MiB of cat /dev/zero"), "MiB/s", rate(exec))
            .marked(Mark::RatioAtLeast(1.5)),
        Row::new(format!("port-forward over SPDY, {mib} MiB"), "MiB/s", rate(forward))
            .marked(Mark::RatioAtLeast(1.5)),
        Row::new("exec of true over SPDY", "ms", {
            single.iter().map(|all| Value::spread(all)).collect()
        })
        .marked(Mark::RatioAtMost(0.8)),
        Row::new(format!("daemon per idle exec, {sessions} of them, PSS"), "KiB", idle)
            .marked(Mark::AtMost(40.0)),
    ]
}

fn stand(subject: &Subject, images: &Images) -> Streaming {
    let pod = subject.cri().run_pod(subject.pod("streams", Network::Bridge));
    let container = pod.run(container_config("streams", &images.busybox, &SERVER));
    until("the server listens", super::standing::BACK, || {
        let found = container.exec(&["sh", "-c", LISTENING]).ok()?;
        (found.exit_code == 0).then_some(())
    });
    Streaming { cri: subject.cri().clone(), daemon: subject.daemon(), pod, container }
}

fn exec(one: &Streaming, command: &[&str], stdin: bool) -> Session {
    let request = ExecRequest {
        container_id: one.container.id.clone(),
        cmd: command.iter().map(ToString::to_string).collect(),
        stdin,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let url = one.cri.exec(request).expect("the container runs").url;
    Session::connect(&url, stdin, true, false)
}

fn run_true(one: &Streaming) {
    let status = exec(one, &["true"], false).await_status();
    assert!(status.contains("Success"), "{status}");
}

fn exec_rate(one: &Streaming, plan: &Plan) -> f64 {
    rate(exec(one, &["cat", "/dev/zero"], false).spdy, plan)
}

fn forward_rate(one: &Streaming, plan: &Plan) -> f64 {
    let request = PortForwardRequest { pod_sandbox_id: one.pod.id.clone(), port: vec![] };
    let url = one.cri.port_forward(request).expect("the pod is ready").url;
    let mut spdy = Spdy::connect(&url, "portforward.k8s.io");
    for kind in ["error", "data"] {
        spdy.open(&[("streamtype", kind), ("port", PORT), ("requestid", "0")]);
    }
    rate(spdy, plan)
}

/// MiB per second from now on.
fn rate(spdy: Spdy, plan: &Plan) -> f64 {
    let begun = Instant::now();
    let taken = spdy.swallow(plan.stream_bytes);
    let time = begun.elapsed().as_secs_f64();
    assert!(taken >= plan.stream_bytes, "the session ended after {taken} bytes");
    count(taken) / f64::from(1 << 20) / time
}

/// What the daemon has grown by, for each of many sessions whose command waits for its input.
fn idle(one: &Streaming, plan: &Plan) -> Option<Value> {
    let before = rollup(one.daemon, "Pss")?;
    let sessions: Vec<_> = (0..plan.sessions)
        .map(|_| {
            let mut session = exec(one, &["sh", "-c", "echo up; cat"], true);
            session.await_output("up");
            session
        })
        .collect();
    let after = rollup(one.daemon, "Pss")?;
    drop(sessions);
    Value::one((after - before) / count(plan.sessions))
}
