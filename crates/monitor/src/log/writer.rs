//! The thread that writes the log. A regular file cannot be polled, and a stalled disk may hold a
//! `write` for minutes: only this thread waits for it.
//!
//! What cannot be written is tried again for a second, then dropped record by record, counted and
//! told; the container goes on. From then on every attempt that fails drops at once, until one
//! succeeds. A record of which a part got out is cut off the file before it is dropped.
//!
//! A call that does not return at all is given up by the loop when the container has ended. Nothing
//! can take it back: should it return after all, what it wrote stays, though it was counted as lost,
//! and the thread ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::format::OVERHEAD_BYTES;
use super::ring::{Control, Open, Ring, Slot};

const RETRY_EVERY: Duration = Duration::from_millis(100);
const RETRY_FOR: Duration = Duration::from_secs(1);
/// Touched pages are what a container costs; the deepest call here needs a fraction of this.
const STACK_BYTES: usize = 64 << 10;

pub(super) fn spawn(ring: Arc<Ring>) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || Writer::new(&ring).run())?;
    Ok(())
}

struct Writer<'a> {
    ring: &'a Ring,
    file: Option<File>,
    /// Bytes of the ring's first record that are in the file already.
    torn: usize,
    /// The ring may hold records of before this process: they wait for a file, but not for ever.
    adopted: bool,
    /// Since when no write succeeded.
    failing: Option<Instant>,
}

impl<'r> Writer<'r> {
    fn new(ring: &'r Ring) -> Self {
        Self { ring, file: None, torn: 0, adopted: false, failing: None }
    }

    fn run(&mut self) {
        let mut control = self.ring.lock();
        while !control.given_up {
            control = if let Some(open) = control.open.take() {
                self.open(open, control)
            } else if control.slot.ring_len > 0 && (self.file.is_some() || self.adopted) {
                self.write(control)
            } else {
                self.ring.wait_for_work(control)
            };
        }
        let slot = control.slot;
        drop(control);
        self.cut_torn_record(&slot);
    }

    /// Changes to another file, between two records.
    fn open(&mut self, open: Open, control: MutexGuard<'r, Control>) -> MutexGuard<'r, Control> {
        let (before, asked) = (control.slot, control.asked);
        drop(control);
        let result = match open {
            Open::New => create(&self.ring.path),
            Open::Continued => {
                self.adopted = true;
                continued(&self.ring.path, &before)
            }
        };
        let result = result.map(|(file, slot)| {
            self.cut_torn_record(&before);
            self.file = Some(file);
            self.failing = None;
            slot
        });
        let mut control = self.ring.lock();
        if control.given_up {
            return control;
        }
        control.opened = Some(result.map(|place| self.continue_at(&mut control, &place)));
        control.answered = asked;
        self.ring.call_loop();
        control
    }

    fn write(&mut self, control: MutexGuard<'r, Control>) -> MutexGuard<'r, Control> {
        let Slot { ring_start, ring_len, .. } = control.slot;
        drop(control);
        let memory = self.ring.memory;
        let at = (ring_start + self.torn) % memory.len();
        let result = match &self.file {
            Some(file) => memory.write_to(file, at, ring_len - self.torn),
            None => return self.open_again(),
        };
        match result {
            Ok(0) => self.failed(io::ErrorKind::WriteZero.into()),
            Ok(written) => self.written(ring_start, self.torn + written, ring_len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.ring.lock(),
            Err(error) => self.failed(error),
        }
    }

    /// An adopted log whose file could not be opened.
    fn open_again(&mut self) -> MutexGuard<'r, Control> {
        let slot = self.ring.lock().slot;
        match continued(&self.ring.path, &slot) {
            Ok((file, place)) => {
                self.file = Some(file);
                let mut control = self.ring.lock();
                self.continue_at(&mut control, &place);
                control
            }
            Err(error) => self.failed(error),
        }
    }

    fn continue_at(&self, control: &mut Control, place: &Slot) {
        control.slot.device = place.device;
        control.slot.inode = place.inode;
        control.slot.offset = place.offset;
        self.ring.commit(control);
    }

    /// `out` bytes of the ring are in the file: gives back those that are whole records.
    fn written(&mut self, start: usize, out: usize, taken: usize) -> MutexGuard<'r, Control> {
        self.failing = None;
        let memory = self.ring.memory;
        let whole = if out == taken {
            out
        } else {
            (0..out).rev().find(|at| memory.byte(start + at) == b'\n').map_or(0, |at| at + 1)
        };
        self.torn = out - whole;
        let mut control = self.ring.lock();
        if control.given_up {
            return control;
        }
        control.slot.offset += whole as u64;
        self.give_back(&mut control, whole);
        control
    }

    fn failed(&mut self, error: io::Error) -> MutexGuard<'r, Control> {
        let since = *self.failing.get_or_insert_with(Instant::now);
        let mut control = self.ring.lock();
        if since.elapsed() < RETRY_FOR {
            return self.ring.wait_a_moment(control, RETRY_EVERY);
        }
        let slot = control.slot;
        drop(control);
        self.cut_torn_record(&slot);
        let lost = payload(self.ring, &slot);
        control = self.ring.lock();
        if control.given_up {
            return control;
        }
        control.lost += lost;
        control.error = Some(error);
        self.give_back(&mut control, slot.ring_len);
        self.ring.call_loop();
        control
    }

    fn give_back(&self, control: &mut Control, count: usize) {
        control.slot.ring_start = (control.slot.ring_start + count) % self.ring.memory.len();
        control.slot.ring_len -= count;
        self.ring.commit(control);
        if std::mem::take(&mut control.loop_waits) {
            self.ring.call_loop();
        }
    }

    fn cut_torn_record(&mut self, slot: &Slot) {
        let torn = std::mem::take(&mut self.torn) as u64;
        let Some(file) = self.file.as_ref().filter(|_| torn > 0) else { return };
        // From the end and not at the offset, lest somebody has truncated the file meanwhile.
        // A disk that refuses even this leaves a torn record: nothing better can be done.
        let end = file.metadata().map_or(slot.offset + torn, |found| found.len());
        let _ = file.set_len(end.saturating_sub(torn));
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o640).custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY);
    options
}

fn create(path: &Path) -> io::Result<(File, Slot)> {
    let file = options().create(true).open(path)?;
    let found = file.metadata()?;
    let place =
        Slot { device: found.dev(), inode: found.ino(), offset: found.len(), ..Slot::default() };
    Ok((file, place))
}

/// The file that a dead monitor wrote, cut after its last complete record. If another file has
/// its name by now (a rotation was under way), the ring's records begin that one.
fn continued(path: &Path, slot: &Slot) -> io::Result<(File, Slot)> {
    let (file, mut place) = create(path)?;
    if (place.device, place.inode) == (slot.device, slot.inode) && place.offset > slot.offset {
        file.set_len(slot.offset)?;
        place.offset = slot.offset;
    }
    Ok((file, place))
}

/// How much of a container's output the ring's records hold.
pub(super) fn payload(ring: &Ring, slot: &Slot) -> u64 {
    let (mut bytes, mut record) = (0, 0);
    for at in 0..slot.ring_len {
        record += 1;
        if ring.memory.byte(slot.ring_start + at) == b'\n' {
            // A full record's newline was the container's own.
            let tag = ring.memory.byte(slot.ring_start + at + 1 + super::format::TAG_AT - record);
            bytes += (record - OVERHEAD_BYTES + usize::from(tag == b'F')) as u64;
            record = 0;
        }
    }
    bytes
}
