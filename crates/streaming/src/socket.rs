//! The connection under a session: what is read from it, into a buffer that exists only while there
//! is something in it, and what is written to it, frame by frame.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Mutex;
use tokio_util::either::Either;
use tokio_util::io::poll_read_buf;
use tracing::debug;

use crate::chunk::Chunk;

/// What is read from a client at once.
const READ_BYTES: usize = 32 << 10;

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A plain one, or one with something between us and the kernel: TLS, or another protocol's frames.
pub(crate) type Socket = Either<TcpStream, Box<dyn Duplex>>;

/// Both directions of a connection; `early` was read with the request.
pub(crate) fn halves(socket: Socket, early: &[u8]) -> (Source, Sink) {
    match socket {
        Either::Left(plain) => {
            let (read, write) = plain.into_split();
            (Source::new(Box::new(read), early), Sink::new(Either::Left(write)))
        }
        Either::Right(other) => {
            let (read, write) = tokio::io::split(other);
            (Source::new(Box::new(read), early), Sink::new(Either::Right(write)))
        }
    }
}

/// Reads from a client.
pub(crate) struct Source {
    io: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
}

impl Source {
    fn new(io: Box<dyn AsyncRead + Send + Unpin>, early: &[u8]) -> Self {
        Self { io, buffer: early.into() }
    }

    /// What has been read last. Whoever fills again has taken all of it.
    pub(crate) fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    pub(crate) fn buffer_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Waits for more. False: the client has closed.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        let Self { io, buffer } = self;
        let count = poll_fn(|context| {
            buffer.clear();
            buffer.reserve(READ_BYTES);
            let polled = poll_read_buf(Pin::new(&mut *io), context, buffer);
            if polled.is_pending() {
                *buffer = BytesMut::new();
            }
            polled
        });
        Ok(count.await? > 0)
    }

    /// Reads on, for nobody, until the client has closed too.
    pub(crate) async fn drain(&mut self) {
        while matches!(self.fill().await, Ok(true)) {}
        self.buffer = BytesMut::new();
    }
}

/// Writes whole frames to a client, whoever has one.
pub(crate) struct Sink {
    out: Mutex<Out>,
    /// Whether the kernel can move bytes there.
    splices: bool,
}

type Write = Either<OwnedWriteHalf, WriteHalf<Box<dyn Duplex>>>;

struct Out {
    io: Write,
    /// What is left of a frame whose writer gave up halfway: it goes before the next frame, or the
    /// client would take one for the other.
    owed: Vec<u8>,
}

impl Sink {
    fn new(io: Write) -> Self {
        let splices = matches!(io, Either::Left(_));
        Self { out: Mutex::new(Out { io, owed: vec![] }), splices }
    }

    /// What is to be sent here is best read into this.
    pub(crate) fn chunk(&self) -> Chunk {
        if self.splices { Chunk::spliced() } else { Chunk::default() }
    }

    pub(crate) async fn write(&self, frame: &[u8]) -> io::Result<()> {
        self.out.lock().await.write(frame).await
    }

    /// Writes a frame of a header and what is in `chunk`, which is of this sink.
    pub(crate) async fn send(&self, header: &[u8], chunk: &mut Chunk) -> io::Result<()> {
        let mut out = self.out.lock().await;
        match chunk.framed(header) {
            Some(frame) => out.write(frame).await,
            None => out.splice(header, chunk).await,
        }
    }

    /// Writes a short frame if that needs no waiting: it is said again if it matters.
    pub(crate) fn write_now(&self, frame: &[u8]) {
        // Whoever is writing is told as much by that.
        let Ok(mut out) = self.out.try_lock() else { return };
        if let Some(Err(error)) = out.write(frame).now_or_never() {
            debug!(%error, "the client has gone");
        }
    }

    /// Says that nothing more will come.
    pub(crate) async fn close(&self) -> io::Result<()> {
        let mut out = self.out.lock().await;
        out.settle().await?;
        out.io.shutdown().await
    }
}

impl Out {
    async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.settle().await?;
        Unwritten { out: self, rest: frame, chunk: None, begun: false }.write().await?;
        // TLS keeps back what the socket did not take at once.
        self.io.flush().await
    }

    async fn splice(&mut self, header: &[u8], chunk: &mut Chunk) -> io::Result<()> {
        self.settle().await?;
        Unwritten { out: self, rest: header, chunk: Some(chunk), begun: false }.splice().await
    }

    async fn settle(&mut self) -> io::Result<()> {
        while !self.owed.is_empty() {
            let count = written(self.io.write(&self.owed).await?)?;
            self.owed.drain(..count);
        }
        self.owed = Vec::new();
        Ok(())
    }
}

