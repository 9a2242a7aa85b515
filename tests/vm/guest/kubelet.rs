//! A kubelet as the node's own service, with the systemd driver and the gates that cgroup v2 has.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cria_proto::{ContainerState, ContainerStatus, ContainerStatusRequest, ListContainersRequest};
use harness::Cri;
use harness::cri::Container;
use serde_json::{Value, json};

use crate::life;
use crate::node::{
    BUSYBOX, CGROUPS, assert_no_failed_unit, await_cria, cgroup_of, eventually, limit, systemctl,
};

const CONFIG: &str = "/etc/kubernetes/kubelet.json";
const MANIFESTS: &str = "/etc/kubernetes/manifests";
const UNIT: &str = "/etc/systemd/system/kubelet.service";
const NODE_NAME: &str = "node";

/// The unit as a distribution writes it.
const SERVICE: &str = "\
[Unit]
Description=kubelet
After=cria.service
Wants=cria.service

[Service]
ExecStart=/opt/cria/tools/bin/kubelet --config /etc/kubernetes/kubelet.json --hostname-override node --v=2
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
";

const FOREVER: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.2; done";

fn configuration() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/cria/cria.sock",
        "staticPodPath": MANIFESTS,
        "address": "127.0.0.1",
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        // As on most nodes; cria's answer counts.
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "memorySwap": { "swapBehavior": "LimitedSwap" },
        "memoryThrottlingFactor": 0.8,
        "memoryReservationPolicy": "TieredReservation",
        "singleProcessOOMKill": false,
        "podPidsLimit": 200,
        "makeIPTablesUtilChains": false,
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%" },
        "fileCheckFrequency": "2s",
        "crashLoopBackOff": { "maxContainerRestartPeriod": "10s" },
        "shutdownGracePeriod": "0s",
    })
}

/// A manifest of one container; `more` is added to the container, `spec` to the pod.
fn put(name: &str, script: &str, more: &Value, spec: &Value) -> Result<()> {
    let mut container = json!({
        "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    });
    merge(&mut container, more);
    let mut body = json!({
        "containers": [container],
        // They go when they are asked to.
        "terminationGracePeriodSeconds": 60,
        "enableServiceLinks": false,
        "hostNetwork": true,
    });
    merge(&mut body, spec);
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": body,
    });
    let aside = Path::new(MANIFESTS).join(format!(".{name}"));
    fs_err::write(&aside, manifest.to_string())?;
    fs_err::rename(aside, manifest_of(name))?;
    Ok(())
}

fn merge(into: &mut Value, more: &Value) {
    let entries = more.as_object().cloned().unwrap_or_default();
    into.as_object_mut().expect("an object is added to").extend(entries);
}

fn manifest_of(name: &str) -> PathBuf {
    Path::new(MANIFESTS).join(format!("{name}.json"))
}

pub(crate) fn forever(name: &str) -> Result<()> {
    put(name, FOREVER, &json!({}), &json!({}))
}

pub(crate) fn once(name: &str, script: &str) -> Result<()> {
    put(name, script, &json!({}), &json!({ "restartPolicy": "Never" }))
}

pub(crate) fn take_away(name: &str) -> Result<()> {
    Ok(fs_err::remove_file(manifest_of(name))?)
}

/// The pods that go on for ever, after [`pods_run`].
pub(crate) const STANDING: [&str; 8] =
    ["plain-1", "plain-2", "bridge", "guaranteed", "burstable", "huge", "probed", "shared"];

fn resources(requests: Value, limits: Value) -> Value {
    json!({ "resources": { "requests": requests, "limits": limits } })
}

fn put_all() -> Result<()> {
    forever("plain-1")?;
    forever("plain-2")?;
    put("bridge", FOREVER, &json!({}), &json!({ "hostNetwork": false }))?;
    let same = json!({ "cpu": "100m", "memory": "64Mi" });
    put("guaranteed", FOREVER, &resources(same.clone(), same), &json!({}))?;
    put(
        "burstable",
        FOREVER,
        &resources(
            json!({ "cpu": "50m", "memory": "32Mi" }),
            json!({ "cpu": "500m", "memory": "64Mi" }),
        ),
        &json!({}),
    )?;
    let huge = json!({ "cpu": "50m", "memory": "32Mi", "hugepages-2Mi": "4Mi" });
    put("huge", FOREVER, &resources(huge.clone(), huge), &json!({}))?;
    let probe =
        json!({ "exec": { "command": ["true"] }, "periodSeconds": 5, "timeoutSeconds": 30 });
    put(
        "probed",
        FOREVER,
        &json!({ "livenessProbe": probe, "readinessProbe": probe }),
        &json!({}),
    )?;
    put("shared", FOREVER, &json!({}), &json!({ "shareProcessNamespace": true }))?;
    let memory = json!({ "memory": "32Mi" });
    let never = json!({ "restartPolicy": "Never" });
    let group = "tail /dev/zero; echo survived; sleep 1000";
    put("eats-memory", group, &resources(memory.clone(), memory), &never)?;
    once("succeeds", "exit 0")?;
    once("fails", "exit 3")?;
    put(
        "privileged",
        "mount -t tmpfs none /tmp && echo mounted && exit 0; exit 1",
        &json!({ "securityContext": { "privileged": true } }),
        &never,
    )?;
    put(
        "confined",
        "grep -q '^Seccomp:.*2' /proc/self/status && exit 0; exit 1",
        &json!({ "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } } }),
        &never,
    )
}

pub(crate) fn pods_run() -> Result<()> {
    life::is_up()?;
    fs_err::create_dir_all(MANIFESTS)?;
    fs_err::write(CONFIG, configuration().to_string())?;
    fs_err::write(UNIT, SERVICE)?;
    put_all()?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "kubelet"])?;
    let cri = await_cria()?;
    await_standing(&cri)?;
    for (name, code, reason) in [
        ("succeeds", 0, "Completed"),
        ("fails", 3, "Error"),
        ("privileged", 0, "Completed"),
        ("confined", 0, "Completed"),
        ("eats-memory", 137, "OOMKilled"),
    ] {
        let status = await_end(&cri, name)?;
        ensure!(
            status.exit_code == code && status.reason == reason,
            "{name} ended with {} ({}), not {code} ({reason})",
            status.exit_code,
            status.reason
        );
    }
    // systemd may not have collected the last of their scopes yet.
    eventually("no unit has failed", || assert_no_failed_unit().ok())
}

