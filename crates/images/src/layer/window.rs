//! How far back a zstd stream reaches, which is how much memory it takes to read it. Pure.

use std::io;

/// What every decoder should allow (RFC 8878, 3.1.1.1.2), and what tools that make images stay
/// below.
const LARGEST_LOG: u32 = 23;
const MEBIBYTE: u64 = 1 << 20;
const FRAME: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A window that is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    bytes: u64,
}

impl Window {
    /// Of a stream that begins with `first`. What the first frame does not tell (it may be one to
    /// be skipped) counts as the largest that is allowed.
    pub(super) fn of_stream(first: [u8; 6]) -> io::Result<Self> {
        let largest = 1 << LARGEST_LOG;
        let has_descriptor = first[4] & 0x20 == 0;
        if first[..4] != FRAME || !has_descriptor {
            return Ok(Self { bytes: largest });
        }
        let (exponent, mantissa) = (u32::from(first[5] >> 3), u64::from(first[5] & 7));
        let base = 1_u64 << (10 + exponent);
        let bytes = base + base / 8 * mantissa;
        if bytes > largest {
            let found = bytes / MEBIBYTE;
            let most = largest / MEBIBYTE;
            let reason = format!("zstd with a window of {found} MiB, at most {most} are supported");
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        Ok(Self { bytes })
    }

    /// Its share of the memory for windows.
    pub(super) fn mebibytes(self) -> u32 {
        u32::try_from(self.bytes.div_ceil(MEBIBYTE)).unwrap_or(u32::MAX)
    }

    /// The decoder's bound: frames that follow may have no larger window.
    pub(super) fn log(self) -> u32 {
        self.bytes.next_power_of_two().ilog2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(descriptor: u8, window: u8) -> [u8; 6] {
        let [a, b, c, d] = FRAME;
        [a, b, c, d, descriptor, window]
    }

    #[test]
    fn a_stream_takes_what_its_first_frame_tells() {
        for (first, mebibytes, log) in [
            (frame(0, 0), 1, 10),
            (frame(0, 11 << 3), 2, 21),
            (frame(0, 11 << 3 | 1), 3, 22),
            (frame(0x04, 13 << 3), 8, 23),
            // A single segment has no window of its own; a frame to be skipped tells nothing.
            (frame(0x20, 0xff), 8, 23),
            ([0x50, 0x2a, 0x4d, 0x18, 0, 0], 8, 23),
        ] {
            let window = Window::of_stream(first).unwrap();
            assert_eq!((window.mebibytes(), window.log()), (mebibytes, log), "{first:?}");
        }
        for first in [frame(0, 13 << 3 | 1), frame(0, 0xff)] {
            let error = Window::of_stream(first).unwrap_err();
            assert!(error.to_string().contains("window"), "{error}");
        }
    }
}
