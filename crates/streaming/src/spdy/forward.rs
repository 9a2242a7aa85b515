//! Port-forward over SPDY: for each forwarded connection a client opens two streams, of types
//! `data` and `error`, that carry the same `requestID`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::frame::ResetStatus;
use super::headers::Headers;
use super::{Frame, FrameReader, FrameWriter, SpdyError};
use crate::Timeouts;
use crate::activity::Activity;
use crate::chunk::Chunk;
use crate::forward::{Back, Piece, Remote, Room, forward, refusal, remote};
use crate::hangup::HangUp;
use crate::socket::{Sink, Source};
use crate::tokens::Connect;

/// Streams that one client may have open. A browser through kubectl has some dozens.
const STREAMS: usize = 2000;

/// A client of `portforward.k8s.io`.
pub(crate) struct Forwarding {
    reader: FrameReader,
    writer: Arc<FrameWriter>,
    hang_up: HangUp,
    connect: Connect,
    activity: Arc<Activity>,
    /// What the client sends on, by the number of the stream.
    streams: HashMap<u32, Stream>,
    room: Room,
    /// By request, until both streams are there.
    halves: HashMap<String, Half>,
    /// The connections under way; each ends with the streams that it had.
    pairs: JoinSet<[u32; 2]>,
    creation: Duration,
    last_stream: u32,
}

enum Stream {
    Data { queue: Option<mpsc::Sender<Piece>>, _cut: oneshot::Sender<()>, paired: bool },
    Error,
}

/// A pair of which one stream is there.
struct Half {
    port: u16,
    data: Option<(u32, Remote)>,
    error: Option<u32>,
    expires: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// What a client says of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    kind: Kind,
    port: u16,
    request: String,
}

impl Asked {
    /// `None`: nothing that could be forwarded.
    fn parse(stream: u32, headers: &Headers) -> Option<Self> {
        let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
        let kind = match headers.get("streamtype")? {
            "data" => Kind::Data,
            "error" => Kind::Error,
            _ => return None,
        };
        let request = match headers.get("requestid").filter(|id| !id.is_empty()) {
            Some(id) => id.to_owned(),
            // Clients before Kubernetes 1.1 open the error stream, then the data stream.
            None if kind == Kind::Error => stream.to_string(),
            None => stream.wrapping_sub(2).to_string(),
        };
        Some(Self { kind, port, request })
    }
}

