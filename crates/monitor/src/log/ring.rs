//! The ring between the loop and the log writer, in the file `log.state`: a shared mapping that
//! outlives a killed monitor, so that its replacement goes on with every byte.
//!
//! The file: a page of words, two stream buffers, the ring. The words hold a generation and two
//! slots; a change is written to the slot that is not in force, then the generation names it. A
//! SIGKILL between any two instructions leaves the old state or the new one.
//!
//! The ring holds whole records only, and `offset` is always the end of one in the log file: what
//! the file holds beyond it is cut off, and written again from the ring.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::{self, RingMemory};

pub(crate) const FILE: &str = "log.state";
const MAGIC: u64 = u64::from_le_bytes(*b"crialog1");
const HEADER_BYTES: usize = 4096;
/// Two lines: what is left of one can then always be moved to the front without overlap, and a
/// kill under way leaves the original.
pub(super) const STREAM_BYTES: usize = 2 * super::format::LINE_BYTES;
const RING_BYTES: usize = 64 << 10;
const SLOT_WORDS: usize = 16;

/// A stream's bytes that are in no record yet: `start..end` of its buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The last record was a `P`: the line still needs its `F`.
    pub(super) in_line: bool,
}

/// What a replacement must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) device: u64,
    pub(super) inode: u64,
    /// The end of the last complete record in the log file.
    pub(super) offset: u64,
    pub(super) ring_start: usize,
    pub(super) ring_len: usize,
    pub(super) streams: [Held; 2],
}

impl Slot {
    fn words(&self) -> [u64; SLOT_WORDS] {
        let mut words = [0; SLOT_WORDS];
        words[..3].copy_from_slice(&[self.device, self.inode, self.offset]);
        words[3..5].copy_from_slice(&[self.ring_start as u64, self.ring_len as u64]);
        for (words, held) in words[5..].chunks_exact_mut(3).zip(&self.streams) {
            words.copy_from_slice(&[held.start as u64, held.end as u64, held.in_line.into()]);
        }
        words
    }

    /// `None` for what no monitor wrote.
    fn from_words(words: [u64; SLOT_WORDS]) -> Option<Self> {
        let place = |word: u64, end: usize| usize::try_from(word).ok().filter(|at| *at <= end);
        let held = |words: &[u64]| {
            let end = place(words[1], STREAM_BYTES)?;
            Some(Held { start: place(words[0], end)?, end, in_line: words[2] != 0 })
        };
        Some(Self {
            device: words[0],
            inode: words[1],
            offset: words[2],
            ring_start: place(words[3], RING_BYTES - 1)?,
            ring_len: place(words[4], RING_BYTES)?,
            streams: [held(&words[5..8])?, held(&words[8..11])?],
        })
    }
}

/// Which log file the writer is to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Open {
    New,
    /// The file that a dead monitor was writing.
    Continued,
}

/// What loop and writer tell each other. Both hold the lock for moments, never while writing.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) slot: Slot,
    pub(super) open: Option<Open>,
    /// How often the loop has asked for a file, and up to which of these the writer has answered.
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// The latest answer to `open`.
    pub(super) opened: Option<io::Result<()>>,
    /// Bytes of output that are in no file, and the latest reason.
    pub(super) lost: u64,
    pub(super) error: Option<io::Error>,
    /// Nobody waits for the writer any more: it ends, and nothing that it says is heard.
    pub(super) given_up: bool,
    pub(super) writer_waits: bool,
    /// The loop wants to know of free space, or of an empty ring.
    pub(super) loop_waits: bool,
}

pub(super) struct Ring {
    pub(super) path: PathBuf,
    pub(super) memory: RingMemory,
    /// Readable when the writer has news for the loop.
    pub(super) news: EventFd,
    header: &'static [AtomicU64],
    control: Mutex<Control>,
    work: Condvar,
}

