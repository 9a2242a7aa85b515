//! The client of `tests/tools/remote`: client-go, with the transport and subprotocol that a test
//! chooses.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use crate::tools::tool;

/// How a client reaches a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transport {
    /// `spdy` or `websocket`.
    pub name: &'static str,
    /// The subprotocols it asks for.
    pub protocols: &'static str,
}

/// What became of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl Transport {
    pub const fn spdy(protocols: &'static str) -> Self {
        Self { name: "spdy", protocols }
    }

    pub const fn websocket(protocols: &'static str) -> Self {
        Self { name: "websocket", protocols }
    }

    /// The client with `flags`, ready to be told what to do.
    pub fn client(self, flags: &[&str]) -> Command {
        let mut command = Command::new(tool("remote"));
        command.args(["-transport", self.name, "-protocols", self.protocols]).args(flags);
        command
    }

    /// A session of exec or attach; with a `stdin`, that is sent, and its end.
    pub fn stream(self, flags: &[&str], url: &str, stdin: Option<&str>) -> Outcome {
        let mut command = self.client(flags);
        command.args(stdin.map(|_| "-stdin")).args(["stream", url]);
        outcome(command, stdin.unwrap_or_default())
    }

    /// Forwards a port of loopback to `port`.
    #[track_caller]
    pub fn forward(self, flags: &[&str], url: &str, port: u16) -> Forwarder {
        let mut command = self.client(flags);
        Forwarder::start(command.args(["forward", url, &format!(":{port}")]))
    }
}

/// Runs `command` with this standard input.
#[track_caller]
pub fn outcome(mut command: Command, stdin: &str) -> Outcome {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut pipe = child.stdin.take().expect("it is piped");
    // One that has ended reads no more.
    let _ = pipe.write_all(stdin.as_bytes());
    drop(pipe);
    let output = child.wait_with_output().expect("our own child can be waited for");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
        code: output.status.code(),
    }
}

/// A client that listens on loopback for as long as this lives.
pub struct Forwarder {
    child: Child,
    /// Where it listens.
    pub address: String,
}

impl Forwarder {
    /// `command` is one that says `Forwarding from ADDRESS -> PORT`.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the tool starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = lines.next().expect("it says where it listens").expect("text");
        let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:"));
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        // Whatever else it says is for nobody, and must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
