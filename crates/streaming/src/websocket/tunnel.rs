//! SPDY within WebSocket (`SPDY/3.1+portforward.k8s.io`): the bytes of its frames in binary
//! messages, cut anywhere.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio_util::either::Either;

use super::frame::{self, Opcode};
use super::{MessageReader, WebSocketError};
use crate::chunk::Chunk;
use crate::socket::{Sink, Socket, Source};

const PIPE_BYTES: usize = 64 << 10;

/// What speaks SPDY on one end, and what carries it to the client on the other.
pub(crate) fn tunnel(source: Source, sink: Sink) -> (Socket, impl Future<Output = ()> + Send) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    (Either::Right(Box::new(ours)), carry(MessageReader::new(source), sink, theirs))
}

/// Until either side has closed.
async fn carry(mut messages: MessageReader, sink: Sink, spdy: DuplexStream) {
    let (from_spdy, to_spdy) = tokio::io::split(spdy);
    let both = async {
        tokio::select! {
            // The end of SPDY is told to the client before anything else.
            biased;
            result = out(from_spdy, &sink) => result.map_err(WebSocketError::Io),
            result = inward(&mut messages, &sink, to_spdy) => result,
        }
    };
    if let Err(error) = both.await {
        tracing::debug!(%error, "a tunnel is broken off");
    }
}

async fn out(mut spdy: ReadHalf<DuplexStream>, sink: &Sink) -> io::Result<()> {
    let mut chunk = Chunk::default();
    loop {
        if spdy.read_buf(chunk.begin()).await? == 0 {
            return super::close(sink).await;
        }
        let header = frame::header(Opcode::Binary, chunk.len());
        sink.send(&header, &mut chunk).await?;
    }
}

async fn inward(
    messages: &mut MessageReader,
    sink: &Sink,
    mut spdy: WriteHalf<DuplexStream>,
) -> Result<(), WebSocketError> {
    while let Some(part) = messages.next(sink).await? {
        spdy.write_all(messages.bytes(part)).await?;
    }
    Ok(())
}
