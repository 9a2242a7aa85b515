//! Stats of containers and pods. A value that is unknown is absent, never zero.

use cria_proto::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, ContainerStatsRequest,
    ContainerStatsResponse, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, ListContainerStatsRequest, ListContainerStatsResponse,
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, MemoryUsage, NetworkInterfaceUsage,
    NetworkUsage, PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter,
    PodSandboxStatsRequest, PodSandboxStatsResponse, ProcessUsage, PsiData, PsiStats,
    StreamContainerStatsRequest, StreamContainerStatsResponse, StreamPodSandboxStatsRequest,
    StreamPodSandboxStatsResponse, SwapUsage, UInt64Value,
};

use super::{Items, container, sandbox, stream_list};
use crate::cgroup::{Cpu, Memory, Psi, PsiLine, Swap};
use crate::clock;
use crate::container::Container;
use crate::container::state::State as ContainerState;
use crate::daemon::Daemon;
use crate::disk::Measured;
use crate::error::Error;
use crate::netstats::{InterfaceUsage, NetSample};
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::sandbox::state::State;
use crate::stats::Reading;

pub(super) async fn container_stats(
    daemon: &Daemon,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Error> {
    let container = container::find(daemon, &request.container_id)?;
    Ok(ContainerStatsResponse { stats: Some(of_container(&daemon.node, &container)) })
}

pub(super) async fn list_container_stats(
    daemon: &Daemon,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Error> {
    Ok(ListContainerStatsResponse { stats: list_containers(daemon, request.filter) })
}

pub(super) async fn stream_container_stats(
    daemon: &Daemon,
    request: StreamContainerStatsRequest,
) -> Result<Items<StreamContainerStatsResponse>, Error> {
    let stats = list_containers(daemon, request.filter);
    Ok(stream_list(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
}

pub(super) async fn pod_sandbox_stats(
    daemon: &Daemon,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Error> {
    let sandbox = sandbox::find(daemon, &request.pod_sandbox_id)?;
    Ok(PodSandboxStatsResponse { stats: Some(of_sandbox(daemon, &sandbox)) })
}

pub(super) async fn list_pod_sandbox_stats(
    daemon: &Daemon,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Error> {
    Ok(ListPodSandboxStatsResponse { stats: list_sandboxes(daemon, request.filter) })
}

pub(super) async fn stream_pod_sandbox_stats(
    daemon: &Daemon,
    request: StreamPodSandboxStatsRequest,
) -> Result<Items<StreamPodSandboxStatsResponse>, Error> {
    let stats = list_sandboxes(daemon, request.filter);
    Ok(stream_list(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

/// Those that run: what has ended uses nothing but its disk, which its status does not need.
fn list_containers(daemon: &Daemon, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let filter = filter.unwrap_or_default();
    let wanted = |container: &Container| {
        container.id.as_str().starts_with(&filter.id)
            && container.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
            && container::has_labels(container, &filter.label_selector)
            && is_running(container)
    };
    let containers = daemon.containers.all();
    let wanted = containers.iter().filter(|container| wanted(container));
    wanted.map(|container| of_container(&daemon.node, container)).collect()
}

fn is_running(container: &Container) -> bool {
    matches!(container.state(), ContainerState::Running { .. })
}

fn list_sandboxes(daemon: &Daemon, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let sandboxes = daemon.sandboxes.all();
    let wanted = sandboxes.iter().filter(|sandbox| {
        sandbox.state() == State::Ready
            && sandbox::matches(&filter.id, &filter.label_selector, sandbox)
    });
    wanted.map(|sandbox| of_sandbox(daemon, sandbox)).collect()
}

fn of_container(node: &Node, container: &Container) -> ContainerStats {
    let usage = Usage::of(container.stats.read(&node.cgroups));
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: container.id.to_string(),
            metadata: Some(container::metadata(container)),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        cpu: usage.cpu,
        memory: usage.memory,
        writable_layer: container.stats.disk().map(|measured| writable_layer(node, measured)),
        swap: usage.swap,
        io: usage.io,
    }
}

/// The mount point is cria's root directory, never the container's: the kubelet looks it up later,
/// and one that has vanished fails its whole eviction pass.
fn writable_layer(node: &Node, measured: Measured) -> FilesystemUsage {
    let mountpoint = node.paths.root.display().to_string();
    FilesystemUsage {
        timestamp: clock::ns_of(measured.at),
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: value(measured.usage.bytes),
        inodes_used: value(measured.usage.inodes),
    }
}

fn of_sandbox(daemon: &Daemon, sandbox: &Sandbox) -> PodSandboxStats {
    let node = &daemon.node;
    let usage = Usage::of(sandbox.stats.read(&node.cgroups));
    let filter =
        ContainerStatsFilter { pod_sandbox_id: sandbox.id.to_string(), ..Default::default() };
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: sandbox.id.to_string(),
            metadata: Some(sandbox::metadata(sandbox)),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: usage.cpu,
            memory: usage.memory,
            network: network(node, sandbox),
            process: sandbox.stats.process_count(&node.cgroups).map(|count| ProcessUsage {
                timestamp: clock::now_ns(),
                process_count: value(count),
            }),
            containers: list_containers(daemon, Some(filter)),
            io: usage.io,
        }),
        windows: None,
    }
}

/// With the pod's own interface, or not at all: the kubelet dereferences it.
fn network(node: &Node, sandbox: &Sandbox) -> Option<NetworkUsage> {
    if sandbox.is_on_host_network() || sandbox.state() != State::Ready {
        return None;
    }
    let NetSample { default, others } =
        sandbox.stats.network(&node.paths.netns(&sandbox.id)).ok().flatten()?;
    Some(NetworkUsage {
        timestamp: clock::now_ns(),
        default_interface: Some(interface(default?)),
        interfaces: others.into_iter().map(interface).collect(),
    })
}

fn interface(usage: InterfaceUsage) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: usage.name,
        rx_bytes: value(usage.rx_bytes),
        rx_errors: value(usage.rx_errors),
        tx_bytes: value(usage.tx_bytes),
        tx_errors: value(usage.tx_errors),
    }
}

/// A cgroup's reading in the CRI's messages; empty without one.
#[derive(Default)]
struct Usage {
    cpu: Option<CpuUsage>,
    memory: Option<MemoryUsage>,
    swap: Option<SwapUsage>,
    io: Option<IoUsage>,
}

impl Usage {
    fn of(reading: Option<Reading>) -> Self {
        let Some(Reading { sample, nano_cores }) = reading else { return Self::default() };
        let timestamp = clock::now_ns();
        Self {
            cpu: sample.cpu.map(|cpu| cpu_usage(timestamp, &cpu, nano_cores)),
            memory: sample.memory.map(|memory| memory_usage(timestamp, &memory)),
            swap: sample.swap.map(|swap| swap_usage(timestamp, &swap)),
            io: sample.io_psi.map(|psi| IoUsage { timestamp, psi: Some(pressure(&psi)) }),
        }
    }
}

fn cpu_usage(timestamp: i64, cpu: &Cpu, nano_cores: Option<u64>) -> CpuUsage {
    CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(cpu.usage_ns),
        usage_nano_cores: nano_cores.and_then(value),
        psi: cpu.psi.as_ref().map(pressure),
    }
}

fn memory_usage(timestamp: i64, memory: &Memory) -> MemoryUsage {
    MemoryUsage {
        timestamp,
        working_set_bytes: value(memory.working_set_bytes),
        available_bytes: memory.available_bytes.and_then(value),
        usage_bytes: value(memory.usage_bytes),
        rss_bytes: value(memory.rss_bytes),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: memory.psi.as_ref().map(pressure),
    }
}

fn swap_usage(timestamp: i64, swap: &Swap) -> SwapUsage {
    SwapUsage {
        timestamp,
        swap_available_bytes: swap.available_bytes.and_then(value),
        swap_usage_bytes: value(swap.usage_bytes),
    }
}

fn pressure(psi: &Psi) -> PsiStats {
    let line = |line: &PsiLine| PsiData {
        total: line.total_us,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    PsiStats { full: psi.full.as_ref().map(line), some: Some(line(&psi.some)) }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}
