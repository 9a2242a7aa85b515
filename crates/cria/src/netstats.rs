//! The counters of a pod's network interfaces.
//!
//! `/proc/thread-self/net/dev`, opened by a thread that is in the pod's network namespace, goes on
//! showing that namespace to whoever holds it: a thread is needed once per pod, and each reading
//! is one `pread`. The open file keeps the namespace alive: drop it when the pod is stopped.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The open counters of a network namespace.
#[derive(Debug)]
pub(crate) struct NetStats(OwnedFd);

/// What went through the interfaces of a pod, without its loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NetSample {
    /// The pod's own, as Kubernetes knows it; `None` if it is not there (yet, or any more).
    pub(crate) default: Option<InterfaceUsage>,
    pub(crate) others: Vec<InterfaceUsage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceUsage {
    pub(crate) name: String,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_errors: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_errors: u64,
}

impl NetStats {
    /// Opens the counters of the namespace that is pinned at `netns`. Blocks for a moment.
    pub(crate) fn open(netns: &Path) -> io::Result<Self> {
        let namespace = fs_err::File::open(netns)?;
        // In a thread that ends: its namespace must be nobody else's.
        let thread = std::thread::Builder::new().name("netstats".into()).spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            open_counters()
        })?;
        thread
            .join()
            .map_err(|_| io::Error::other("the thread in the namespace panicked"))?
            .map(Self)
    }

    /// `None` where the kernel has nothing more to say about the namespace.
    pub(crate) fn sample(&self, default_interface: &str) -> Option<NetSample> {
        // A line of about 120 bytes for each interface.
        let mut text = Vec::with_capacity(2048);
        read_all(&self.0, &mut text).ok()?;
        Some(parse(str::from_utf8(&text).ok()?, default_interface))
    }
}

fn open_counters() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/thread-self/net/dev", flags, Mode::empty())?)
}

fn read_all(file: &OwnedFd, text: &mut Vec<u8>) -> Result<(), Errno> {
    let mut buffer = [0; 2048];
    let mut offset = 0;
    loop {
        match rustix::io::pread(file, &mut buffer, offset) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                text.extend_from_slice(&buffer[..length]);
                offset += length as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// proc_pid_net(5): two lines of heading, then `name: bytes packets errs drop fifo frame
/// compressed multicast bytes packets errs ...`, received first.
fn parse(text: &str, default_interface: &str) -> NetSample {
    let mut sample = NetSample::default();
    for interface in text.lines().skip(2).filter_map(parse_line) {
        if interface.name == default_interface {
            sample.default = Some(interface);
        } else if interface.name != "lo" {
            sample.others.push(interface);
        }
    }
    sample
}

fn parse_line(line: &str) -> Option<InterfaceUsage> {
    // From the right: a name may hold a colon, a number does not.
    let (name, numbers) = line.rsplit_once(':')?;
    let mut numbers = numbers.split_whitespace().map(|number| number.parse().ok());
    let mut skip_to = |index: usize| numbers.nth(index).flatten();
    Some(InterfaceUsage {
        name: name.trim_start().to_owned(),
        rx_bytes: skip_to(0)?,
        rx_errors: skip_to(1)?,
        tx_bytes: skip_to(5)?,
        tx_errors: skip_to(1)?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;

    use nix::sched::unshare;

    use super::*;

    const HEADING: &str =
        "Inter-|   Receive                |  Transmit\n face |bytes    packets |bytes\n";

    fn usage(name: &str, [rx_bytes, rx_errors, tx_bytes, tx_errors]: [u64; 4]) -> InterfaceUsage {
        InterfaceUsage { name: name.into(), rx_bytes, rx_errors, tx_bytes, tx_errors }
    }

    #[test]
    fn the_counters_of_every_interface_but_the_loopback_are_read() {
        let text = format!(
            "{HEADING}    lo:     500       5    0    0    0     0          0         0      500       5    0    0    0     0       0          0\n  \
             eth0: 18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
             net1:1:20 2 0 4 5 6 7 8 30 10 1 12 13 14 15 16\n\
             broken: 1 2\n"
        );
        let sample = parse(&text, "eth0");
        assert_eq!(sample.default, Some(usage("eth0", [u64::MAX, 3, 9, 11])));
        assert_eq!(sample.others, [usage("net1:1", [20, 0, 30, 1])]);
        assert_eq!(parse(HEADING, "eth0"), NetSample::default());
    }

    #[test]
    fn a_namespace_is_read_from_outside_and_its_numbers_are_the_kernels() {
        let (send_path, path) = mpsc::channel();
        let (stay, end) = mpsc::channel::<()>();
        let inside = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // `eth0` and its peer in one namespace, without IPv6 that would send unasked.
            for command in [
                "link add eth0 type veth peer name net1",
                "link set eth0 addrgenmode none",
                "link set net1 addrgenmode none",
                "addr add 10.9.0.1/24 dev eth0",
                "link set eth0 up",
                "link set net1 up",
            ] {
                assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
            }
            let (process, thread) = (std::process::id(), nix::unistd::gettid());
            send_path.send(format!("/proc/{process}/task/{thread}/ns/net")).unwrap();
            let _ = end.recv();
        });
        let netns = path.recv().unwrap();
        let before = fs_err::read_link("/proc/thread-self/ns/net").unwrap();
        let stats = NetStats::open(Path::new(&netns)).unwrap();
        assert_eq!(fs_err::read_link("/proc/thread-self/ns/net").unwrap(), before);

        let traffic =
            "echo x | busybox nc -u -w 1 10.9.0.9 9 & busybox arping -c 1 -w 1 -I eth0 10.9.0.9";
        let entered = ["--net=".to_owned() + &netns, "sh".into(), "-c".into(), traffic.into()];
        Command::new("nsenter").args(entered).output().unwrap();
        let sample = stats.sample("eth0").unwrap();
        let (default, other) = (sample.default.unwrap(), &sample.others[..]);
        let output = Command::new("nsenter")
            .arg("--net=".to_owned() + &netns)
            .args(["ip", "-json", "-stats", "link", "show", "eth0"])
            .output()
            .unwrap();
        let kernel: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let counter = |way: &str, what: &str| kernel[0]["stats64"][way][what].as_u64().unwrap();
        let counters = [
            counter("rx", "bytes"),
            counter("rx", "errors"),
            counter("tx", "bytes"),
            counter("tx", "errors"),
        ];
        assert_eq!(default, usage("eth0", counters));
        assert!(default.tx_bytes > 0, "{default:?}");
        assert_eq!(other.iter().map(|usage| usage.name.as_str()).collect::<Vec<_>>(), ["net1"]);
        assert!(other[0].rx_bytes > 0, "{other:?}");

        drop(stay);
        inside.join().unwrap();
    }

    #[test]
    fn a_namespace_that_is_not_there_is_an_error() {
        assert!(NetStats::open(Path::new("/proc/self/ns/absent")).is_err());
        assert!(NetStats::open(Path::new("/proc/self/ns/uts")).is_err());
    }
}