impl Forwarding {
    pub(crate) fn new(
        source: Source,
        sink: Sink,
        hang_up: HangUp,
        connect: Connect,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            reader: FrameReader::new(source),
            writer: Arc::new(FrameWriter::new(sink)),
            hang_up,
            connect,
            activity: Arc::new(Activity::new(timeouts.idle)),
            streams: HashMap::new(),
            room: Room::new(),
            halves: HashMap::new(),
            pairs: JoinSet::new(),
            creation: timeouts.creation,
            last_stream: 0,
        }
    }

    /// Until the client goes, or is idle for too long. Every connection ends with it.
    pub(crate) async fn run(mut self) {
        if let Err(error) = self.serve().await {
            debug!(%error, "forwarding is broken off");
        }
        let Self { writer, last_stream, hang_up, mut pairs, .. } = self;
        pairs.shutdown().await;
        hang_up.part(writer.close(last_stream)).await;
    }

    async fn serve(&mut self) -> Result<(), SpdyError> {
        let activity = Arc::clone(&self.activity);
        loop {
            let expires = self.halves.values().map(|half| half.expires).min();
            tokio::select! {
                frame = self.reader.next() => {
                    activity.note();
                    let Some(frame) = frame? else { return Ok(()) };
                    let said = Said::from(frame);
                    // It may wait for a pod or a client that does not read.
                    let heard = tokio::select! {
                        heard = self.hear(said) => heard?,
                        () = activity.ceased() => false,
                    };
                    if !heard {
                        return Ok(());
                    }
                }
                Some(ended) = self.pairs.join_next() => {
                    for stream in ended.into_iter().flatten() {
                        self.streams.remove(&stream);
                    }
                }
                () = at(expires) => self.expire().await?,
                () = activity.ceased() => return Ok(()),
            }
        }
    }

    /// False: the client has gone.
    async fn hear(&mut self, said: Said) -> io::Result<bool> {
        match said {
            Said::Open { stream, headers, fin } => {
                self.open(stream, &headers).await?;
                if fin && let Some(Stream::Data { queue, .. }) = self.streams.get_mut(&stream) {
                    *queue = None;
                }
            }
            Said::Data { stream, bytes, fin } => return self.data(stream, bytes, fin).await,
            Said::Reset { stream } => drop(self.streams.remove(&stream)),
            Said::Ping { id } => self.writer.pong(id).await?,
        }
        Ok(true)
    }

    async fn open(&mut self, stream: u32, headers: &Headers) -> io::Result<()> {
        self.last_stream = stream;
        let asked = Asked::parse(stream, headers).filter(|_| self.streams.len() < STREAMS);
        let Some(Asked { kind, port, request }) = asked else {
            return self.writer.reset(stream, ResetStatus::RefusedStream).await;
        };
        let creation = self.creation;
        let half = self.halves.entry(request.clone()).or_insert_with(|| Half {
            port,
            data: None,
            error: None,
            expires: Instant::now() + creation,
        });
        match kind {
            Kind::Data if half.data.is_some() => {
                return self.writer.reset(stream, ResetStatus::ProtocolError).await;
            }
            Kind::Error if half.error.is_some() => {
                return self.writer.reset(stream, ResetStatus::ProtocolError).await;
            }
            Kind::Data => {
                let (queue, cut, remote) = remote();
                half.port = port;
                half.data = Some((stream, remote));
                let data = Stream::Data { queue: Some(queue), _cut: cut, paired: false };
                self.streams.insert(stream, data);
            }
            Kind::Error => {
                half.error = Some(stream);
                self.streams.insert(stream, Stream::Error);
            }
        }
        self.writer.accept(stream).await?;
        if half.data.is_some() && half.error.is_some() {
            self.begin(&request);
        }
        Ok(())
    }

    /// Both streams are there: from now on their task has them.
    fn begin(&mut self, request: &str) {
        let half = self.halves.remove(request);
        let Some(Half { port, data: Some((data, remote)), error: Some(error), .. }) = half else {
            return;
        };
        if let Some(Stream::Data { paired, .. }) = self.streams.get_mut(&data) {
            *paired = true;
        }
        let (writer, connect) = (Arc::clone(&self.writer), Arc::clone(&self.connect));
        let activity = Arc::clone(&self.activity);
        self.pairs.spawn(async move {
            let back = DataStream { writer: &writer, stream: data };
            let result = forward(&connect, port, remote, &back, &activity).await;
            // The client may be gone, which its reader sees.
            let _ = finish(&writer, result, port, data, error).await;
            [data, error]
        });
    }

    async fn data(&mut self, stream: u32, bytes: Bytes, fin: bool) -> io::Result<bool> {
        let Some(Stream::Data { queue, paired, .. }) = self.streams.get_mut(&stream) else {
            return Ok(true);
        };
        if let Some(sender) = queue.as_ref().filter(|_| !bytes.is_empty()) {
            if *paired {
                let (writer, room) = (&self.writer, &self.room);
                // One whose connection has ended takes no more, and needs none.
                let send = async { sender.send(room.admit(bytes).await).await };
                if self.hang_up.unless_probed(send, || writer.probe()).await.is_none() {
                    return Ok(false);
                }
            } else if self
                .room
                .admit_early(bytes)
                .is_none_or(|piece| sender.try_send(piece).is_err())
            {
                self.streams.remove(&stream);
                self.writer.reset(stream, ResetStatus::RefusedStream).await?;
                return Ok(true);
            }
        }
        if fin {
            *queue = None;
        }
        Ok(true)
    }

    /// Pairs that were not completed in time.
    async fn expire(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let late = self.halves.extract_if(|_, half| half.expires <= now).collect::<Vec<_>>();
        for (request, half) in late {
            if let Some(stream) = half.error {
                let why = format!("request {request} timed out waiting for streams");
                self.writer.data(stream, why.as_bytes(), true).await?;
                self.streams.remove(&stream);
            }
            if let Some((stream, _)) = half.data {
                self.writer.reset(stream, ResetStatus::Cancel).await?;
                self.streams.remove(&stream);
            }
        }
        Ok(())
    }
}

/// A frame with bytes of its own, so that the reader is free.
enum Said {
    Open { stream: u32, headers: Headers, fin: bool },
    Data { stream: u32, bytes: Bytes, fin: bool },
    Reset { stream: u32 },
    Ping { id: u32 },
}

impl From<Frame<'_>> for Said {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Open { stream, headers, fin } => Self::Open { stream, headers, fin },
            Frame::Data { stream, bytes, fin } => {
                Self::Data { stream, bytes: Bytes::copy_from_slice(bytes), fin }
            }
            Frame::Reset { stream } => Self::Reset { stream },
            Frame::Ping { id } => Self::Ping { id },
        }
    }
}

struct DataStream<'a> {
    writer: &'a FrameWriter,
    stream: u32,
}

impl Back for DataStream<'_> {
    fn chunk(&self) -> Chunk {
        self.writer.chunk()
    }

    async fn send(&self, chunk: &mut Chunk) -> io::Result<()> {
        self.writer.send(self.stream, chunk).await
    }

    async fn end(&self) -> io::Result<()> {
        self.writer.data(self.stream, &[], true).await
    }
}

/// What went wrong is said on the error stream; the data stream is then of no use.
async fn finish(
    writer: &FrameWriter,
    result: Result<(), String>,
    port: u16,
    data: u32,
    error: u32,
) -> io::Result<()> {
    match result {
        Ok(()) => writer.data(error, &[], true).await,
        Err(why) => {
            debug!(port, why, "a forwarded connection failed");
            writer.data(error, refusal(port, &why).as_bytes(), true).await?;
            writer.reset(data, ResetStatus::Cancel).await
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
