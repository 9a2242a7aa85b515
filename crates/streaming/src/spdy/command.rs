//! The streams of an exec or attach over SPDY: the client opens one for each channel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::frame::ResetStatus;
use super::{Frame, FrameReader, FrameWriter, SpdyError};
use crate::channel::{Channel, Incoming};
use crate::chunk::Chunk;
use crate::protocol::Version;
use crate::socket::{Sink, Source};
use crate::tokens::Wanted;

pub(crate) struct Receiver {
    frames: FrameReader,
    sender: Arc<Sender>,
    early: Early,
}

/// What a client sent on its stdin before it had opened all its streams. (Those of Kubernetes wait
/// for the reply to the last one.)
#[derive(Default)]
struct Early {
    bytes: Vec<u8>,
    /// Nothing follows.
    last: bool,
    /// It has been passed on.
    told: bool,
}

impl Early {
    const MOST: usize = 64 << 10;

    fn add(&mut self, bytes: &[u8], last: bool) -> Result<(), SpdyError> {
        if self.bytes.len() + bytes.len() > Self::MOST {
            return Err(SpdyError::Early);
        }
        self.bytes.extend_from_slice(bytes);
        self.last |= last;
        Ok(())
    }

    /// Whether there is something to pass on; from then on there is not.
    fn take(&mut self) -> bool {
        if self.told {
            self.bytes = Vec::new();
            return false;
        }
        self.told = true;
        !self.bytes.is_empty() || self.last
    }
}

pub(crate) struct Sender {
    frames: FrameWriter,
    streams: Streams,
    /// The client has reset them: nothing more goes there.
    muted: [AtomicBool; CHANNELS],
}

const CHANNELS: usize = 5;

/// The stream of each channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Streams([Option<u32>; CHANNELS]);

impl Streams {
    fn of(&self, channel: Channel) -> Option<u32> {
        self.0[channel as usize]
    }

    fn channel(&self, stream: u32) -> Option<Channel> {
        use Channel::{Error, Resize, Stderr, Stdin, Stdout};
        let all = [Stdin, Stdout, Stderr, Error, Resize];
        all.into_iter().find(|channel| self.of(*channel) == Some(stream))
    }

    fn has(&self, wanted: &[Channel]) -> bool {
        wanted.iter().all(|channel| self.of(*channel).is_some())
    }

    fn last(&self) -> u32 {
        self.0.iter().flatten().copied().max().unwrap_or(0)
    }
}

/// Which streams a client has to open before its session begins.
fn expected(version: Version, wanted: Wanted) -> Vec<Channel> {
    let all = [
        (Channel::Error, true),
        (Channel::Stdin, wanted.stdin),
        (Channel::Stdout, wanted.stdout),
        (Channel::Stderr, wanted.stderr),
        (Channel::Resize, wanted.tty && version.resizes()),
    ];
    all.into_iter().filter_map(|(channel, wanted)| wanted.then_some(channel)).collect()
}

/// Waits until all streams are there. `None`: the client has gone instead.
pub(crate) async fn accept(
    source: Source,
    sink: Sink,
    version: Version,
    wanted: Wanted,
) -> Result<Option<(Receiver, Arc<Sender>)>, SpdyError> {
    let (mut reader, writer) = (FrameReader::new(source), FrameWriter::new(sink));
    let expected = expected(version, wanted);
    let (mut streams, mut early) = (Streams::default(), Early::default());
    while !streams.has(&expected) {
        match reader.next().await? {
            None => return Ok(None),
            Some(Frame::Open { stream, headers, fin }) => {
                let channel = headers.get("streamtype").and_then(Channel::named);
                // One that means nothing to us is let in, and never heard.
                writer.accept(stream).await?;
                if let Some(channel) = channel {
                    streams.0[channel as usize] = Some(stream);
                    early.last |= fin && channel == Channel::Stdin;
                }
            }
            Some(Frame::Ping { id }) => writer.pong(id).await?,
            Some(Frame::Reset { stream }) => {
                if let Some(channel) = streams.channel(stream) {
                    streams.0[channel as usize] = None;
                }
            }
            Some(Frame::Data { stream, bytes, fin }) => {
                if streams.channel(stream) == Some(Channel::Stdin) {
                    early.add(bytes, fin)?;
                }
            }
        }
    }
    reader.no_more_streams();
    let muted = [const { AtomicBool::new(false) }; CHANNELS];
    let sender = Sender { frames: writer, streams, muted };
    if version == Version::V1
        && let Some(error) = streams.of(Channel::Error)
    {
        // What kubelets of version 1.0 did, and their clients relied on.
        sender.mute(Channel::Error);
        sender.frames.reset(error, ResetStatus::Cancel).await?;
    }
    let sender = Arc::new(sender);
    Ok(Some((Receiver { frames: reader, sender: Arc::clone(&sender), early }, sender)))
}

impl Receiver {
    /// `None`: the client has gone.
    pub(crate) async fn next(&mut self) -> Result<Option<Incoming<'_>>, SpdyError> {
        if self.early.take() {
            let Early { bytes, last, .. } = &self.early;
            return Ok(Some(Incoming { channel: Channel::Stdin, bytes, last: *last }));
        }
        loop {
            // Borrowed anew where it is returned: the loop goes on with the rest.
            let (stream, length, last) = match self.frames.next().await? {
                None => return Ok(None),
                Some(Frame::Data { stream, bytes, fin }) => (stream, bytes.len(), fin),
                Some(Frame::Open { stream, .. }) => {
                    self.sender.frames.reset(stream, ResetStatus::RefusedStream).await?;
                    continue;
                }
                Some(Frame::Ping { id }) => {
                    self.sender.frames.pong(id).await?;
                    // It says nothing, but that the client is there: the session is not idle.
                    return Ok(Some(Incoming { channel: Channel::Error, bytes: &[], last: false }));
                }
                Some(Frame::Reset { stream }) => {
                    let Some(channel) = self.sender.streams.channel(stream) else { continue };
                    self.sender.mute(channel);
                    (stream, 0, true)
                }
            };
            if let Some(channel) = self.sender.streams.channel(stream) {
                return Ok(Some(Incoming { channel, bytes: self.frames.taken(length), last }));
            }
        }
    }

    pub(crate) async fn drain(self) {
        self.frames.drain().await;
    }
}

impl Sender {
    fn mute(&self, channel: Channel) {
        self.muted[channel as usize].store(true, Ordering::Relaxed);
    }

    /// The stream of a channel that the client still listens to.
    fn open(&self, channel: Channel) -> Option<u32> {
        let muted = self.muted[channel as usize].load(Ordering::Relaxed);
        self.streams.of(channel).filter(|_| !muted)
    }

    pub(crate) async fn send(&self, channel: Channel, chunk: &mut Chunk) -> io::Result<()> {
        match self.open(channel) {
            Some(stream) => self.frames.send(stream, chunk).await,
            None => Ok(()),
        }
    }

    /// Nothing more comes on this channel.
    pub(crate) async fn end(&self, channel: Channel) -> io::Result<()> {
        match self.open(channel) {
            Some(stream) => self.frames.data(stream, &[], true).await,
            None => Ok(()),
        }
    }

    pub(crate) fn probe(&self) {
        self.frames.probe();
    }

    /// How the session ended, as its last word but the goodbye.
    pub(crate) async fn status(&self, status: &[u8]) -> io::Result<()> {
        match self.open(Channel::Error) {
            Some(stream) => self.frames.data(stream, status, true).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn close(&self) -> io::Result<()> {
        self.frames.close(self.streams.last()).await
    }
}
