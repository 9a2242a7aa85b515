//! What containers and pods use: kept-open handles, read when somebody asks. No lock is shared
//! between containers.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::cgroup::{CgroupPath, CgroupStats, CpuRate, Hierarchy, Sample};
use crate::cni;
use crate::disk::{DiskUsage, Measured};
use crate::netstats::{NetSample, NetStats};

/// A cgroup's counters, and the processor's rate between two readings.
pub(crate) struct Counters {
    cgroup: CgroupPath,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    handle: Option<CgroupStats>,
    rate: CpuRate,
}

/// A reading. The rate is absent until there are two, some time apart.
pub(crate) struct Reading {
    pub(crate) sample: Sample,
    pub(crate) nano_cores: Option<u64>,
}

impl Counters {
    fn of(cgroup: &CgroupPath) -> Self {
        Self { cgroup: cgroup.clone(), open: Mutex::default() }
    }

    /// `None`: there is no such cgroup (yet, or any more).
    pub(crate) fn read(&self, cgroups: &Hierarchy) -> Option<Reading> {
        let mut open = lock(&self.open);
        if open.handle.is_none() {
            open.handle = CgroupStats::open(cgroups, &self.cgroup).ok().flatten();
        }
        let Some(sample) = open.handle.as_ref()?.sample() else {
            // A removed cgroup that comes again is another one.
            open.handle = None;
            return None;
        };
        let now = Instant::now();
        let usage_ns = sample.cpu.as_ref().map(|cpu| cpu.usage_ns);
        let nano_cores = usage_ns.and_then(|usage_ns| open.rate.note(now, usage_ns));
        Some(Reading { sample, nano_cores })
    }
}

pub(crate) struct ContainerStats {
    counters: Counters,
    disk: Arc<DiskUsage>,
}

impl ContainerStats {
    pub(crate) fn of(cgroup: &CgroupPath, disk: Arc<DiskUsage>) -> Self {
        Self { counters: Counters::of(cgroup), disk }
    }

    pub(crate) fn read(&self, cgroups: &Hierarchy) -> Option<Reading> {
        self.counters.read(cgroups)
    }

    /// The writable layer, as it was measured last; asks for the next measurement.
    pub(crate) fn disk(&self) -> Option<Measured> {
        self.disk.get()
    }
}

pub(crate) struct PodStats {
    /// None for a pod without a cgroup of its own.
    counters: Option<Counters>,
    network: Mutex<Option<NetStats>>,
}

impl PodStats {
    pub(crate) fn of(cgroup: Option<&CgroupPath>) -> Self {
        Self { counters: cgroup.map(Counters::of), network: Mutex::default() }
    }

    pub(crate) fn read(&self, cgroups: &Hierarchy) -> Option<Reading> {
        self.counters.as_ref()?.read(cgroups)
    }

    /// How many processes there are in the pod's cgroup and below it.
    pub(crate) fn process_count(&self, cgroups: &Hierarchy) -> Option<u64> {
        cgroups.process_count(&self.counters.as_ref()?.cgroup).ok().flatten()
    }

    /// The counters of the namespace that is pinned at `netns`.
    pub(crate) fn network(&self, netns: &Path) -> io::Result<Option<NetSample>> {
        let mut network = lock(&self.network);
        if network.is_none() {
            *network = Some(NetStats::open(netns)?);
        }
        Ok(network.as_ref().and_then(|network| network.sample(cni::INTERFACE)))
    }

    /// Lets go of the namespace.
    pub(crate) fn close_network(&self) {
        *lock(&self.network) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Handles are put in and taken out whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
