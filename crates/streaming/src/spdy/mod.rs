//! SPDY/3.1: frames and header blocks (pure), and what goes over a connection.

pub(crate) mod command;
mod dictionary;
pub(crate) mod forward;
pub(crate) mod frame;
pub(crate) mod headers;

use std::io;
use std::sync::Mutex;

use frame::{Control, Decoder, Event, FrameError, ResetStatus};
use headers::{HeaderError, HeaderReader, HeaderWriter, Headers};

use crate::chunk::Chunk;
use crate::socket::{Sink, Source};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    #[error("cannot talk to the client")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error("stream {0} is opened after a later one")]
    Order(u32),
    #[error("too much input comes before the streams are open")]
    Early,
}

/// What a client has sent, as far as a session is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Open { stream: u32, headers: Headers, fin: bool },
    Data { stream: u32, bytes: &'a [u8], fin: bool },
    Reset { stream: u32 },
    Ping { id: u32 },
}

/// Reads a client's frames.
pub(crate) struct FrameReader {
    source: Source,
    /// How far the source's buffer is decoded.
    at: usize,
    decoder: Decoder,
    /// None once no more streams can be opened: the window of a decompression is 32 KiB.
    headers: Option<HeaderReader>,
    last_stream: u32,
}

impl FrameReader {
    pub(crate) fn new(source: Source) -> Self {
        let (decoder, headers) = (Decoder::default(), Some(HeaderReader::new()));
        Self { source, at: 0, decoder, headers, last_stream: 0 }
    }

    /// From now on streams are refused, and what they say of themselves is not read.
    pub(crate) fn no_more_streams(&mut self) {
        self.headers = None;
    }

    /// `None`: the client has closed.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame<'_>>, SpdyError> {
        loop {
            let buffer = self.source.buffer();
            let mut rest = &buffer[self.at..];
            let event = self.decoder.next(&mut rest)?;
            self.at = buffer.len() - rest.len();
            let control = match event {
                Some(Event::Data { stream, bytes, fin }) => {
                    let bytes = self.at - bytes.len()..self.at;
                    let bytes = &self.source.buffer()[bytes];
                    return Ok(Some(Frame::Data { stream, bytes, fin }));
                }
                Some(Event::Control(control)) => control,
                None => {
                    self.at = 0;
                    if !self.source.fill().await? {
                        return Ok(None);
                    }
                    continue;
                }
            };
            if let Some(frame) = self.control(control)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, control: Control) -> Result<Option<Frame<'static>>, SpdyError> {
        Ok(match control {
            Control::SynStream { stream, fin, headers } => {
                let headers = match &mut self.headers {
                    Some(reader) => reader.read(&headers)?,
                    None => Headers::default(),
                };
                if stream <= self.last_stream || stream % 2 == 0 {
                    return Err(SpdyError::Order(stream));
                }
                self.last_stream = stream;
                Some(Frame::Open { stream, headers, fin })
            }
            Control::Headers { headers } => {
                if let Some(reader) = &mut self.headers {
                    reader.read(&headers)?;
                }
                None
            }
            Control::Reset { stream } => Some(Frame::Reset { stream }),
            // An even one would be the answer to ours, and we send none.
            Control::Ping { id } => (id % 2 == 1).then_some(Frame::Ping { id }),
            // Whoever goes closes the connection, too.
            Control::GoAway | Control::Other => None,
        })
    }

    /// The last `length` bytes that were decoded: those of the last frame, if it was data.
    pub(crate) fn taken(&self, length: usize) -> &[u8] {
        &self.source.buffer()[self.at - length..self.at]
    }

    /// Waits, after we have closed, until the client has, too: what it sent meanwhile must not
    /// make the kernel throw away what we said last.
    pub(crate) async fn drain(mut self) {
        self.source.drain().await;
    }
}

/// Writes frames to a client.
pub(crate) struct FrameWriter {
    sink: Sink,
    headers: Mutex<HeaderWriter>,
}

impl FrameWriter {
    pub(crate) fn new(sink: Sink) -> Self {
        Self { sink, headers: Mutex::default() }
    }

    /// Only one task replies: blocks go out in the order in which they were compressed.
    pub(crate) async fn accept(&self, stream: u32) -> io::Result<()> {
        let block = {
            let mut headers =
                self.headers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            headers.empty_block()
        };
        self.sink.write(&frame::syn_reply(stream, &block)).await
    }

    pub(crate) async fn reset(&self, stream: u32, status: ResetStatus) -> io::Result<()> {
        self.sink.write(&frame::reset(stream, status)).await
    }

    pub(crate) async fn pong(&self, id: u32) -> io::Result<()> {
        self.sink.write(&frame::ping(id)).await
    }

    pub(crate) async fn data(&self, stream: u32, bytes: &[u8], fin: bool) -> io::Result<()> {
        let header = frame::data_header(stream, bytes.len(), fin);
        self.sink.write(&[&header, bytes].concat()).await
    }

    pub(crate) fn chunk(&self) -> Chunk {
        self.sink.chunk()
    }

    /// The same for what was read into a chunk.
    pub(crate) async fn send(&self, stream: u32, chunk: &mut Chunk) -> io::Result<()> {
        let header = frame::data_header(stream, chunk.len(), false);
        self.sink.send(&header, chunk).await
    }

    /// Says something that needs no answer, if that is possible at once.
    pub(crate) fn probe(&self) {
        self.sink.write_now(&frame::no_settings());
    }

    /// Says goodbye, and that nothing more will come.
    pub(crate) async fn close(&self, last_stream: u32) -> io::Result<()> {
        self.sink.write(&frame::go_away(last_stream)).await?;
        self.sink.close().await
    }
}
