//! A container's log: bytes of two streams become CRI records in a file.
//!
//! The loop reads a stream into its buffer and formats what is complete into the ring
//! ([`Log::take_in`]); the writer thread moves the ring into the file. Where the ring is full the
//! loop stops reading until there is news. Nothing is allocated per line or read.

mod format;
mod ring;
mod writer;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use format::{LINE_BYTES, OVERHEAD_BYTES, Piece, Prefix, Tag, next_piece};
use ring::{Held, Open, Ring, STREAM_BYTES, Streams};

/// Which of the two outputs; a terminal has only the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout = 0,
    Stderr = 1,
}

impl Output {
    fn name(self) -> &'static [u8; 6] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// What one read of an output came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many bytes.
    Bytes(usize),
    /// There is nothing at the moment.
    Nothing,
    End,
    /// So many bytes, and the ring is full: news will come, until then nothing can be taken in.
    Full(usize),
}

pub(crate) struct Log {
    ring: Arc<Ring>,
    buffers: Streams,
    held: [Held; 2],
    /// Where the last read of each stream ended.
    read: [usize; 2],
    /// Losses told so far.
    told: u64,
    given_up: bool,
}

impl Log {
    /// A new log, whose file is being opened: see [`Log::opened`].
    pub(crate) fn create(run_dir: &Path, path: PathBuf) -> io::Result<Self> {
        let (ring, buffers) = Ring::create(run_dir, path)?;
        Self::with_writer(ring, buffers, Open::New)
    }

    /// The log of a monitor that died; `None` if it had not come to open one.
    pub(crate) fn adopt(run_dir: &Path, path: PathBuf) -> io::Result<Option<Self>> {
        match Ring::adopt(run_dir, path) {
            Ok((ring, buffers)) => Self::with_writer(ring, buffers, Open::Continued).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn with_writer(ring: Arc<Ring>, buffers: Streams, open: Open) -> io::Result<Self> {
        let held = {
            let mut control = ring.lock();
            control.open = Some(open);
            control.asked = 1;
            control.slot.streams
        };
        writer::spawn(Arc::clone(&ring))?;
        Ok(Self { ring, buffers, held, read: [0; 2], told: 0, given_up: false })
    }

    /// Readable when the writer has news: a file opened, space in the ring, losses.
    pub(crate) fn news(&self) -> BorrowedFd<'_> {
        self.ring.news.as_fd()
    }

    pub(crate) fn clear_news(&self) {
        // Nothing to read is the only failure, and as good.
        let _ = self.ring.news.read();
    }

    /// Asks the writer to open the file of that name anew.
    pub(crate) fn reopen(&self) {
        let mut control = self.ring.lock();
        control.open = Some(Open::New);
        control.asked += 1;
        self.ring.call_writer(&mut control);
    }

    /// How the last opening that was asked for went, once it is known; told once.
    pub(crate) fn opened(&self) -> Option<io::Result<()>> {
        let mut control = self.ring.lock();
        if control.answered < control.asked { None } else { control.opened.take() }
    }

    /// Reads once from `output` and formats what is complete.
    pub(crate) fn take_in(&mut self, output: Output, source: BorrowedFd<'_>) -> Taken {
        let which = output as usize;
        if self.given_up {
            return self.lose(which, source);
        }
        // What did not fit the last time goes first.
        if !self.format(output) {
            return Taken::Full(0);
        }
        self.make_room(which);
        let end = self.held[which].end;
        match read(source, &mut self.buffers[which][end..]) {
            Taken::Bytes(count) => {
                self.held[which].end += count;
                self.read[which] = end + count;
                if self.format(output) { Taken::Bytes(count) } else { Taken::Full(count) }
            }
            taken @ (Taken::Nothing | Taken::End | Taken::Full(_)) => taken,
        }
    }

    fn lose(&mut self, which: usize, source: BorrowedFd<'_>) -> Taken {
        let taken = read(source, &mut *self.buffers[which]);
        if let Taken::Bytes(count) = taken {
            self.read[which] = count;
            self.ring.lock().lost += count as u64;
        }
        taken
    }

    /// The `count` bytes that the last [`Log::take_in`] of a stream has read.
    pub(crate) fn last_read(&self, output: Output, count: usize) -> &[u8] {
        let end = self.read[output as usize];
        &self.buffers[output as usize][end - count..end]
    }

    /// The stream has ended: its last record is always an `F`. False: the ring is full, try again.
    pub(crate) fn end(&mut self, output: Output) -> bool {
        let which = output as usize;
        if self.given_up {
            return true;
        }
        if !self.format(output) {
            return false;
        }
        let Held { start, end, in_line } = self.held[which];
        if start == end && !in_line {
            return true;
        }
        let last = Piece { text: end - start, consumed: end - start, tag: Tag::Full };
        self.append(output, |_| Some(last), 1)
    }

    /// True once everything is in the file (or counted as lost), and every opening answered.
    /// False: news will come.
    pub(crate) fn flushed(&self) -> bool {
        if self.given_up {
            return true;
        }
        let mut control = self.ring.lock();
        control.loop_waits = control.slot.ring_len > 0;
        !control.loop_waits && control.opened.is_none() && control.answered == control.asked
    }

    /// How far whole records reach in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.ring.lock().slot.offset
    }

