//! How far back zstd frames reach, which is how much memory it takes to read them, and who has it.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

const MEBIBYTE: u64 = 1 << 20;
/// What every decoder should allow (RFC 8878, 3.1.1.1.2), and what most tools that make images stay
/// below.
const LARGEST_SHARED: u64 = 8 * MEBIBYTE;
/// What BuildKit writes at its higher levels (up to klauspost/compress 1.17.4: 16 and 32 MiB).
pub(super) const LARGEST_LOG: u32 = 25;
const LARGEST: u64 = 1 << LARGEST_LOG;
/// Memory for the windows of one pull's streams together: two of the largest that are shared, which is
/// what many tools write. A stream waits for its share.
const SHARED_MEBIBYTES: usize = 16;

/// How often who waits for memory looks whether anybody still wants it.
const LOOK: Duration = Duration::from_millis(200);

const FRAME: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A frame's longest header: magic number, descriptor, window, dictionary, size of the content.
pub(super) const LONGEST_HEADER: usize = 4 + 1 + 1 + 4 + 8;

/// A window that is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Window {
    bytes: u64,
}

/// A frame reaches back too far.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("zstd with a window of {} MiB, at most {} are supported", bytes / MEBIBYTE, LARGEST / MEBIBYTE)]
pub(super) struct WindowTooLarge {
    bytes: u64,
}

impl WindowTooLarge {
    /// Finds it in the error of a reader.
    pub(super) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<WindowTooLarge> for io::Error {
    fn from(error: WindowTooLarge) -> Self {
        Self::new(io::ErrorKind::Unsupported, error)
    }
}

impl Window {
    /// Of a frame that begins with `head`, which is as long as the longest header or all there is.
    /// What is no frame, or one to be skipped, has none.
    pub(super) fn of_frame(head: &[u8]) -> Result<Self, WindowTooLarge> {
        let bytes = head.strip_prefix(FRAME).and_then(window).unwrap_or_default();
        if bytes > LARGEST { Err(WindowTooLarge { bytes }) } else { Ok(Self { bytes }) }
    }

    /// Its share of the memory for windows.
    fn mebibytes(self) -> u32 {
        u32::try_from(self.bytes.div_ceil(MEBIBYTE)).expect("at most the largest")
    }
}

/// In bytes, of the frame with this header; none if it is cut short.
fn window(header: &[u8]) -> Option<u64> {
    let descriptor = *header.first()?;
    let has_own = descriptor & 0x20 == 0;
    if has_own {
        let window = *header.get(1)?;
        let (exponent, mantissa) = (window >> 3, u64::from(window & 7));
        let base = 1_u64 << (10 + exponent);
        return Some(base + base / 8 * mantissa);
    }
    // A single segment: the content is the window.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = 1 << (descriptor >> 6);
    let size = header.get(1 + dictionary..)?.get(..length)?;
    let mut bytes = [0; 8];
    bytes[..length].copy_from_slice(size);
    // Two bytes count from where one ends.
    Some(u64::from_le_bytes(bytes).saturating_add(if length == 2 { 256 } else { 0 }))
}

/// The memory for windows that one pull's streams may have.
#[derive(Clone)]
pub(crate) struct Windows {
    shared: Arc<Semaphore>,
    large: LargeWindow,
}

/// The one window of the whole process that is larger than what a pull shares.
#[derive(Clone)]
pub(crate) struct LargeWindow(Arc<Semaphore>);

impl Default for LargeWindow {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

/// Memory for windows of so many bytes, until dropped.
pub(super) struct Share {
    bytes: u64,
    _permit: OwnedSemaphorePermit,
}

impl Windows {
    pub(crate) fn new(large: LargeWindow) -> Self {
        Self { shared: Arc::new(Semaphore::new(SHARED_MEBIBYTES)), large }
    }