/// A frame on its way out.
struct Unwritten<'a> {
    out: &'a mut Out,
    rest: &'a [u8],
    /// What comes after that.
    chunk: Option<&'a mut Chunk>,
    begun: bool,
}

impl Unwritten<'_> {
    async fn write(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            let count = written(self.out.io.write(self.rest).await?)?;
            self.rest = &self.rest[count..];
            self.begun = true;
        }
        Ok(())
    }

    async fn splice(&mut self) -> io::Result<()> {
        let Self { out, rest, chunk: Some(chunk), begun } = self else { return Ok(()) };
        let Either::Left(half) = &out.io else { return Err(io::ErrorKind::Unsupported.into()) };
        let socket: &TcpStream = half.as_ref();
        // The header leaves with what comes behind it.
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        while !rest.is_empty() {
            let sent = socket.async_io(Interest::WRITABLE, || Ok(send(socket, rest, flags)?));
            let sent = written(sent.await?)?;
            *rest = &rest[sent..];
            *begun = true;
        }
        while chunk.len() > 0 {
            written(socket.async_io(Interest::WRITABLE, || chunk.move_to(socket)).await?)?;
        }
        Ok(())
    }
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        let behind = self.chunk.as_deref_mut().filter(|chunk| chunk.len() > 0);
        if !self.begun || (self.rest.is_empty() && behind.is_none()) {
            return;
        }
        self.out.owed = self.rest.to_vec();
        if let Some(chunk) = behind {
            // They are there: reading them takes no waiting.
            match chunk.land() {
                Ok(bytes) => self.out.owed.extend(bytes),
                Err(error) => debug!(%error, "a frame is torn"),
            }
        }
    }
}

fn written(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_frame_whose_writer_gave_up_halfway_is_ended_before_the_next() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let (_source, sink) = halves(Either::Right(Box::new(ours)), &[]);
        assert!(sink.write(b"first").now_or_never().is_none());
        // It has no room to begin: nothing of it is owed.
        sink.write_now(b"never");
        let read = async {
            let mut text = String::new();
            theirs.read_to_string(&mut text).await.map(|_| text)
        };
        let write = async {
            sink.write(b"second").await?;
            sink.close().await
        };
        let (text, closed) = tokio::join!(read, write);
        assert_eq!((text.unwrap().as_str(), closed.is_ok()), ("firstsecond", true));
    }

    /// A chunk whose bytes are in the kernel: numbers that go on from `begin`.
    fn moved(sink: &Sink, begin: u32) -> (Chunk, Vec<u8>) {
        let (from, to) = rustix::pipe::pipe().unwrap();
        let bytes: Vec<u8> = (begin..begin + 8000).flat_map(u32::to_be_bytes).collect();
        let mut chunk = sink.chunk();
        for _ in 0..2 {
            rustix::io::write(&to, &bytes).unwrap();
            assert_eq!(chunk.fill(&from).unwrap(), bytes.len());
        }
        assert!(chunk.bytes().is_empty(), "they are in the kernel");
        (chunk, bytes)
    }

    #[tokio::test]
    async fn what_the_kernel_moves_comes_whole_and_in_order_also_when_a_writer_gave_up_halfway() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut theirs = listener.accept().await.unwrap().0;
        ours.writable().await.unwrap();
        let (_source, sink) = halves(Either::Left(ours), &[]);
        let (mut expected, mut read) = (vec![], vec![]);
        // Until one is cut: the socket is not always full between two.
        for number in 0.. {
            let (mut chunk, bytes) = moved(&sink, number * 8000);
            let given_up = sink.send(b"head", &mut chunk).now_or_never().is_none();
            let begun = chunk.len() == 0;
            if begun {
                expected.extend([b"head", &bytes[..]].concat());
            } else {
                let mut some = [0; 100_001];
                theirs.read_exact(&mut some).await.unwrap();
                read.extend(some);
            }
            if given_up && begun {
                break;
            }
            assert!(number < 1000, "no frame is cut");
        }
        assert!(!sink.out.try_lock().unwrap().owed.is_empty());
        let write = async {
            sink.write(b"next").await?;
            sink.close().await
        };
        let (read_all, closed) = tokio::join!(theirs.read_to_end(&mut read), write);
        expected.extend(b"next");
        assert!(read_all.is_ok() && closed.is_ok() && read == expected);
    }
}
