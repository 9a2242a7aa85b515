//! The channels of an exec or attach over WebSocket.

use std::io;
use std::sync::Arc;

use super::WebSocketError;
use super::channels::{ChannelReader, ChannelWriter, Heard, channels};
use crate::channel::{Channel, Incoming};
use crate::chunk::Chunk;
use crate::protocol::{Coding, Version};
use crate::socket::{Sink, Source};
use crate::tokens::Wanted;

pub(crate) struct Receiver(ChannelReader);

pub(crate) struct Sender {
    channels: Arc<ChannelWriter>,
    wanted: Wanted,
}

/// A channel that is the client's to write.
fn channel(number: u8) -> Option<Channel> {
    match number {
        0 => Some(Channel::Stdin),
        4 => Some(Channel::Resize),
        _ => None,
    }
}

/// Tells the client that it is connected, by a message without bytes.
pub(crate) async fn accept(
    source: Source,
    sink: Sink,
    spoken: (Version, Coding),
    wanted: Wanted,
) -> io::Result<(Receiver, Sender)> {
    let lowest = match wanted {
        Wanted { stdout: true, .. } => Channel::Stdout,
        Wanted { stderr: true, .. } => Channel::Stderr,
        _ => Channel::Error,
    };
    let (reader, writer) = channels(source, sink, spoken);
    let sender = Sender { channels: writer, wanted };
    sender.write(lowest, &mut Chunk::from(&[][..])).await?;
    Ok((Receiver(reader), sender))
}

impl Receiver {
    pub(crate) async fn next(&mut self) -> Result<Option<Incoming<'_>>, WebSocketError> {
        let Some(Heard { number, bytes, last }) = self.0.next().await? else { return Ok(None) };
        // What no client has to say is said on a channel that nobody listens to.
        let channel = channel(number).unwrap_or(Channel::Error);
        Ok(Some(Incoming { channel, bytes, last }))
    }

    pub(crate) async fn drain(self) {
        self.0.drain().await;
    }
}

impl Sender {
    fn wants(&self, channel: Channel) -> bool {
        match channel {
            Channel::Stdout => self.wanted.stdout,
            Channel::Stderr => self.wanted.stderr,
            Channel::Error => true,
            Channel::Stdin | Channel::Resize => false,
        }
    }

    pub(crate) async fn send(&self, channel: Channel, chunk: &mut Chunk) -> io::Result<()> {
        if self.wants(channel) { self.write(channel, chunk).await } else { Ok(()) }
    }

    async fn write(&self, channel: Channel, chunk: &mut Chunk) -> io::Result<()> {
        self.channels.send(channel as u8, chunk).await
    }

    /// These protocols have no word for the end of an output.
    pub(crate) async fn end(&self, _: Channel) -> io::Result<()> {
        Ok(())
    }

    pub(crate) async fn status(&self, status: &[u8]) -> io::Result<()> {
        if status.is_empty() {
            return Ok(());
        }
        self.write(Channel::Error, &mut status.into()).await
    }

    pub(crate) fn probe(&self) {
        self.channels.probe();
    }

    pub(crate) async fn close(&self) -> io::Result<()> {
        self.channels.close().await
    }
}
