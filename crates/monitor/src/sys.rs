//! Kernel calls that no safe wrapper covers. The program's only `unsafe` lives here.

#![expect(unsafe_code, reason = "raw system calls, the log's shared memory, and pre_exec")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cria_monitor::exit::Status;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;

/// A descriptor for the process `pid`, which must be unable to be reaped behind our back.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the call above has just opened `fd` for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals the process behind `pidfd`: never another one that got its number.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: the siginfo pointer may be null; the rest are integers.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// `struct pidfd_info` as of kernel 6.15; newer kernels take this length as it is.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// How the process behind `pidfd` ended, for those who are not its parent: kernel 6.15 and newer
/// tell once the parent has reaped it.
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<Status> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    nix::ioctl_readwrite!(pidfd_get_info, 0xff, 11, PidfdInfo);
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's number carries PidfdInfo's size, which is all the kernel writes.
    unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & PIDFD_INFO_EXIT != 0).then(|| status_of(info.exit_code))
}

/// What a status of wait(2) says.
pub(crate) fn status_of(wait_status: i32) -> Status {
    let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    match wait_status & 0x7f {
        0 => Status::Code(byte(wait_status >> 8)),
        signal => Status::Signal(byte(signal)),
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Wait {
    /// Leaves the zombie, and with it its pid and status.
    Look,
    Reap,
}

/// The child `pid` (any child, if none is named), if it has ended; `None` if it has not. ECHILD
/// if there is no such child.
pub(crate) fn wait(pid: Option<i32>, wait: Wait) -> io::Result<Option<(i32, Status)>> {
    let (kind, id) = match pid {
        Some(pid) => (libc::P_PID, libc::id_t::try_from(pid).unwrap_or_default()),
        None => (libc::P_ALL, 0),
    };
    let look = match wait {
        Wait::Look => libc::WNOWAIT,
        Wait::Reap => 0,
    };
    // SAFETY: siginfo_t is plain numbers, for which all zeroes is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | look;
    // SAFETY: waitid writes one siginfo_t, and `info` is one.
    Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, flags) })?;
    // SAFETY: after waitid these two read the fields of a SIGCHLD; all zero if nobody had ended.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    let value = u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let status = match info.si_code {
        libc::CLD_EXITED => Status::Code(value),
        _ => Status::Signal(value),
    };
    Ok((pid != 0).then_some((pid, status)))
}

/// Makes `command` start as if nothing of the monitor had been there: in a session of its own, no
/// signal blocked or ignored, umask 022, killed should the monitor die, and with `oom_score_adj`
/// before its first instruction, for whatever it starts inherits it.
pub(crate) fn as_oci_runtime(command: &mut Command, oom_score_adj: i32) {
    let monitor = Pid::this();
    let adjustment = format!("{oom_score_adj}").into_bytes();
    // SAFETY: after fork only async-signal-safe code may run. `clean_child` makes system calls on
    // memory that exists already; it takes no lock and allocates nothing.
    unsafe { command.pre_exec(move || clean_child(monitor, &adjustment)) };
}

fn clean_child(monitor: Pid, oom_score_adj: &[u8]) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() != monitor {
        // It died before the line above: nobody would end us.
        return Err(Errno::ESRCH.into());
    }
    // What a deadline ends as one; and the session of an exec for which the runtime makes none.
    nix::unistd::setsid()?;
    // The kernel's struct sigaction (handler, flags, restorer, mask), not the C library's, which
    // keeps signals 32 and 33 to itself: all zeroes is the default action.
    let default = [0u64; 4];
    let none = ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: the kernel reads one struct sigaction, which is at most as long as `default`,
        // and writes nothing. Signals that cannot be set are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8) };
    }
    SigSet::empty().thread_set_mask()?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    // What the node refuses has been clamped and warned about by the daemon.
    let _ = write_file(c"/proc/self/oom_score_adj", oom_score_adj);
    Ok(())
}

fn write_file(path: &CStr, content: &[u8]) -> nix::Result<usize> {
    let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(path, flags, Mode::empty())?;
    nix::unistd::write(&file, content)
}

/// The socket that is our standard input, and nothing else of what we inherited: the standard
/// descriptors become /dev/null, all others are closed. For the program's first lines only.
pub(crate) fn take_socket() -> io::Result<OwnedFd> {
    close_range(3, u32::MAX)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(socket)
}

