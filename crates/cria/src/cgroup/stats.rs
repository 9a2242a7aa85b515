//! What a cgroup has used: one read per file, through directories that are kept open, without a
//! lock or an allocation.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::hierarchy::{Hierarchy, Version};
use super::parse::{self, Psi};
use super::path::CgroupPath;

/// The directories of a cgroup that hold its accounts.
#[derive(Debug)]
pub(crate) struct CgroupStats(Dirs);

#[derive(Debug)]
enum Dirs {
    V1 { cpu: Option<OwnedFd>, memory: Option<OwnedFd>, pids: Option<OwnedFd> },
    V2(OwnedFd),
}

/// What was used until now. Absent is what this node does not count.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) cpu: Option<Cpu>,
    pub(crate) memory: Option<Memory>,
    pub(crate) swap: Option<Swap>,
    pub(crate) io_psi: Option<Psi>,
    /// Processes and threads.
    pub(crate) tasks: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) usage_ns: u64,
    pub(crate) psi: Option<Psi>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Memory {
    pub(crate) usage_bytes: u64,
    /// Without the file pages that the kernel would drop first.
    pub(crate) working_set_bytes: u64,
    /// What is left of the cgroup's own limit, if it has one.
    pub(crate) available_bytes: Option<u64>,
    pub(crate) rss_bytes: u64,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) psi: Option<Psi>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Swap {
    pub(crate) usage_bytes: u64,
    pub(crate) available_bytes: Option<u64>,
}

/// The cgroup was removed.
struct Gone;

/// The longest file, `memory.stat`, has about 3 KiB.
const BUFFER: usize = 8 << 10;

type Buffer = [u8; BUFFER];

impl CgroupStats {
    /// `None` if the cgroup is not there.
    pub(crate) fn open(hierarchy: &Hierarchy, cgroup: &CgroupPath) -> io::Result<Option<Self>> {
        let open = |controller| match hierarchy.dir(controller, cgroup) {
            Some(dir) => open_dir(&dir),
            None => Ok(None),
        };
        Ok(match hierarchy.version() {
            Version::V2 => open("")?.map(|dir| Self(Dirs::V2(dir))),
            Version::V1 => {
                let [cpu, memory, pids] = [open("cpuacct")?, open("memory")?, open("pids")?];
                let exists = cpu.is_some() || memory.is_some() || pids.is_some();
                exists.then_some(Self(Dirs::V1 { cpu, memory, pids }))
            }
        })
    }

    /// `None` if the cgroup has been removed since.
    pub(crate) fn sample(&self) -> Option<Sample> {
        let mut buffer = [0; BUFFER];
        match &self.0 {
            Dirs::V1 { cpu, memory, pids } => {
                sample_v1(cpu.as_ref(), memory.as_ref(), pids.as_ref(), &mut buffer)
            }
            Dirs::V2(dir) => sample_v2(dir, &mut buffer),
        }
        .ok()
    }
}

fn sample_v1(
    cpu: Option<&OwnedFd>,
    memory: Option<&OwnedFd>,
    pids: Option<&OwnedFd>,
    buffer: &mut Buffer,
) -> Result<Sample, Gone> {
    let mut sample = Sample::default();
    if let Some(dir) = cpu {
        let usage = read(dir, "cpuacct.usage", buffer)?.and_then(parse::number);
        sample.cpu = usage.map(|usage_ns| Cpu { usage_ns, psi: None });
    }
    if let Some(dir) = memory {
        let usage = read(dir, "memory.usage_in_bytes", buffer)?.and_then(parse::number);
        let limit = read(dir, "memory.limit_in_bytes", buffer)?.and_then(parse::limit);
        let stat = read(dir, "memory.stat", buffer)?.unwrap_or_default();
        sample.memory = usage.and_then(|usage| memory_v1(usage, limit, stat));
        sample.swap = swap_v1(stat);
    }
    if let Some(dir) = pids {
        sample.tasks = read(dir, "pids.current", buffer)?.and_then(parse::number);
    }
    Ok(sample)
}

