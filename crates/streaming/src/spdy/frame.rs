//! SPDY/3.1 frames: from bytes to events and back. Pure: no IO, no clock.
//!
//! ```text
//! control: |1| version (15) | type (16) | flags (8) | length (24) | body
//! data:    |0| stream (31)              | flags (8) | length (24) | bytes
//! ```
//!
//! The decoder takes whatever pieces the network brings. The bytes of data frames are passed on as
//! they come, so a frame of 16 MiB costs no memory; control frames are collected, and bounded.

/// A whole one is a few headers, compressed.
const CONTROL_BYTES: usize = 16 << 10;
const VERSION: u16 = 3;
const CONTROL_BIT: u8 = 0x80;
const FLAG_FIN: u8 = 1;

pub(crate) const HEADER_BYTES: usize = 8;
/// The length has 24 bits.
pub(crate) const MOST_DATA: usize = (1 << 24) - 1;

/// Why a stream is reset, as SPDY/3 numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResetStatus {
    ProtocolError = 1,
    RefusedStream = 3,
    Cancel = 5,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("version {0} of SPDY is not spoken here")]
    Version(u16),
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a frame of type {kind} has only {length} bytes")]
    TooShort { kind: u16, length: usize },
}

/// What a control frame says; the header block of a `SynStream` and a `Headers` is compressed still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Vec<u8>,
    },
    /// Counts for the state of the compression only.
    Headers {
        headers: Vec<u8>,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// SYN_REPLY, SETTINGS, WINDOW_UPDATE and whatever else: nothing for a server to do. Flow is
    /// controlled by TCP: no peer here keeps to windows.
    Other,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    Control(Control),
    /// A part of a data frame; `fin`: the last of its stream.
    Data {
        stream: u32,
        bytes: &'a [u8],
        fin: bool,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    Control { kind: u16, flags: u8, length: usize, body: Vec<u8> },
    Data { stream: u32, left: usize, fin: bool },
}

impl Default for State {
    fn default() -> Self {
        Self::Header { bytes: [0; HEADER_BYTES], have: 0 }
    }
}

impl Decoder {
    /// The next event in `input`, which is moved on by what it took. `None`: all of it is taken.
    pub(crate) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            match &mut self.state {
                State::Header { bytes, have } => {
                    let taken = take(input, HEADER_BYTES - *have);
                    bytes[*have..*have + taken.len()].copy_from_slice(taken);
                    *have += taken.len();
                    if *have < HEADER_BYTES {
                        return Ok(None);
                    }
                    self.state = begin(*bytes)?;
                }
                State::Control { kind, flags, length, body } => {
                    body.extend_from_slice(take(input, *length - body.len()));
                    if body.len() < *length {
                        return Ok(None);
                    }
                    let control = parse(*kind, *flags, body)?;
                    self.state = State::default();
                    return Ok(Some(Event::Control(control)));
                }
                State::Data { stream, left, fin } => {
                    // One without bytes says something only by its end.
                    if input.is_empty() && *left > 0 {
                        return Ok(None);
                    }
                    let bytes = take(input, *left);
                    *left -= bytes.len();
                    let (stream, last, fin) = (*stream, *left == 0, *fin);
                    if last {
                        self.state = State::default();
                    }
                    return Ok(Some(Event::Data { stream, bytes, fin: fin && last }));
                }
            }
        }
    }
}

/// Up to `most` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

fn begin(header: [u8; HEADER_BYTES]) -> Result<State, FrameError> {
    let [a, b, c, d, flags, rest @ ..] = header;
    let length = rest.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if a & CONTROL_BIT == 0 {
        let stream = u32::from_be_bytes([a, b, c, d]);
        return Ok(State::Data { stream, left: length, fin: flags & FLAG_FIN != 0 });
    }
    let version = u16::from_be_bytes([a & !CONTROL_BIT, b]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if length > CONTROL_BYTES {
        return Err(FrameError::TooLong(length));
    }
    Ok(State::Control { kind: u16::from_be_bytes([c, d]), flags, length, body: vec![] })
}

fn parse(kind: u16, flags: u8, body: &[u8]) -> Result<Control, FrameError> {
    let too_short = || FrameError::TooShort { kind, length: body.len() };
    let number = || body.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    // The highest bit is reserved.
    let stream = || number().map(|stream| stream & 0x7fff_ffff).ok_or_else(too_short);
    let headers = |at: usize| body.get(at..).map(<[u8]>::to_vec).ok_or_else(too_short);
    Ok(match kind {
        // Behind the stream: the one it belongs to (4 bytes), priority and slot (2).
        1 => Control::SynStream {
            stream: stream()?,
            fin: flags & FLAG_FIN != 0,
            headers: headers(10)?,
        },
        3 => Control::Reset { stream: stream()? },
        6 => Control::Ping { id: number().ok_or_else(too_short)? },
        7 => Control::GoAway,
        8 => Control::Headers { headers: headers(4)? },
        _ => Control::Other,
    })
}

/// What goes before `length` bytes of data.
pub(crate) fn data_header(stream: u32, length: usize, fin: bool) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = stream.to_be_bytes();
    header([a, b, c, d], u8::from(fin), length)
}

pub(crate) fn syn_reply(stream: u32, headers: &[u8]) -> Vec<u8> {
    control(2, &stream.to_be_bytes(), headers)
}

pub(crate) fn reset(stream: u32, status: ResetStatus) -> Vec<u8> {
    control(3, &stream.to_be_bytes(), &(status as u32).to_be_bytes())
}

pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(6, &id.to_be_bytes(), &[])
}

/// Settings, and none of them: something to say that needs no answer.
pub(crate) fn no_settings() -> Vec<u8> {
    control(4, &[0; 4], &[])
}

/// A good end (status 0) after `last_stream`.
pub(crate) fn go_away(last_stream: u32) -> Vec<u8> {
    control(7, &last_stream.to_be_bytes(), &[0; 4])
}

fn control(kind: u16, first: &[u8], rest: &[u8]) -> Vec<u8> {
    let [a, b] = (VERSION | u16::from(CONTROL_BIT) << 8).to_be_bytes();
    let [c, d] = kind.to_be_bytes();
    [&header([a, b, c, d], 0, first.len() + rest.len()), first, rest].concat()
}

fn header(word: [u8; 4], flags: u8, length: usize) -> [u8; HEADER_BYTES] {
    assert!(length <= MOST_DATA, "frames are cut by whoever writes them");
    let length = u32::try_from(length).expect("24 bits fit in 32").to_be_bytes();
    let [a, b, c, d] = word;
    [a, b, c, d, flags, length[1], length[2], length[3]]
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
