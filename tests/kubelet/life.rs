//! The life of containers: init and sidecar containers, hooks, restarts, the ends.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Case, case};
use crate::site::{LIMIT, Site, read, restarts, status, terminated, text, uid, with};

pub(crate) const CASES: &[Case] = &[
    case("init containers run in order, each to its end", init_containers),
    case("a sidecar starts before and ends after the container", sidecar),
    case("a container that crashes: CrashLoopBackOff, its true exit code", crash_loop),
    case("containers that end: Succeeded, Failed, codes, signals, times", ends),
    case("restart on failure, until it succeeds", on_failure),
    case("a bad command: RunContainerError, StartError, 128", bad_command),
    case("termination messages: of a file, of the log's end", termination_messages),
    case("postStart and preStop hooks", hooks),
    case("graceful deletion: SIGTERM, a last line, gone in time", graceful_deletion),
    case("a container that will not end is killed after its grace", killed_after_grace),
    case("the image's own stop signal", stop_signal),
];

fn init_containers(site: &Site) -> Result<()> {
    let mount = json!({ "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }] });
    let step = |name: &str, script: &str| with(site.sh(name, script), mount.clone());
    let spec = json!({
        "volumes": [{ "name": "shared", "emptyDir": {} }],
        "initContainers": [
            step("first", "sleep 0.5; echo first >> /shared/order"),
            step("second", "echo second >> /shared/order"),
        ],
        "containers": [step("main", "cat /shared/order; echo end; sleep 10000")],
    });
    site.apply("init", spec);
    let pod = site.ready("init")?;
    site.expect_log("init", "main", &["first", "second"])?;
    for name in ["first", "second"] {
        let end = terminated(&pod, name).context("an init container has ended")?;
        ensure!(end["exitCode"] == 0 && end["reason"] == "Completed", "{end}");
        ensure!(restarts(&pod, name) == 0, "{name} ran more than once");
    }
    let time = |value: &Value| text(value);
    let first = time(&status(&pod, "first")["state"]["terminated"]["finishedAt"]);
    let second = time(&status(&pod, "second")["state"]["terminated"]["startedAt"]);
    ensure!(first <= second, "the second began at {second}, before the first's end at {first}");
    Ok(())
}

fn sidecar(site: &Site) -> Result<()> {
    let mount = json!({ "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }] });
    let beside = "trap 'echo sidecar stops; exit 0' TERM; touch /shared/ready; \
                  while :; do sleep 0.1; done";
    let always = json!({
        "restartPolicy": "Always",
        "startupProbe": { "exec": { "command": ["test", "-e", "/shared/ready"] }, "periodSeconds": 1 },
    });
    let side = with(with(site.sh("side", beside), mount.clone()), always);
    let main = "test -e /shared/ready && echo sidecar was first; echo end; sleep 2";
    let spec = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,
        "volumes": [{ "name": "shared", "emptyDir": {} }],
        "initContainers": [side],
        "containers": [with(site.sh("main", main), mount)],
    });
    site.apply("sidecar", spec);
    site.expect_log("sidecar", "main", &["sidecar was first"])?;
    let pod = site.ended("sidecar", "Succeeded")?;
    let end = terminated(&pod, "side").context("the sidecar has ended")?;
    ensure!(end["exitCode"] == 0, "{end}");
    ensure!(restarts(&pod, "side") == 0, "the sidecar was restarted");
    ensure!(site.log("sidecar", "side")? == "sidecar stops\n");
    Ok(())
}

fn crash_loop(site: &Site) -> Result<()> {
    let spec = json!({ "containers": [site.sh("main", "echo run; exit 3")] });
    site.apply("crash-loop", spec);
    site.waited_for("crash-loop", "CrashLoopBackOff")?;
    let pod = site.pod("crash-loop", "restarted twice and in back-off", |pod| {
        let status = status(pod, "main");
        let waits = status["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        (restarts(pod, "main") >= 2 && waits).then(|| pod.clone())
    })?;
    let last = &status(&pod, "main")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 3 && last["reason"] == "Error", "{last}");
    // It may just be starting again.
    let previous = || site.log_with("crash-loop", "main", "previous=true").unwrap_or_default();
    let found = harness::wait::within(LIMIT, || (previous() == "run\n").then_some(()));
    found.with_context(|| format!("its log before: {:?}", previous()))
}

fn ends(site: &Site) -> Result<()> {
    let containers = [
        site.sh("zero", "exit 0"),
        site.sh("seven", "exit 7"),
        // A shell beneath PID 1, which no signal of its own can end. $$ is a $ to the kubelet.
        site.sh("killed", "sh -c 'kill -9 $$$$'; exit $?"),
        site.sh("aborted", "sh -c 'kill -ABRT $$$$'; exit $?"),
    ];
    site.apply("failed", json!({ "restartPolicy": "Never", "containers": containers }));
    let zero = json!({ "restartPolicy": "Never", "containers": [site.sh("zero", "sleep 1.5")] });
    site.apply("succeeded", zero);
    let pod = site.ended("failed", "Failed")?;
    let wanted = [
        ("zero", 0, "Completed"),
        ("seven", 7, "Error"),
        ("killed", 137, "Error"),
        ("aborted", 134, "Error"),
    ];
    for (name, code, reason) in wanted {
        let end = terminated(&pod, name).context("a failed pod's containers have ended")?;
        ensure!(end["exitCode"] == code && end["reason"] == reason, "{name}: {end}");
    }
    let pod = site.ended("succeeded", "Succeeded")?;
    let end = terminated(&pod, "zero").context("a succeeded pod's containers have ended")?;
    let (begun, ended) = (text(&end["startedAt"]), text(&end["finishedAt"]));
    ensure!(begun < ended, "begun at {begun}, ended at {ended}");
    Ok(())
}

fn on_failure(site: &Site) -> Result<()> {
    let mount = json!({ "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }] });
    let script = "test -e /shared/tried && exit 0; touch /shared/tried; exit 1";
    let spec = json!({
        "restartPolicy": "OnFailure",
        "volumes": [{ "name": "shared", "emptyDir": {} }],
        "containers": [with(site.sh("main", script), mount)],
    });
    site.apply("on-failure", spec);
    let pod = site.ended("on-failure", "Succeeded")?;
    ensure!(restarts(&pod, "main") == 1, "{}", pod["status"]);
    Ok(())
}

fn bad_command(site: &Site) -> Result<()> {
    let command = json!({ "command": ["/no/such/program"] });
    site.apply("bad-command", json!({ "containers": [with(site.sh("main", ""), command)] }));
    site.waited_for("bad-command", "RunContainerError")?;
    let pod = site.pod("bad-command", "terminated by its bad command", |pod| {
        let last = &status(pod, "main")["lastState"]["terminated"];
        last.is_object().then(|| pod.clone())
    })?;
    let last = &status(&pod, "main")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 128 && last["reason"] == "StartError", "{last}");
    ensure!(text(&last["message"]).contains("/no/such/program"), "{last}");
    // A start that failed leaves an empty log.
    let folder = site.log_folder(&pod, "main");
    let logs: Vec<_> = fs_err::read_dir(folder)?.flatten().collect();
    ensure!(!logs.is_empty(), "no log of a failed start");
    for log in logs {
        ensure!(log.metadata()?.len() == 0, "{} holds something", log.path().display());
    }
    Ok(())
}

fn termination_messages(site: &Site) -> Result<()> {
    let to_file = json!({ "terminationMessagePath": "/tmp/message" });
    let to_log = json!({ "terminationMessagePolicy": "FallbackToLogsOnError" });
    let spec = json!({ "restartPolicy": "Never", "containers": [
        with(site.sh("file", "echo -n told by file > /tmp/message; exit 1"), to_file),
        site.sh("usual", "echo -n told as usual > /dev/termination-log"),
        with(site.sh("log", "echo told by log; exit 1"), to_log.clone()),
        with(site.sh("well", "echo not told"), to_log),
    ]});
    site.apply("messages", spec);
    let pod = site.ended("messages", "Failed")?;
    let wanted = [
        ("file", "told by file"),
        ("usual", "told as usual"),
        ("log", "told by log\n"),
        ("well", ""),
    ];
    for (name, message) in wanted {
        let end = terminated(&pod, name).context("a failed pod's containers have ended")?;
        ensure!(text(&end["message"]) == message, "{name}: {end}");
    }
    Ok(())
}

fn hooks(site: &Site) -> Result<()> {
    let folder = site.scratch.join("hooks");
    fs_err::create_dir_all(&folder)?;
    let more = json!({
        "volumeMounts": [{ "name": "host", "mountPath": "/host" }],
        "lifecycle": {
            "postStart": { "exec": { "command": ["sh", "-c", "echo post >> /host/order"] } },
            "preStop": { "exec": { "command": ["sh", "-c", "echo pre >> /host/order"] } },
        },
    });
    let script = "trap 'echo term >> /host/order; exit 0' TERM; while :; do sleep 0.1; done";
    let spec = json!({
        "terminationGracePeriodSeconds": 20,
        "volumes": [{ "name": "host", "hostPath": { "path": folder, "type": "Directory" } }],
        "containers": [with(site.sh("main", script), more)],
    });
    site.apply("hooks", spec);
    let pod = site.ready("hooks")?;
    // A pod is ready only after its hook.
    ensure!(read(folder.join("order"))? == "post\n");
    site.remove("hooks");
    site.await_gone(&pod)?;
    let order = read(folder.join("order"))?;
    ensure!(order == "post\npre\nterm\n", "{order}");
    Ok(())
}

fn graceful_deletion(site: &Site) -> Result<()> {
    let script = "trap 'sleep 1; echo the last line; exit 0' TERM; echo up; \
                  while :; do sleep 0.1; done";
    let spec =
        json!({ "terminationGracePeriodSeconds": 300, "containers": [site.sh("main", script)] });
    site.apply("graceful", spec);
    let pod = site.ready("graceful")?;
    site.await_log("graceful", "main", "up\n")?;
    // The kubelet removes the log with the pod; an open file outlives that.
    let mut log = File::open(site.log_folder(&pod, "main").join("0.log"))?;
    let begun = Instant::now();
    site.remove("graceful");
    site.await_gone(&pod)?;
    let took = begun.elapsed();
    // Much less than its grace: it went by itself.
    ensure!(took < Duration::from_secs(200), "gone only after {took:?}");
    let mut written = String::new();
    log.read_to_string(&mut written)?;
    ensure!(written.ends_with(" stdout F the last line\n"), "{written}");
    let folder = site.files.root().join("pods").join(uid(&pod));
    let gone = harness::wait::within(LIMIT, || (!folder.exists()).then_some(()));
    gone.with_context(|| format!("{} stays", folder.display()))
}

fn killed_after_grace(site: &Site) -> Result<()> {
    let script = "trap 'echo not yet' TERM; echo up; while :; do sleep 0.1; done";
    let spec =
        json!({ "terminationGracePeriodSeconds": 10, "containers": [site.sh("main", script)] });
    site.apply("unwilling", spec);
    let pod = site.ready("unwilling")?;
    site.await_log("unwilling", "main", "up\n")?;
    let mut log = File::open(site.log_folder(&pod, "main").join("0.log"))?;
    let begun = Instant::now();
    site.remove("unwilling");
    site.await_gone(&pod)?;
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(10), "gone after {took:?} already");
    let mut written = String::new();
    log.read_to_string(&mut written)?;
    ensure!(written.ends_with(" stdout F not yet\n"), "{written}");
    Ok(())
}

fn stop_signal(site: &Site) -> Result<()> {
    let script = "trap 'echo USR1; exit 0' USR1; trap 'echo TERM; exit 0' TERM; echo up; \
                  while :; do sleep 0.1; done";
    let image = json!({ "image": site.images.stops_by_usr1 });
    let spec = json!({
        "terminationGracePeriodSeconds": 20,
        "containers": [with(site.sh("main", script), image)],
    });
    site.apply("stop-signal", spec);
    let pod = site.ready("stop-signal")?;
    site.await_log("stop-signal", "main", "up\n")?;
    let mut log = File::open(site.log_folder(&pod, "main").join("0.log"))?;
    site.remove("stop-signal");
    site.await_gone(&pod)?;
    let mut written = String::new();
    log.read_to_string(&mut written)?;
    ensure!(written.ends_with(" stdout F USR1\n"), "{written}");
    Ok(())
}