fn sample_v2(dir: &OwnedFd, buffer: &mut Buffer) -> Result<Sample, Gone> {
    let cpu_stat = read(dir, "cpu.stat", buffer)?.unwrap_or_default();
    let [usage_us] = parse::fields(cpu_stat, ["usage_usec"]);
    let mut psi = |file| read(dir, file, buffer).map(|text| text.and_then(parse::pressure));
    let [cpu_psi, memory_psi, io_psi] =
        [psi("cpu.pressure")?, psi("memory.pressure")?, psi("io.pressure")?];
    let mut number = |file| read(dir, file, buffer).map(|text| text.and_then(parse::number));
    let usage = number("memory.current")?;
    let limit = number("memory.max")?;
    let swap = number("memory.swap.current")?;
    let swap_limit = number("memory.swap.max")?;
    let tasks = number("pids.current")?;
    let stat = read(dir, "memory.stat", buffer)?.unwrap_or_default();
    let memory = usage.and_then(|usage| memory_v2(usage, limit, stat));
    Ok(Sample {
        cpu: usage_us.map(|us| Cpu { usage_ns: us.saturating_mul(1000), psi: cpu_psi }),
        memory: memory.map(|memory| Memory { psi: memory_psi, ..memory }),
        swap: swap.map(|usage_bytes| Swap {
            usage_bytes,
            available_bytes: swap_limit.map(|limit| limit.saturating_sub(usage_bytes)),
        }),
        io_psi,
        tasks,
    })
}

fn memory_v1(usage: u64, limit: Option<u64>, stat: &[u8]) -> Option<Memory> {
    // With "total": the cgroup and all below it, as everywhere on v2.
    let keys = ["total_rss", "total_inactive_file", "total_pgfault", "total_pgmajfault"];
    memory(usage, limit, parse::fields(stat, keys))
}

fn memory_v2(usage: u64, limit: Option<u64>, stat: &[u8]) -> Option<Memory> {
    memory(usage, limit, parse::fields(stat, ["anon", "inactive_file", "pgfault", "pgmajfault"]))
}

fn memory(usage: u64, limit: Option<u64>, stat: [Option<u64>; 4]) -> Option<Memory> {
    let [rss, inactive_file, faults, major_faults] = stat;
    // The two files were not read at the same instant.
    let working_set = usage.saturating_sub(inactive_file?);
    Some(Memory {
        usage_bytes: usage,
        working_set_bytes: working_set,
        available_bytes: limit.map(|limit| limit.saturating_sub(working_set)),
        rss_bytes: rss?,
        page_faults: faults?,
        major_page_faults: major_faults?,
        psi: None,
    })
}

/// v1 limits swap only together with memory, from which no share of swap follows.
fn swap_v1(stat: &[u8]) -> Option<Swap> {
    let [usage] = parse::fields(stat, ["total_swap"]);
    Some(Swap { usage_bytes: usage?, available_bytes: None })
}

fn open_dir(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The file's text; `None` if this kernel or this cgroup has no such file.
fn read<'b>(dir: &OwnedFd, file: &str, buffer: &'b mut Buffer) -> Result<Option<&'b [u8]>, Gone> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match openat(dir, file, flags, Mode::empty()).and_then(|file| fill(&file, buffer)) {
        Ok(length) => Ok(Some(&buffer[..length])),
        // The kernel's answers about a cgroup that was removed while we held it.
        Err(Errno::NODEV) => Err(Gone),
        Err(_) if is_removed(dir) => Err(Gone),
        Err(_) => Ok(None),
    }
}