/// Waits until every pod of [`STANDING`] has a container that runs. The first one waits for the
/// kubelet to start, which takes its time here.
pub(crate) fn await_standing(cri: &Cri) -> Result<()> {
    for name in STANDING {
        let mut last = None;
        for _ in 0..4 {
            last =
                Some(eventually(&format!("{name} runs"), || newest(cri, name).ok().filter(runs)));
            if matches!(last, Some(Ok(_))) {
                break;
            }
        }
        last.context("it was tried")??;
    }
    Ok(())
}

pub(crate) fn await_end(cri: &Cri, name: &str) -> Result<ContainerStatus> {
    eventually(&format!("{name} ends"), || {
        newest(cri, name).ok().filter(|s| s.state() == ContainerState::ContainerExited)
    })
}

pub(crate) fn runs(status: &ContainerStatus) -> bool {
    status.state() == ContainerState::ContainerRunning
}

/// The status of the newest container of the pod with that manifest.
pub(crate) fn newest(cri: &Cri, name: &str) -> Result<ContainerStatus> {
    let pod = format!("{name}-{NODE_NAME}");
    let containers = cri.list_containers(ListContainersRequest::default())?.containers;
    let of_pod = containers
        .into_iter()
        .filter(|c| c.labels.get("io.kubernetes.pod.name").is_some_and(|label| *label == pod));
    let newest = of_pod.max_by_key(|container| container.created_at);
    let id = newest.with_context(|| format!("{name} has no container"))?.id;
    let request = ContainerStatusRequest { container_id: id, ..Default::default() };
    cri.container_status(request)?.status.context("a status response carries a status")
}

/// Whether the pod on the network has an address there.
pub(crate) fn bridge_serves(cri: &Cri) -> Result<()> {
    let id = newest(cri, "bridge")?.id;
    let container = Container { cri: cri.clone(), id };
    let addresses = container.exec(&["ip", "-4", "addr", "show", "eth0"])?;
    ensure!(addresses.stdout.contains("inet "), "it has no address: {addresses}");
    Ok(())
}

/// A value may be one of several.
fn expect(id: &str, file: &str, wanted: &[&str]) -> Result<()> {
    let value = limit(id, file)?;
    ensure!(wanted.contains(&value.as_str()), "{file} holds {value}, not {wanted:?}");
    Ok(())
}

pub(crate) fn limits() -> Result<()> {
    let cri = await_cria()?;
    let burstable = newest(&cri, "burstable")?.id;
    expect(&burstable, "memory.max", &["67108864"])?;
    expect(&burstable, "cpu.max", &["50000 100000"])?;
    // 32 Mi and eight tenths of the way to 64 Mi, in whole pages.
    expect(&burstable, "memory.high", &["60395520", "60397977"])?;
    expect(&burstable, "memory.low", &["33554432"])?;
    expect(&burstable, "memory.min", &["0"])?;
    expect(&burstable, "memory.oom.group", &["1"])?;
    // Static pods count as critical, and the kubelet gives those no swap.
    expect(&burstable, "memory.swap.max", &["0"])?;
    let guaranteed = newest(&cri, "guaranteed")?.id;
    expect(&guaranteed, "memory.swap.max", &["0"])?;
    expect(&guaranteed, "memory.min", &["67108864"])?;
    expect(&guaranteed, "memory.high", &["max"])?;
    let huge = newest(&cri, "huge")?.id;
    expect(&huge, "hugetlb.2MB.max", &["4194304"])?;
    for file in ["cpu.pressure", "memory.pressure", "io.pressure"] {
        ensure!(limit(&huge, file)?.starts_with("some "), "{file}");
    }

    let group = cgroup_of(&burstable)?.context("it has a cgroup")?;
    let slice = group.parent().context("a scope is in a slice")?;
    let pids = fs_err::read_to_string(slice.join("pids.max"))?;
    ensure!(pids.trim() == "200", "pids.max of the pod: {pids}");
    let kubepods = Path::new(CGROUPS).join("kubepods.slice/kubepods-burstable.slice");
    ensure!(slice.starts_with(&kubepods), "{}", slice.display());
    let container = Container { cri, id: burstable };
    ensure!(
        container.exec(&["cat", "/proc/self/cgroup"])?.stdout == "0::/\n",
        "its cgroup namespace"
    );
    Ok(())
}