    /// Waits for the writer no longer: what is not in the file by now counts as lost, and so does
    /// what is still read. A file that is being opened will not be.
    pub(crate) fn give_up(&mut self) {
        let still = || io::Error::new(io::ErrorKind::TimedOut, "the log's disk stands still");
        let held: usize = self.held.iter().map(|held| held.end - held.start).sum();
        self.held = Default::default();
        self.given_up = true;
        let mut control = self.ring.lock();
        control.given_up = true;
        control.lost += writer::payload(&self.ring, &control.slot) + held as u64;
        control.error = Some(still());
        if control.answered < control.asked {
            control.answered = control.asked;
            control.opened = Some(Err(still()));
        }
        control.slot.streams = self.held;
        self.ring.commit(&control);
        self.ring.call_writer(&mut control);
    }

    pub(crate) fn lost(&self) -> u64 {
        self.ring.lock().lost
    }

    /// Losses not told before, with their reason.
    pub(crate) fn new_losses(&mut self) -> Option<(u64, String)> {
        let control = self.ring.lock();
        let bytes = control.lost - self.told;
        self.told = control.lost;
        let error = control.error.as_ref().map(ToString::to_string);
        (bytes > 0).then(|| (bytes, error.unwrap_or_default()))
    }

    /// False: the ring is full.
    fn format(&mut self, output: Output) -> bool {
        self.append(output, next_piece, usize::MAX)
    }

    /// Moves up to `most` pieces into the ring. False: it is too full for the next one.
    fn append(
        &mut self,
        output: Output,
        next: impl Fn(&[u8]) -> Option<Piece>,
        most: usize,
    ) -> bool {
        let which = output as usize;
        let memory = self.ring.memory;
        let (first, free) = self.free_part();
        let (mut at, mut left) = (first, free);
        let mut prefix = None;
        let mut held = self.held[which];
        let mut fits = true;
        for _ in 0..most {
            let bytes = &self.buffers[which][held.start..held.end];
            let Some(piece) = next(bytes) else { break };
            let needed = piece.text + OVERHEAD_BYTES;
            if needed > left {
                fits = false;
                break;
            }
            let prefix = prefix.get_or_insert_with(|| now(output));
            at = memory.put(at, prefix.tagged(piece.tag));
            at = memory.put(at, &bytes[..piece.text]);
            at = memory.put(at, b"\n");
            left -= needed;
            held.start += piece.consumed;
            held.in_line = piece.tag == Tag::Partial;
        }
        if held.start == held.end {
            (held.start, held.end) = (0, 0);
        }
        self.held[which] = held;
        self.commit(free - left, !fits);
        fits
    }

    /// Where the ring is free, and how much. An empty ring starts anew at its first page: a quiet
    /// container touches no other.
    fn free_part(&self) -> (usize, usize) {
        let mut control = self.ring.lock();
        if control.slot.ring_len == 0 {
            control.slot.ring_start = 0;
        }
        let size = self.ring.memory.len();
        let used = control.slot.ring_len;
        ((control.slot.ring_start + used) % size, size - used)
    }

    fn commit(&self, added: usize, full: bool) {
        let mut control = self.ring.lock();
        control.slot.ring_len += added;
        control.slot.streams = self.held;
        control.loop_waits |= full;
        self.ring.commit(&control);
        if added > 0 {
            self.ring.call_writer(&mut control);
        }
        // The writer may have emptied the ring since we found it full.
        if full && control.slot.ring_len == 0 {
            self.ring.call_loop();
        }
    }

    /// Moves what is held to the buffer's front when a line might not fit behind it; only where
    /// the two places do not overlap, which at the buffer's very end they never do.
    fn make_room(&mut self, which: usize) {
        let Held { start, end, .. } = self.held[which];
        if STREAM_BYTES - end >= LINE_BYTES || start < end - start {
            return;
        }
        self.buffers[which].copy_within(start..end, 0);
        (self.held[which].start, self.held[which].end) = (0, end - start);
        self.commit(0, false);
    }
}

/// Reads once.
pub(crate) fn read(source: BorrowedFd<'_>, buffer: &mut [u8]) -> Taken {
    match nix::unistd::read(source, buffer) {
        Ok(0) => Taken::End,
        Ok(count) => Taken::Bytes(count),
        Err(Errno::EAGAIN | Errno::EINTR) => Taken::Nothing,
        // EIO is how a terminal says that nobody has it open any more.
        Err(_) => Taken::End,
    }
}

fn now(output: Output) -> Prefix {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the real-time clock always exists");
    let nanoseconds = u32::try_from(now.tv_nsec()).unwrap_or(0);
    Prefix::new(output.name(), now.tv_sec(), nanoseconds)
}
