//! A session with a process: exec or attach, from the client's last stream to the goodbye.
//!
//! One task does everything. What the client says and what the process writes are moved beside each
//! other; whoever is slow holds up only those who talk to it. The order at the end is what clients
//! rely on: the last byte of output, then the end of the outputs, the status, the goodbye.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::timeout;
use tracing::debug;

use crate::activity::Activity;
use crate::channel::{Channel, Incoming};
use crate::chunk::Chunk;
use crate::client::{ClientError, Receiver, Sender};
use crate::hangup::{FAREWELL, HangUp};
use crate::process::{self, AsyncFd, End, Output, Process, Size, Stdin};
use crate::protocol::Version;
use crate::status::{self, Purpose};
use crate::tokens::Start;

/// After the output's end a container's own is a matter of milliseconds.
const DETACHED: Duration = Duration::from_secs(5);
const TOO_SLOW: &str = "detached: the client did not keep up with the output, or the container's \
    monitor died";

/// No size of a terminal is longer, as JSON.
const SIZE_BYTES: usize = 256;

type Ended = Shared<BoxFuture<'static, End>>;

pub(crate) struct Session {
    pub(crate) receiver: Receiver,
    pub(crate) sender: Sender,
    pub(crate) hang_up: HangUp,
    pub(crate) version: Version,
    pub(crate) purpose: Purpose,
    pub(crate) idle: Duration,
}

impl Session {
    /// Starts the process, serves it, and says how it ended.
    pub(crate) async fn run(mut self, start: Start) {
        let Some(started) = self.hang_up.unless(start()).await else { return };
        let end = match started {
            Ok(process) => {
                match self.purpose {
                    Purpose::Exec => debug!("the command runs"),
                    Purpose::Attach => debug!("attached"),
                }
                self.serve(process).await
            }
            Err(why) => Some(End::Failed(why)),
        };
        // Without an end there is nobody left to tell it.
        let Some(end) = end else { return };
        let Self { receiver, sender, hang_up, version, purpose, idle } = self;
        let status = status::encode(version, purpose, &end);
        let farewell = async {
            sender.end(Channel::Stdout).await?;
            sender.end(Channel::Stderr).await?;
            sender.status(&status).await?;
            sender.close().await
        };
        // A client that does not read keeps us no longer than one that does not speak.
        let told = hang_up.unless(timeout(idle, farewell)).await;
        if let Some(Ok(Ok(()))) = told {
            // Lest it miss our last words; late ones miss nothing by now.
            let _ = timeout(FAREWELL, receiver.drain()).await;
        }
    }

    /// `None`: the client has gone, or has said nothing for too long.
    async fn serve(&mut self, process: Process) -> Option<End> {
        let Process { stdin, output, resize, ended } = process;
        let activity = Activity::new(self.idle);
        let out = Out { sender: &self.sender, ended: &ended, activity: &activity };
        let mut input = Input { stdin, resize, sizes: Sizes::default(), hang_up: &self.hang_up };
        let outputs = async {
            match output {
                Output::Each { stdout, stderr } => {
                    tokio::try_join!(
                        out.pump(stdout, Channel::Stdout),
                        out.pump(stderr, Channel::Stderr)
                    )?;
                }
                Output::Packets(socket) => {
                    out.pump_packets(&socket).await?;
                    // The output's end is the container's, but for one reason.
                    let end = timeout(DETACHED, ended.clone()).await;
                    return Ok(end.unwrap_or_else(|_| End::Failed(TOO_SLOW.to_owned())));
                }
            }
            Ok::<_, io::Error>(ended.clone().await)
        };
        tokio::select! {
            // What the process has said goes before what becomes of the client.
            biased;
            end = outputs => end.inspect_err(|error| debug!(%error, "the client has gone")).ok(),
            result = input.take(&mut self.receiver, &self.sender, &activity) => {
                if let Err(error) = result {
                    debug!(%error, "the session is broken off");
                }
                None
            }
            () = activity.ceased() => None,
        }
    }
}

/// From the client to the process.
struct Input<'a> {
    stdin: Option<Stdin>,
    resize: Option<Box<dyn Fn(Size) + Send + Sync>>,
    sizes: Sizes,
    hang_up: &'a HangUp,
}