/// Closes every descriptor, `last` among them: the process has no other owner of one.
pub(crate) fn close_everything(last: OwnedFd) -> io::Result<()> {
    let _ = last.into_raw_fd();
    close_range(0, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: callers are at a point where the program owns no descriptor in the range, or has
    // given it up; nothing is used after it was closed.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Waits for one of `signals`, which must be blocked: its number, and the pid of the process that
/// sent it, 0 for one outside our PID namespace. `None` if another signal interrupted, or if none
/// came within `patience`.
pub(crate) fn next_signal(signals: &SigSet, patience: Option<Duration>) -> Option<(i32, i32)> {
    // SAFETY: siginfo_t is plain numbers, for which all zeroes is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let patience = patience.map(TimeSpec::from_duration);
    let limit = patience.as_ref().map_or(ptr::null(), |limit| ptr::from_ref(limit.as_ref()));
    // SAFETY: sigtimedwait reads one signal set and, unless it is null, one timespec, both of which
    // outlive the call, and writes one siginfo_t.
    let signal = unsafe { libc::sigtimedwait(signals.as_ref(), &raw mut info, limit) };
    // SAFETY: for signals sent by kill and for SIGCHLD the pid is set; otherwise it is zero.
    (signal > 0).then(|| (signal, unsafe { info.si_pid() }))
}

/// Gives up every capability, for good.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const MOST: libc::c_ulong = 63;
    for capability in 0..=MOST {
        // SAFETY: takes an integer. Numbers beyond the kernel's last are refused, which is as good.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let header: [u32; 2] = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: version 3 reads a header of two words (version; pid, 0 for us) and two times three
    // words of capabilities.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    Errno::result(result)?;
    Ok(())
}

/// Sets the loopback device of our network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain numbers, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    // SAFETY: both requests read or write one ifreq, whose name ends in a zero.
    unsafe {
        get_flags(socket.as_raw_fd(), &raw mut request)?;
        let up = i16::try_from(libc::IFF_UP).map_err(io::Error::other)?;
        request.ifr_ifru.ifru_flags |= up;
        set_flags(socket.as_raw_fd(), &raw const request)?;
    }
    Ok(())
}

/// Where `byte` is in `bytes`: the C library's, at the speed of the machine's widest registers.
pub(crate) fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    // SAFETY: memchr reads `bytes.len()` bytes from the slice's start, which is what it has.
    let found = unsafe { libc::memchr(bytes.as_ptr().cast(), i32::from(byte), bytes.len()) };
    (!found.is_null()).then(|| found.addr() - bytes.as_ptr().addr())
}

/// A file's memory, in three parts with one owner each.
pub(crate) struct SharedMemory {
    pub(crate) header: &'static [AtomicU64],
    pub(crate) streams: [&'static mut [u8]; 2],
    pub(crate) ring: RingMemory,
}

/// Maps `file`, which must be at least as long as the parts together, for as long as the process
/// lives. Once per process and file.
pub(crate) fn map_shared(
    file: &File,
    header: usize,
    stream: usize,
    ring: usize,
) -> io::Result<SharedMemory> {
    let length = header + 2 * stream + ring;
    if file.metadata()?.len() < length as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at a place of the kernel's choice replaces no other.
    let base =
        unsafe { libc::mmap(ptr::null_mut(), length, read_write, shared, file.as_raw_fd(), 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let base = base.cast::<u8>();
    let words = header / size_of::<AtomicU64>();
    // SAFETY: all parts lie within the mapping of `length` bytes, do not overlap, and are never
    // unmapped. Each becomes one reference or one RingMemory, here and only here; other processes
    // keep out of a running monitor's file. The mapping is aligned to a page, zeroes are values.
    unsafe {
        Ok(SharedMemory {
            header: std::slice::from_raw_parts(base.cast::<AtomicU64>(), words),
            streams: [0, 1].map(|which| {
                std::slice::from_raw_parts_mut(base.add(header + which * stream), stream)
            }),
            ring: RingMemory {
                base: NonNull::new_unchecked(base.add(header + 2 * stream)),
                length: ring,
            },
        })
    }
}

/// The bytes of the log's ring: the loop fills the free part while the writer hands the full part
/// to the kernel. Which part is whose is settled under the ring's lock (`log/ring.rs`); here only
/// raw copies are made, never a reference that the other thread could contradict.
#[derive(Clone, Copy)]
pub(crate) struct RingMemory {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is never unmapped, and the parts that two threads touch at once are disjoint
// (see above).
unsafe impl Send for RingMemory {}
// SAFETY: as for Send.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    pub(crate) fn len(self) -> usize {
        self.length
    }

    /// Copies `bytes` to `at` and on, round the end; returns the place after them.
    pub(crate) fn put(self, at: usize, bytes: &[u8]) -> usize {
        assert!(at < self.length && bytes.len() <= self.length);
        let (first, rest) = bytes.split_at(bytes.len().min(self.length - at));
        // SAFETY: `first` fits between `at` and the ring's end, `rest` before `at`; a mapping and
        // a slice from elsewhere do not overlap.
        unsafe {
            let base = self.base.as_ptr();
            ptr::copy_nonoverlapping(first.as_ptr(), base.add(at), first.len());
            ptr::copy_nonoverlapping(rest.as_ptr(), base, rest.len());
        }
        (at + bytes.len()) % self.length
    }

    pub(crate) fn byte(self, at: usize) -> u8 {
        // SAFETY: the place is within the ring.
        unsafe { self.base.as_ptr().add(at % self.length).read_volatile() }
    }

    /// Writes up to `count` bytes from `at` on, round the end, in one system call.
    pub(crate) fn write_to(self, file: &File, at: usize, count: usize) -> io::Result<usize> {
        assert!(at < self.length && count <= self.length);
        let first = count.min(self.length - at);
        let base = self.base.as_ptr();
        let parts = [
            // SAFETY: `at` is within the ring.
            libc::iovec { iov_base: unsafe { base.add(at) }.cast(), iov_len: first },
            libc::iovec { iov_base: base.cast(), iov_len: count - first },
        ];
        // SAFETY: both parts lie within the ring; the kernel reads them and keeps nothing.
        let written = unsafe { libc::writev(file.as_raw_fd(), parts.as_ptr(), 2) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}
