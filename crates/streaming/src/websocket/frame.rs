//! WebSocket frames (RFC 6455): from a client's bytes to events, and the headers of ours. Pure.
//!
//! As with SPDY, the bytes of a message are passed on as they come, whatever its length; control
//! frames have 125 bytes at most.

const FIN: u8 = 0x80;
const MASK: u8 = 0x80;
const MOST_CONTROL: usize = 125;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Pong = 10,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a client's frame is not masked")]
    Unmasked,
    #[error("a frame of kind {0} is not spoken here")]
    Kind(u8),
    #[error("a control frame is cut, or has {0} bytes")]
    Control(usize),
    #[error("a message begins within another, or goes on without a beginning")]
    Order,
}

/// Bytes are named by their place in the input, where they are unmasked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A part of a message.
    Part {
        start: usize,
        length: usize,
        first: bool,
        last: bool,
    },
    Ping(Vec<u8>),
    Close,
}

#[derive(Debug, Default)]
pub(crate) struct Decoder {
    header: Vec<u8>,
    frame: Option<Frame>,
    /// A message has begun in an earlier frame.
    in_message: bool,
    /// No byte of the message has been told yet.
    fresh: bool,
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    fin: bool,
    left: u64,
    mask: [u8; 4],
    /// How far the mask is turned.
    turned: usize,
    control: Vec<u8>,
}

impl Decoder {
    /// The next event from `at` on, which is moved behind what it took. `None`: all is taken.
    pub(crate) fn next(
        &mut self,
        input: &mut [u8],
        at: &mut usize,
    ) -> Result<Option<Event>, FrameError> {
        loop {
            let Some(frame) = &mut self.frame else {
                let Some(byte) = input.get(*at) else { return Ok(None) };
                *at += 1;
                self.header.push(*byte);
                if let Some(frame) = parse(&self.header)? {
                    self.header.clear();
                    self.begin(&frame)?;
                    self.frame = Some(frame);
                }
                continue;
            };
            if frame.left > 0 && *at == input.len() {
                return Ok(None);
            }
            let most = usize::try_from(frame.left).unwrap_or(usize::MAX);
            let length = most.min(input.len() - *at);
            let start = *at;
            *at += length;
            frame.unmask(&mut input[start..*at]);
            if frame.kind >= 8 {
                frame.control.extend_from_slice(&input[start..*at]);
                if frame.left > 0 {
                    return Ok(None);
                }
                let (kind, control) = (frame.kind, std::mem::take(&mut frame.control));
                self.frame = None;
                match kind {
                    8 => return Ok(Some(Event::Close)),
                    9 => return Ok(Some(Event::Ping(control))),
                    _ => continue,
                }
            }
            let ended = frame.left == 0;
            let last = ended && frame.fin;
            if ended {
                self.frame = None;
                self.in_message = !last;
            }
            let first = std::mem::replace(&mut self.fresh, false);
            if length > 0 || last {
                return Ok(Some(Event::Part { start, length, first, last }));
            }
            self.fresh = first;
        }
    }

    fn begin(&mut self, frame: &Frame) -> Result<(), FrameError> {
        match frame.kind {
            0 if self.in_message => Ok(()),
            1 | 2 if !self.in_message => {
                self.fresh = true;
                Ok(())
            }
            0..=2 => Err(FrameError::Order),
            8..=10 if frame.fin => Ok(()),
            8..=10 => Err(FrameError::Control(0)),
            kind => Err(FrameError::Kind(kind)),
        }
    }
}

impl Frame {
    fn unmask(&mut self, bytes: &mut [u8]) {
        self.mask.rotate_left(self.turned % 4);
        let mut chunks = bytes.chunks_exact_mut(4);
        for chunk in &mut chunks {
            chunk.iter_mut().zip(self.mask).for_each(|(byte, mask)| *byte ^= mask);
        }
        let rest = chunks.into_remainder();
        self.turned = rest.len();
        rest.iter_mut().zip(self.mask).for_each(|(byte, mask)| *byte ^= mask);
        self.left -= bytes.len() as u64;
    }
}

/// `None`: more is needed.
fn parse(header: &[u8]) -> Result<Option<Frame>, FrameError> {
    let [first, second, rest @ ..] = header else { return Ok(None) };
    if second & MASK == 0 {
        return Err(FrameError::Unmasked);
    }
    let kind = first & 0x7f;
    let short = second & !MASK;
    if kind >= 8 && usize::from(short) > MOST_CONTROL {
        return Err(FrameError::Control(short.into()));
    }
    let wide = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some((length, mask)) = rest.split_at_checked(wide) else { return Ok(None) };
    let Some(mask) = mask.first_chunk().copied() else { return Ok(None) };
    let left = match wide {
        0 => short.into(),
        _ => length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    let fin = first & FIN != 0;
    Ok(Some(Frame { kind, fin, left, mask, turned: 0, control: vec![] }))
}

/// What goes before `length` bytes of a whole message, on a stack-sized list.
pub(crate) fn header(opcode: Opcode, length: usize) -> Vec<u8> {
    let first = FIN | opcode as u8;
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => vec![first, short],
        (_, Ok(long)) => [&[first, 126][..], &long.to_be_bytes()].concat(),
        _ => [&[first, 127][..], &(length as u64).to_be_bytes()].concat(),
    }
}

pub(crate) fn message(opcode: Opcode, bytes: &[u8]) -> Vec<u8> {
    [&header(opcode, bytes.len()), bytes].concat()
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
