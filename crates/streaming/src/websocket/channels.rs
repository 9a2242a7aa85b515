//! Numbered channels over a WebSocket: the first byte of each message is the channel's number, in
//! the base64 protocols as a digit.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::frame::{self, Opcode};
use super::{MessageReader, Part, WebSocketError};
use crate::chunk::Chunk;
use crate::protocol::{Coding, Version};
use crate::socket::{Sink, Source};

/// v5: the channel after it has ended.
const END: u8 = 255;

pub(super) struct ChannelReader {
    writer: Arc<ChannelWriter>,
    messages: MessageReader,
    version: Version,
    /// Of the message under way; none if it is of no use.
    said: Option<Said>,
    /// Base64 that waits for the rest of its four characters, and what came out of the last part.
    undecoded: Vec<u8>,
    decoded: Vec<u8>,
}

pub(super) struct ChannelWriter {
    sink: Sink,
    coding: Coding,
}

/// What a client has sent on a channel.
pub(super) struct Heard<'a> {
    pub(super) number: u8,
    pub(super) bytes: &'a [u8],
    /// Nothing follows.
    pub(super) last: bool,
}

#[derive(Clone, Copy)]
enum Said {
    Data(u8),
    End,
}

/// Both directions of a connection.
pub(super) fn channels(
    source: Source,
    sink: Sink,
    (version, coding): (Version, Coding),
) -> (ChannelReader, Arc<ChannelWriter>) {
    let writer = Arc::new(ChannelWriter { sink, coding });
    let reader = ChannelReader {
        writer: Arc::clone(&writer),
        messages: MessageReader::new(source),
        version,
        said: None,
        undecoded: vec![],
        decoded: vec![],
    };
    (reader, writer)
}

impl ChannelReader {
    /// `None`: the client has gone.
    pub(super) async fn next(&mut self) -> Result<Option<Heard<'_>>, WebSocketError> {
        loop {
            let Some(part) = self.messages.next(&self.writer.sink).await? else { return Ok(None) };
            let mut skip = 0;
            if part.first {
                self.said = self.begin(self.messages.bytes(part).first().copied());
                self.undecoded.clear();
                skip = 1;
            }
            match self.said {
                None => {}
                Some(Said::End) => {
                    // The channel's number may come in a part of its own.
                    if let Some(number) = self.messages.bytes(part).get(skip).copied() {
                        self.said = None;
                        return Ok(Some(Heard { number, bytes: &[], last: true }));
                    }
                }
                Some(Said::Data(number)) if self.writer.coding == Coding::Base64 => {
                    self.decode(part, skip)?;
                    return Ok(Some(Heard { number, bytes: &self.decoded, last: false }));
                }
                Some(Said::Data(number)) if part.length > skip => {
                    let bytes = &self.messages.bytes(part)[skip..];
                    return Ok(Some(Heard { number, bytes, last: false }));
                }
                Some(Said::Data(_)) => {}
            }
        }
    }

    fn begin(&self, first: Option<u8>) -> Option<Said> {
        let first = first?;
        Some(match self.writer.coding {
            Coding::Raw if first == END && self.version >= Version::V5 => Said::End,
            Coding::Raw => Said::Data(first),
            Coding::Base64 => Said::Data(first.wrapping_sub(b'0')),
        })
    }

    fn decode(&mut self, part: Part, skip: usize) -> Result<(), WebSocketError> {
        let bytes = self.messages.bytes(part).get(skip..).unwrap_or_default();
        self.undecoded.extend_from_slice(bytes);
        let whole = self.undecoded.len() / 4 * 4;
        if part.last && whole < self.undecoded.len() {
            return Err(WebSocketError::Base64);
        }
        let text = self.undecoded.drain(..whole).collect::<Vec<u8>>();
        self.decoded = STANDARD.decode(text).map_err(|_| WebSocketError::Base64)?;
        Ok(())
    }

    pub(super) async fn drain(self) {
        self.messages.drain().await;
    }
}

impl ChannelWriter {
    /// What is to be sent is best read into this.
    pub(super) fn chunk(&self) -> Chunk {
        match self.coding {
            Coding::Raw => self.sink.chunk(),
            Coding::Base64 => Chunk::default(),
        }
    }

    pub(super) async fn send(&self, number: u8, chunk: &mut Chunk) -> io::Result<()> {
        match self.coding {
            Coding::Raw => {
                let mut header = frame::header(Opcode::Binary, chunk.len() + 1);
                header.push(number);
                self.sink.send(&header, chunk).await
            }
            Coding::Base64 => {
                let mut text = String::from(char::from(b'0' + number));
                STANDARD.encode_string(chunk.bytes(), &mut text);
                self.sink.write(&frame::message(Opcode::Text, text.as_bytes())).await
            }
        }
    }

    pub(super) fn probe(&self) {
        super::probe(&self.sink);
    }

    pub(super) async fn close(&self) -> io::Result<()> {
        super::close(&self.sink).await
    }
}