    /// For one stream, which is read for as long as somebody has `wanted`.
    pub(super) fn of_stream(self, wanted: &Arc<()>) -> StreamWindows {
        StreamWindows { windows: self, wanted: Arc::downgrade(wanted) }
    }
}

/// The same, for one stream.
pub(super) struct StreamWindows {
    windows: Windows,
    wanted: Weak<()>,
}

impl StreamWindows {
    /// Waits until there is room for `window`; an error if nobody wants the stream any more. Blocking;
    /// whoever waits should hold nothing.
    pub(super) fn take(&self, window: Window) -> io::Result<Share> {
        let Windows { shared, large } = &self.windows;
        let (budget, wanted, bytes) = match window.bytes > LARGEST_SHARED {
            true => (&large.0, 1, LARGEST),
            false => (shared, window.mebibytes(), u64::from(window.mebibytes()) * MEBIBYTE),
        };
        let permit = Arc::clone(budget).acquire_many_owned(wanted);
        let permit = Handle::current().block_on(async {
            let mut permit = pin!(permit);
            loop {
                match timeout(LOOK, permit.as_mut()).await {
                    Ok(permit) => return Some(permit.expect("never closed")),
                    Err(_) if self.wanted.strong_count() == 0 => return None,
                    Err(_) => {}
                }
            }
        });
        let permit = permit.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Share { bytes, _permit: permit })
    }
}

impl Share {
    /// And is not the large one for what needs no more than the others.
    pub(super) fn fits(&self, window: Window) -> bool {
        let is_spare = self.bytes == LARGEST && (1..=LARGEST_SHARED).contains(&window.bytes);
        window.bytes <= self.bytes && !is_spare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(rest: &[u8]) -> Vec<u8> {
        [FRAME, rest, &[0xff; 16]].concat()[..LONGEST_HEADER].to_vec()
    }

    #[test]
    fn a_frame_takes_what_its_header_tells() {
        for (head, bytes) in [
            (frame(&[0, 0]), 1 << 10),
            (frame(&[0, 11 << 3]), 2 << 20),
            (frame(&[0, (11 << 3) | 1]), (2 << 20) + (1 << 18)),
            (frame(&[0x04, 13 << 3]), 8 << 20),
            (frame(&[0xc3, 15 << 3]), 32 << 20),
            // Single segments, with sizes of one to eight bytes, and dictionaries before them.
            (frame(&[0x20, 7]), 7),
            (frame(&[0x21, 9, 7]), 7),
            (frame(&[0x60, 7, 1]), 256 + 263),
            (frame(&[0xa2, 9, 9, 7, 0, 1, 0]), 65_543),
            (frame(&[0xe3, 9, 9, 9, 9, 0, 0, 0, 2, 0, 0, 0, 0]), 32 << 20),
            // To be skipped, cut short, something else.
            (vec![0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff], 0),
            (frame(&[0, 0xff])[..5].to_vec(), 0),
            (frame(&[0x20, 0xff])[..5].to_vec(), 0),
            (b"text".to_vec(), 0),
            (vec![], 0),
        ] {
            assert_eq!(Window::of_frame(&head), Ok(Window { bytes }), "{head:?}");
        }
        for (head, mebibytes) in [
            (frame(&[0, (15 << 3) | 1]), 36),
            (frame(&[0, 17 << 3]), 128),
            (frame(&[0, 0xff]), (1 << 21) + 7 * (1 << 18)),
            (frame(&[0xa0, 1, 0, 0, 2]), 32),
            (frame(&[0xe0, 0, 0, 0, 0, 1, 0, 0, 0]), 4096),
        ] {
            let error = io::Error::from(Window::of_frame(&head).unwrap_err());
            assert!(WindowTooLarge::within(&error).is_some());
            let said = format!("zstd with a window of {mebibytes} MiB, at most 32 are supported");
            assert_eq!(error.to_string(), said);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn large_windows_are_taken_one_at_a_time_and_besides_those_that_are_shared() {
        let (large, wanted) = (LargeWindow::default(), Arc::new(()));
        let [one, other] = [large.clone(), large].map(Windows::new);
        let (shared, large) = (Arc::clone(&one.shared), one.large.clone());
        let others_shared = Arc::clone(&other.shared);
        let [one, other] = [one, other].map(|windows| windows.of_stream(&wanted));
        let mebibytes = |count| Window { bytes: count * MEBIBYTE };
        tokio::task::spawn_blocking(move || {
            let small = [8, 7, 1].map(|count| one.take(mebibytes(count)).unwrap());
            assert_eq!(shared.available_permits(), 0);
            let first = one.take(mebibytes(9)).unwrap();
            assert_eq!(large.0.available_permits(), 0);
            for (share, count, fits) in [
                (&small[1], 7, true),
                (&small[1], 8, false),
                (&first, 32, true),
                (&first, 8, false),
                (&first, 0, true),
            ] {
                assert_eq!(share.fits(mebibytes(count)), fits, "{count}");
            }
            // Who waits for the large one is not kept by whoever has it.
            drop(wanted);
            let error = other.take(mebibytes(32)).map(drop).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            drop(first);
            drop(other.take(mebibytes(32)).unwrap());
            assert_eq!(others_shared.available_permits(), SHARED_MEBIBYTES);
        })
        .await
        .unwrap();
    }
}