/// The stream buffers, which are the loop's alone.
pub(super) type Streams = [&'static mut [u8]; 2];

impl Ring {
    /// A new log's ring. Its memory is reserved now: a full file system must not become a SIGBUS.
    pub(super) fn create(run_dir: &Path, path: PathBuf) -> io::Result<(Arc<Self>, Streams)> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(run_dir.join(FILE))?;
        let length = i64::try_from(HEADER_BYTES + 2 * STREAM_BYTES + RING_BYTES)
            .map_err(io::Error::other)?;
        fallocate(file.as_fd(), FallocateFlags::empty(), 0, length)?;
        let (ring, streams) = Self::map(&file, path)?;
        ring.header[0].store(MAGIC, Ordering::Relaxed);
        Ok((Arc::new(ring), streams))
    }

    /// A dead monitor's ring; `NotFound` if it had none yet.
    pub(super) fn adopt(run_dir: &Path, path: PathBuf) -> io::Result<(Arc<Self>, Streams)> {
        let file = OpenOptions::new().read(true).write(true).open(run_dir.join(FILE))?;
        let (ring, streams) = Self::map(&file, path)?;
        let slot = ring.in_force().ok_or(io::ErrorKind::InvalidData)?;
        ring.lock().slot = slot;
        Ok((Arc::new(ring), streams))
    }

    fn map(file: &File, path: PathBuf) -> io::Result<(Self, Streams)> {
        let memory = sys::map_shared(file, HEADER_BYTES, STREAM_BYTES, RING_BYTES)?;
        let ring = Self {
            path,
            memory: memory.ring,
            news: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            header: memory.header,
            control: Mutex::default(),
            work: Condvar::new(),
        };
        Ok((ring, memory.streams))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        // A panic aborts the whole program: no lock is ever poisoned.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the slot in `control` the one in force.
    pub(super) fn commit(&self, control: &Control) {
        let generation = self.header[1].load(Ordering::Relaxed).wrapping_add(1);
        for (word, value) in self.slot_words(generation).iter().zip(control.slot.words()) {
            word.store(value, Ordering::Relaxed);
        }
        self.header[1].store(generation, Ordering::Release);
    }

    fn in_force(&self) -> Option<Slot> {
        if self.header[0].load(Ordering::Relaxed) != MAGIC {
            return None;
        }
        let generation = self.header[1].load(Ordering::Acquire);
        let words = self.slot_words(generation);
        Slot::from_words(std::array::from_fn(|at| words[at].load(Ordering::Relaxed)))
    }

    fn slot_words(&self, generation: u64) -> &[AtomicU64] {
        let start = if generation.is_multiple_of(2) { SLOT_WORDS } else { 2 * SLOT_WORDS };
        &self.header[start..start + SLOT_WORDS]
    }

    /// Wakes the writer if it sleeps.
    pub(super) fn call_writer(&self, control: &mut Control) {
        if std::mem::take(&mut control.writer_waits) {
            self.work.notify_one();
        }
    }

    pub(super) fn wait_for_work<'a>(
        &self,
        mut control: MutexGuard<'a, Control>,
    ) -> MutexGuard<'a, Control> {
        control.writer_waits = true;
        self.work.wait(control).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_a_moment<'a>(
        &self,
        mut control: MutexGuard<'a, Control>,
        moment: std::time::Duration,
    ) -> MutexGuard<'a, Control> {
        control.writer_waits = true;
        let (control, _) =
            self.work.wait_timeout(control, moment).unwrap_or_else(PoisonError::into_inner);
        control
    }

    pub(super) fn call_loop(&self) {
        // Full at 2^64 - 1 unread calls; one is as good as many.
        let _ = self.news.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(seed: usize) -> Slot {
        Slot {
            device: 1,
            inode: u64::MAX,
            offset: seed as u64 * 3,
            ring_start: seed,
            ring_len: RING_BYTES - seed,
            streams: [
                Held { start: seed, end: STREAM_BYTES - seed, in_line: true },
                Held { start: 0, end: 0, in_line: seed.is_multiple_of(2) },
            ],
        }
    }

    #[test]
    fn the_slot_in_force_is_the_last_one_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (ring, _) = Ring::create(dir.path(), "log".into()).unwrap();
        assert_eq!(ring.in_force(), Some(Slot::default()));
        for seed in 0..5 {
            ring.lock().slot = slot(seed);
            ring.commit(&ring.lock());
            let (adopted, _) = Ring::adopt(dir.path(), "log".into()).unwrap();
            assert_eq!(adopted.lock().slot, slot(seed));
        }
    }

    #[test]
    fn a_slot_half_written_is_not_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let (ring, _) = Ring::create(dir.path(), "log".into()).unwrap();
        ring.lock().slot = slot(4);
        ring.commit(&ring.lock());
        for word in 0..SLOT_WORDS {
            let generation = ring.header[1].load(Ordering::Relaxed);
            ring.slot_words(generation + 1)[word].store(u64::MAX, Ordering::Relaxed);
            assert_eq!(ring.in_force(), Some(slot(4)));
        }
    }

    #[test]
    fn what_no_monitor_wrote_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kind(Ring::adopt(dir.path(), "log".into())), io::ErrorKind::NotFound);
        std::fs::write(dir.path().join(FILE), b"short").unwrap();
        assert_eq!(kind(Ring::adopt(dir.path(), "log".into())), io::ErrorKind::UnexpectedEof);
        std::fs::write(dir.path().join(FILE), vec![0xff; 1 << 20]).unwrap();
        assert_eq!(kind(Ring::adopt(dir.path(), "log".into())), io::ErrorKind::InvalidData);
    }

    fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
        result.err().unwrap().kind()
    }

    #[test]
    fn bytes_go_round_the_ring_s_end() {
        let dir = tempfile::tempdir().unwrap();
        let (ring, _) = Ring::create(dir.path(), "log".into()).unwrap();
        let memory = ring.memory;
        let after = memory.put(memory.len() - 3, b"abcdef");
        assert_eq!(after, 3);
        let read: Vec<u8> = (0..6).map(|at| memory.byte(memory.len() - 3 + at)).collect();
        assert_eq!(read, b"abcdef");
        let path = dir.path().join("out");
        let file = File::create(&path).unwrap();
        assert_eq!(memory.write_to(&file, memory.len() - 2, 4).unwrap(), 4);
        assert_eq!(std::fs::read(path).unwrap(), b"bcde");
    }
}
