//! WebSocket: frames (pure), what goes over a connection, the channel protocols, and a connection
//! that carries SPDY.

mod channels;
pub(crate) mod command;
pub(crate) mod forward;
pub(crate) mod frame;
pub(crate) mod tunnel;

use std::io;

use frame::{Decoder, Event, FrameError, Opcode};

use crate::socket::{Sink, Source};

#[derive(Debug, thiserror::Error)]
pub(crate) enum WebSocketError {
    #[error("cannot talk to the client")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message is not base64")]
    Base64,
}

/// A part of a client's message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    start: usize,
    length: usize,
    pub(crate) first: bool,
    pub(crate) last: bool,
}

/// Reads a client's messages, and answers its pings.
pub(crate) struct MessageReader {
    source: Source,
    at: usize,
    decoder: Decoder,
}

impl MessageReader {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, at: 0, decoder: Decoder::default() }
    }

    /// `None`: the client has closed.
    pub(crate) async fn next(&mut self, sink: &Sink) -> Result<Option<Part>, WebSocketError> {
        loop {
            match self.decoder.next(self.source.buffer_mut(), &mut self.at)? {
                Some(Event::Part { start, length, first, last }) => {
                    return Ok(Some(Part { start, length, first, last }));
                }
                Some(Event::Ping(bytes)) => {
                    sink.write(&frame::message(Opcode::Pong, &bytes)).await?;
                }
                Some(Event::Close) => return Ok(None),
                None => {
                    self.at = 0;
                    if !self.source.fill().await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The bytes of the part that was read last.
    pub(crate) fn bytes(&self, part: Part) -> &[u8] {
        &self.source.buffer()[part.start..part.start + part.length]
    }

    pub(crate) async fn drain(mut self) {
        self.source.drain().await;
    }
}

/// A pong that nobody asked for: something to say that needs no answer.
fn probe(sink: &Sink) {
    sink.write_now(&frame::message(Opcode::Pong, &[]));
}

/// A good end, and nothing more.
async fn close(sink: &Sink) -> io::Result<()> {
    const NORMAL: u16 = 1000;
    sink.write(&frame::message(Opcode::Close, &NORMAL.to_be_bytes())).await?;
    sink.close().await
}