impl Input<'_> {
    /// Until the client has gone.
    async fn take(
        &mut self,
        receiver: &mut Receiver,
        sender: &Sender,
        activity: &Activity,
    ) -> Result<(), ClientError> {
        while let Some(Incoming { channel, bytes, last }) = receiver.next().await? {
            activity.note();
            match channel {
                Channel::Stdin => {
                    if !self.feed(bytes, sender).await {
                        return Ok(());
                    }
                    if last {
                        self.stdin = None;
                    }
                }
                Channel::Resize => {
                    if let (Some(size), Some(resize)) = (self.sizes.push(bytes), &self.resize) {
                        resize(size);
                    }
                }
                Channel::Stdout | Channel::Stderr | Channel::Error => {}
            }
        }
        Ok(())
    }

    /// False: the client has gone while the process did not read.
    async fn feed(&mut self, bytes: &[u8], sender: &Sender) -> bool {
        let Some(stdin) = &self.stdin else { return true };
        let write = stdin.write_all(bytes);
        match self.hang_up.unless_probed(write, || sender.probe()).await {
            Some(Ok(())) => true,
            // It has closed its end: what else comes is for nobody.
            Some(Err(_)) => {
                self.stdin = None;
                true
            }
            None => false,
        }
    }
}

/// Sizes come as JSON objects without anything between them, cut anywhere.
#[derive(Default)]
struct Sizes(Vec<u8>);

impl Sizes {
    /// The last whole size that has come with `bytes`: only that one counts.
    fn push(&mut self, bytes: &[u8]) -> Option<Size> {
        let mut found = None;
        for byte in bytes {
            // What is no size is dropped with what it is in.
            if self.0.len() >= SIZE_BYTES || (self.0.is_empty() && *byte != b'{') {
                self.0.clear();
                continue;
            }
            self.0.push(*byte);
            if *byte == b'}' {
                found = serde_json::from_slice(&self.0).ok().or(found);
                self.0.clear();
            }
        }
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        found
    }
}

/// From the process to the client.
#[derive(Clone, Copy)]
struct Out<'a> {
    sender: &'a Sender,
    ended: &'a Ended,
    activity: &'a Activity,
}

impl Out<'_> {
    /// Until the stream ends; or the process has ended and all that it wrote is sent: another
    /// holder of the pipe may keep it open for ever.
    async fn pump(self, source: Option<Arc<AsyncFd<OwnedFd>>>, channel: Channel) -> io::Result<()> {
        let Some(source) = source else { return Ok(()) };
        let mut chunk = Chunk::default();
        while self.read(&source, &mut chunk).await? > 0 {
            self.activity.note();
            self.sender.send(channel, &mut chunk).await?;
            self.activity.note();
        }
        self.sender.end(channel).await
    }

    /// Both outputs from one socket, whose packets begin with their channel.
    async fn pump_packets(self, source: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut chunk = Chunk::default();
        while self.read(source, &mut chunk).await? > 0 {
            self.activity.note();
            let channel = match chunk.take_first() {
                Some(1) => Channel::Stdout,
                Some(2) => Channel::Stderr,
                Some(_) | None => continue,
            };
            self.sender.send(channel, &mut chunk).await?;
        }
        Ok(())
    }

    /// 0: there will be no more.
    async fn read(self, source: &AsyncFd<OwnedFd>, chunk: &mut Chunk) -> io::Result<usize> {
        let mut ended = self.ended.clone();
        poll_fn(|context| {
            if let Poll::Ready(result) = process::poll_read(source, context, chunk) {
                return Poll::Ready(result);
            }
            let result = match ended.poll_unpin(context) {
                // It may have written between our look and its end.
                Poll::Ready(_) => Poll::Ready(process::read_now(source, chunk)),
                Poll::Pending => Poll::Pending,
            };
            if !matches!(result, Poll::Ready(Ok(1..))) {
                chunk.release();
            }
            result
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_whatever_pieces_they_come() {
        let size = |width, height| Some(Size { width, height });
        let mut sizes = Sizes::default();
        assert_eq!(sizes.push(br#"{"Width":80,"Height":24}"#), size(80, 24));
        assert_eq!(sizes.push(br#"{"Width":1,"Height":2}{"width":3,"height":4}{"Wid"#), size(3, 4));
        assert_eq!(sizes.push(br#"th":5"#), None);
        assert_eq!(sizes.push(br#","Height":6}"#), size(5, 6));
        assert_eq!(sizes.push(b"\n"), None);
    }

    #[test]
    fn what_is_no_size_is_passed_over_and_never_kept() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.push(br#"x{"Width":-1,"Height":70000}{}"#), None);
        assert_eq!(sizes.push(&[b'{'; 100_000]), None);
        assert!(sizes.0.len() <= SIZE_BYTES);
        sizes.push(b"}");
        assert_eq!(sizes.push(br#"{"Width":7,"Height":8}"#), Some(Size { width: 7, height: 8 }));
    }
}
