//! The client of an exec or attach, over either protocol.

use std::io;
use std::sync::Arc;

use crate::channel::{Channel, Incoming};
use crate::chunk::Chunk;
use crate::spdy::{self, SpdyError};
use crate::websocket::{self, WebSocketError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(transparent)]
    Spdy(#[from] SpdyError),
    #[error(transparent)]
    WebSocket(#[from] WebSocketError),
}

pub(crate) enum Receiver {
    Spdy(spdy::command::Receiver),
    WebSocket(websocket::command::Receiver),
}

pub(crate) enum Sender {
    Spdy(Arc<spdy::command::Sender>),
    WebSocket(websocket::command::Sender),
}

impl Receiver {
    /// `None`: it has gone.
    pub(crate) async fn next(&mut self) -> Result<Option<Incoming<'_>>, ClientError> {
        match self {
            Self::Spdy(receiver) => Ok(receiver.next().await?),
            Self::WebSocket(receiver) => Ok(receiver.next().await?),
        }
    }

    /// Until the client has closed, for nobody.
    pub(crate) async fn drain(self) {
        match self {
            Self::Spdy(receiver) => receiver.drain().await,
            Self::WebSocket(receiver) => receiver.drain().await,
        }
    }
}

impl Sender {
    pub(crate) async fn send(&self, channel: Channel, chunk: &mut Chunk) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.send(channel, chunk).await,
            Self::WebSocket(sender) => sender.send(channel, chunk).await,
        }
    }

    /// Nothing more comes on this channel.
    pub(crate) async fn end(&self, channel: Channel) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.end(channel).await,
            Self::WebSocket(sender) => sender.end(channel).await,
        }
    }

    /// How the session ended, as its last word but the goodbye.
    pub(crate) async fn status(&self, status: &[u8]) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.status(status).await,
            Self::WebSocket(sender) => sender.status(status).await,
        }
    }

    /// Says something that needs no answer, if that is possible at once.
    pub(crate) fn probe(&self) {
        match self {
            Self::Spdy(sender) => sender.probe(),
            Self::WebSocket(sender) => sender.probe(),
        }
    }

    pub(crate) async fn close(&self) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.close().await,
            Self::WebSocket(sender) => sender.close().await,
        }
    }
}