fn fill(file: impl AsFd, buffer: &mut Buffer) -> Result<usize, Errno> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(&file, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn is_removed(dir: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(dir, "cgroup.procs", flags, Mode::empty()).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use crate::cgroup::tests::{OwnCgroup, in_cgroup};

    #[test]
    fn memory_of_both_versions_from_their_files() {
        let v1 = b"rss 1\ntotal_rss 300\ntotal_inactive_file 100\ntotal_pgfault 7\ntotal_pgmajfault 2\ntotal_swap 9\n";
        let v2 = b"anon 300\nfile 9\ninactive_file 100\npgfault 7\npgmajfault 2\n";
        let expected = Memory {
            usage_bytes: 1000,
            working_set_bytes: 900,
            available_bytes: None,
            rss_bytes: 300,
            page_faults: 7,
            major_page_faults: 2,
            psi: None,
        };
        for (of, stat) in [(memory_v1 as fn(_, _, &[u8]) -> _, &v1[..]), (memory_v2, &v2[..])] {
            assert_eq!(of(1000, None, stat), Some(expected.clone()));
            assert_eq!(of(1000, Some(1500), stat).unwrap().available_bytes, Some(600));
            assert_eq!(of(1000, Some(800), stat).unwrap().available_bytes, Some(0));
            assert_eq!(of(50, None, stat).unwrap().working_set_bytes, 0);
            assert_eq!(of(1000, None, b""), None);
        }
        assert_eq!(swap_v1(v1), Some(Swap { usage_bytes: 9, available_bytes: None }));
    }

    #[test]
    fn a_sample_of_v2_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let psi = "some avg10=0.00 avg60=0.00 avg300=0.50 total=5\n";
        for (file, text) in [
            ("cgroup.procs", ""),
            ("cpu.stat", "usage_usec 2500\nuser_usec 1\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 300\ninactive_file 100\npgfault 7\npgmajfault 2\n"),
            ("memory.swap.current", "4\n"),
            ("memory.swap.max", "10\n"),
            ("pids.current", "3\n"),
            ("cpu.pressure", psi),
        ] {
            fs_err::write(dir.path().join(file), text).unwrap();
        }
        let stats = CgroupStats(Dirs::V2(open_dir(dir.path()).unwrap().unwrap()));
        let sample = stats.sample().unwrap();
        let cpu = sample.cpu.unwrap();
        assert_eq!((cpu.usage_ns, cpu.psi.unwrap().some.total_us), (2_500_000, 5));
        assert_eq!(sample.memory.unwrap().working_set_bytes, 900);
        assert_eq!(sample.swap, Some(Swap { usage_bytes: 4, available_bytes: Some(6) }));
        assert_eq!((sample.tasks, sample.io_psi), (Some(3), None));

        drop(dir);
        assert_eq!(stats.sample(), None, "the cgroup is gone");
    }

    #[test]
    fn a_real_cgroup_counts_what_is_in_it_until_it_is_removed() {
        let hierarchy = Hierarchy::detect().unwrap();
        let cgroup = OwnCgroup::new(&hierarchy);
        let stats = CgroupStats::open(&hierarchy, &cgroup.path).unwrap().unwrap();
        // Much memory: the kernel sums up small changes only every few seconds.
        let script = "sleep 600 & x=$(head -c 8000000 /dev/zero | tr '\\0' x); echo; read end";
        let process = in_cgroup(&cgroup, script);

        let sample = stats.sample().unwrap();
        assert!(sample.cpu.unwrap().usage_ns > 1_000_000, "it computed");
        let memory = sample.memory.unwrap();
        assert!(
            memory.usage_bytes >= memory.working_set_bytes && memory.rss_bytes > 8_000_000,
            "{memory:?}"
        );
        assert!(memory.page_faults > 0 && memory.available_bytes.is_none(), "{memory:?}");
        assert_eq!(sample.tasks, Some(2), "the shell and its sleep");
        assert_eq!(hierarchy.processes(&cgroup.path).unwrap().len(), 2);

        drop(process);
        drop(cgroup);
        assert_eq!(stats.sample(), None);
    }
}
