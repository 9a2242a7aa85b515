//! Port-forward over WebSocket in its old form: the ports are known beforehand, and each has two
//! channels, for data and for what went wrong. Each channel begins with its port, as two bytes in
//! little-endian order.
//!
//! There is one connection for each port, made at once, and neither side has a word for the end of
//! its direction: the pod's end is the connection's, and the last connection's end is the client's.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::WebSocketError;
use super::channels::{ChannelReader, ChannelWriter, Heard, channels};
use crate::activity::Activity;
use crate::chunk::Chunk;
use crate::forward::{Back, Piece, Room, forward, refusal, remote};
use crate::hangup::{FAREWELL, HangUp};
use crate::ports::Ports;
use crate::protocol::{Coding, Version};
use crate::socket::{Sink, Source};
use crate::tokens::Connect;

/// A client of the old form.
pub(crate) struct Forwarding {
    pub(crate) source: Source,
    pub(crate) sink: Sink,
    pub(crate) coding: Coding,
    pub(crate) hang_up: HangUp,
    pub(crate) connect: Connect,
    pub(crate) ports: Ports,
    pub(crate) activity: Activity,
}

/// The connections under way.
struct Connections {
    reader: ChannelReader,
    writer: Arc<ChannelWriter>,
    hang_up: HangUp,
    activity: Arc<Activity>,
    /// What the client says to each port, by their order; none once the connection has ended.
    queues: Vec<Option<mpsc::Sender<Piece>>>,
    room: Room,
    /// Each ends with its place among the queues.
    tasks: JoinSet<usize>,
}

/// Why there is nothing more to forward.
enum End {
    /// All of them have ended.
    Connections,
    /// It has gone, or says nothing.
    Client,
}

impl Forwarding {
    /// Until all connections have ended, the client goes, or nothing is said for too long.
    pub(crate) async fn run(self) {
        let Self { source, sink, coding, hang_up, connect, ports, activity } = self;
        let (reader, writer) = channels(source, sink, (Version::V4, coding));
        let activity = Arc::new(activity);
        let mut connections = Connections {
            reader,
            writer,
            hang_up,
            activity,
            queues: vec![],
            room: Room::new(),
            tasks: JoinSet::new(),
        };
        let end = connections.serve(&connect, &ports).await;
        let Connections { reader, writer, hang_up, activity, mut tasks, .. } = connections;
        tasks.shutdown().await;
        match end {
            // The last of what the pods sent may be on its way to a client that is slow.
            Ok(End::Connections) => {
                tokio::select! {
                    _ = hang_up.unless(writer.close()) => {}
                    () = activity.ceased() => return,
                }
                // Late ones miss nothing by now.
                let _ = timeout(FAREWELL, reader.drain()).await;
            }
            Ok(End::Client) => hang_up.part(writer.close()).await,
            Err(error) => debug!(%error, "forwarding is broken off"),
        }
    }
}

impl Connections {
    async fn serve(&mut self, connect: &Connect, ports: &Ports) -> Result<End, WebSocketError> {
        for (port, data) in ports.numbered() {
            for channel in [data, data + 1] {
                let mut said = Chunk::from(&port.to_le_bytes()[..]);
                self.writer.send(channel, &mut said).await?;
            }
        }
        for (port, data) in ports.numbered() {
            self.begin(connect, port, data);
        }
        let activity = Arc::clone(&self.activity);
        loop {
            tokio::select! {
                heard = self.reader.next() => {
                    activity.note();
                    let Some(Heard { number, bytes, .. }) = heard? else { return Ok(End::Client) };
                    let bytes = Bytes::copy_from_slice(bytes);
                    // It may wait for a pod that does not read.
                    let fed = tokio::select! {
                        fed = self.feed(number, bytes) => fed,
                        () = activity.ceased() => false,
                    };
                    if !fed {
                        return Ok(End::Client);
                    }
                }
                ended = self.tasks.join_next() => match ended {
                    Some(ended) => ended.into_iter().for_each(|place| self.queues[place] = None),
                    None => return Ok(End::Connections),
                },
                () = activity.ceased() => return Ok(End::Client),
            }
        }
    }

    fn begin(&mut self, connect: &Connect, port: u16, data: u8) {
        let (queue, cut, remote) = remote();
        let place = self.queues.len();
        self.queues.push(Some(queue));
        let back = Pair { writer: Arc::clone(&self.writer), data, cut: Mutex::new(Some(cut)) };
        let (connect, activity) = (Arc::clone(connect), Arc::clone(&self.activity));
        self.tasks.spawn(async move {
            let result = forward(&connect, port, remote, &back, &activity).await;
            if let Err(why) = result {
                debug!(port, why, "a forwarded connection failed");
                let mut said = Chunk::from(refusal(port, &why).as_bytes());
                // The client may be gone, which its reader sees.
                let _ = back.writer.send(data + 1, &mut said).await;
            }
            place
        });
    }

    /// False: the client has gone while the pod did not read.
    async fn feed(&mut self, number: u8, bytes: Bytes) -> bool {
        let is_data = number.is_multiple_of(2) && !bytes.is_empty();
        let queue = self.queues.get(usize::from(number / 2)).and_then(Option::as_ref);
        let Some(queue) = queue.filter(|_| is_data) else { return true };
        // One whose connection has ended takes no more, and needs none.
        let (writer, room) = (&self.writer, &self.room);
        let send = async { queue.send(room.admit(bytes).await).await };
        self.hang_up.unless_probed(send, || writer.probe()).await.is_some()
    }
}

/// The two channels of a connection.
struct Pair {
    writer: Arc<ChannelWriter>,
    data: u8,
    /// Ends the client's direction.
    cut: Mutex<Option<oneshot::Sender<()>>>,
}

impl Back for Pair {
    fn chunk(&self) -> Chunk {
        self.writer.chunk()
    }

    async fn send(&self, chunk: &mut Chunk) -> io::Result<()> {
        self.writer.send(self.data, chunk).await
    }

    /// Nothing tells the client, so that it would never end its own direction.
    async fn end(&self) -> io::Result<()> {
        drop(self.cut.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }
}
