//! One forwarded connection: bytes between a client's data stream and a socket in a pod, each
//! direction ending by itself.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::activity::Activity;
use crate::chunk::Chunk;
use crate::tokens::Connect;

/// What of a client's stream may wait for a pod that does not read, in pieces of 32 KiB at most.
/// Then the client waits, and with it its other streams: SPDY leaves no other way.
const QUEUE: usize = 8;

/// What of all its streams may wait. (Two thousand of them could hold 500 MiB otherwise.)
const WAITING_BYTES: usize = 4 << 20;

/// Where what a client has sent waits for the pods.
pub(crate) struct Room(Arc<Semaphore>);

/// Something that waits there.
pub(crate) struct Piece {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(WAITING_BYTES)))
    }

    /// Waits until there is room.
    pub(crate) async fn admit(&self, bytes: Bytes) -> Piece {
        let room = Arc::clone(&self.0).acquire_many_owned(size(&bytes)).await;
        Piece { bytes, _room: room.ok() }
    }

    /// For a stream that nobody reads yet. `None`: there is no room now; half of it is never for these,
    /// lest they keep out those that are read.
    pub(crate) fn admit_early(&self, bytes: Bytes) -> Option<Piece> {
        if self.0.available_permits() < WAITING_BYTES / 2 {
            return None;
        }
        let room = Arc::clone(&self.0).try_acquire_many_owned(size(&bytes)).ok()?;
        Some(Piece { bytes, _room: Some(room) })
    }
}

fn size(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len().min(WAITING_BYTES)).expect("4 MiB fit")
}

/// The client's end of a forwarded connection.
pub(crate) struct Remote {
    /// Ends where the client has ended its side.
    pub(crate) queue: mpsc::Receiver<Piece>,
    /// Ends when the client throws the stream away, or is gone.
    pub(crate) reset: oneshot::Receiver<()>,
}

/// Where the bytes from the pod go.
pub(crate) trait Back: Send + Sync {
    /// What is to be sent is best read into this.
    fn chunk(&self) -> Chunk;
    fn send(&self, chunk: &mut Chunk) -> impl Future<Output = io::Result<()>> + Send;
    /// The pod has ended its side.
    fn end(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Connects, and moves bytes until both sides have ended or the client gives up. The error, for
/// the client to read, is that of the connection.
pub(crate) async fn forward(
    connect: &Connect,
    port: u16,
    remote: Remote,
    back: &impl Back,
    activity: &Arc<Activity>,
) -> Result<(), String> {
    let Remote { queue, reset } = remote;
    let work = async {
        let socket = connect(port).await?;
        // Whatever is small is somebody's keystroke.
        let _ = socket.set_nodelay(true);
        let (read, write) = socket.into_split();
        let both = async { tokio::try_join!(up(queue, write), down(read, back, activity)) };
        both.await.map(drop).map_err(|error| error.to_string())
    };
    tokio::select! {
        result = work => result,
        _ = reset => Ok(()),
    }
}

async fn up(mut queue: mpsc::Receiver<Piece>, mut write: OwnedWriteHalf) -> io::Result<()> {
    while let Some(piece) = queue.recv().await {
        write.write_all(&piece.bytes).await?;
    }
    match write.shutdown().await {
        // The pod was faster.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

async fn down(read: OwnedReadHalf, back: &impl Back, activity: &Activity) -> io::Result<()> {
    let mut chunk = back.chunk();
    loop {
        let count = poll_fn(|context| poll_fill(read.as_ref(), context, &mut chunk)).await?;
        if count == 0 {
            return back.end().await;
        }
        back.send(&mut chunk).await?;
        activity.note();
    }
}

/// Reads into `chunk`; 0 is the end.
fn poll_fill(
    socket: &TcpStream,
    context: &mut Context<'_>,
    chunk: &mut Chunk,
) -> Poll<io::Result<usize>> {
    loop {
        if socket.poll_read_ready(context)?.is_pending() {
            chunk.release();
            return Poll::Pending;
        }
        match socket.try_io(Interest::READABLE, || chunk.fill(socket)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// A stream of a client, as a queue and a way to cut it off.
pub(crate) fn remote() -> (mpsc::Sender<Piece>, oneshot::Sender<()>, Remote) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let (cut, reset) = oneshot::channel();
    (sender, cut, Remote { queue, reset })
}

/// The connection of a pod that cannot be had, in the words of the reference server.
pub(crate) fn refusal(port: u16, why: &str) -> String {
    format!("error forwarding port {port} to pod: {why}")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_waits_is_bounded_and_half_of_the_room_is_for_streams_that_are_read() {
        const PIECE: usize = 32 << 10;
        let room = Room::new();
        let bytes = || Bytes::from_static(&[0; PIECE]);
        let early: Vec<_> = std::iter::from_fn(|| room.admit_early(bytes())).collect();
        // The last one began below the half.
        assert_eq!(early.len(), WAITING_BYTES / 2 / PIECE + 1);
        let read: Vec<_> = std::iter::from_fn(|| room.admit(bytes()).now_or_never()).collect();
        assert_eq!(early.len() + read.len(), WAITING_BYTES / PIECE);
        drop(early);
        assert!(room.admit(bytes()).now_or_never().is_some(), "what has gone makes room");
        assert!(room.admit_early(bytes()).is_some());
    }
}
