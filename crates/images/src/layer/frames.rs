//! A blob of zstd, decompressed frame by frame: each is looked at before it is begun, for its window
//! is memory.

use std::io::{self, BufRead, Read};

use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::reader::BlobReader;
use super::window::{LARGEST_LOG, LONGEST_HEADER, Share, StreamWindows, Window};

pub(super) struct Frames {
    blob: BlobReader,
    windows: StreamWindows,
    /// None before the first frame.
    decoder: Option<Roomy>,
    is_within_frame: bool,
}

/// A decoder with memory for its window.
struct Roomy {
    decoder: Decoder<'static>,
    share: Share,
}

impl Roomy {
    fn new(share: Share) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(LARGEST_LOG))?;
        Ok(Self { decoder, share })
    }
}

impl Frames {
    /// Looks at the first frame, and waits until `windows` has room for it.
    pub(super) fn new(blob: BlobReader, windows: StreamWindows) -> io::Result<Self> {
        let mut frames = Self { blob, windows, decoder: None, is_within_frame: false };
        frames.begin()?;
        Ok(frames)
    }

    /// The rest of the blob, as it came.
    pub(super) fn into_blob(self) -> BlobReader {
        self.blob
    }

    /// The decoder for the frame that comes next; none at the blob's end.
    fn begin(&mut self) -> io::Result<Option<&mut Decoder<'static>>> {
        let head = self.blob.peek(LONGEST_HEADER)?;
        if head.is_empty() {
            return Ok(None);
        }
        let window = Window::of_frame(head)?;
        let roomy = match self.decoder.take().filter(|roomy| roomy.share.fits(window)) {
            Some(roomy) => roomy,
            // The former one's share is free again: streams that wait for more while they hold some
            // would wait for each other.
            None => Roomy::new(self.windows.take(window)?)?,
        };
        Ok(Some(&mut self.decoder.insert(roomy).decoder))
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_within_frame && self.begin()?.is_none() {
                return Ok(0);
            }
            let Some(Roomy { decoder, .. }) = &mut self.decoder else { return Ok(0) };
            let input = self.blob.fill_buf()?;
            let is_over = input.is_empty();
            let status = decoder.run_on_buffers(input, buffer)?;
            self.blob.consume(status.bytes_read);
            self.is_within_frame = status.remaining > 0;
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            if is_over && self.is_within_frame {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete zstd frame"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bytes::Bytes;
    use tokio::sync::mpsc;

    use std::sync::Arc;

    use super::super::window::{LargeWindow, WindowTooLarge, Windows};
    use super::*;

    fn frame(content: &[u8], log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// One to be skipped.
    fn note(content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&[0x5a, 0x2a, 0x4d, 0x18], &length[..], content].concat()
    }

    /// What a blob in pieces of `length` bytes is decompressed to.
    fn read(blob: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let pieces: Vec<_> = blob.chunks(length).map(Bytes::copy_from_slice).collect();
        let (sender, receiver) = mpsc::channel(pieces.len().max(1));
        pieces.into_iter().for_each(|piece| sender.try_send(piece).unwrap());
        let wanted = Arc::new(());
        let windows = Windows::new(LargeWindow::default()).of_stream(&wanted);
        let mut frames = Frames::new(BlobReader::new(receiver, blob.len() as u64), windows)?;
        let mut content = Vec::new();
        frames.read_to_end(&mut content)?;
        Ok(content)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn frames_of_all_windows_follow_each_other_in_pieces_of_any_length() {
        let noise: Vec<u8> =
            (0..40_000_u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
        let single = zstd::bulk::compress(&noise, 1).unwrap();
        let parts =
            [note(b"who made it"), frame(b"small", 10), note(b""), frame(&noise, 25), single];
        let (blob, content) = (parts.concat(), [b"small", &noise[..], &noise].concat());
        let reading = move || {
            for length in [1, 7, 100_000, blob.len()] {
                assert!(read(&blob, length).unwrap() == content, "pieces of {length}");
            }
            for cut in [1, 3, 12, 40, blob.len() - 1] {
                assert!(read(&blob[..cut], 50_000).is_err(), "cut at {cut}");
            }
            assert_eq!(read(&note(b"nothing"), 9).unwrap(), b"");
            let error = read(&[frame(b"a", 10), frame(b"b", 27)].concat(), 9).unwrap_err();
            assert!(WindowTooLarge::within(&error).is_some(), "{error}");
            let error = read(&[&frame(b"a", 10)[..], b"and more"].concat(), 9).unwrap_err();
            assert!(WindowTooLarge::within(&error).is_none(), "{error}");
        };
        tokio::task::spawn_blocking(reading).await.unwrap();
    }
}
