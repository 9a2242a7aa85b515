//! A SPDY/3.1 client of the streaming server, as plain as can be: for what real clients never do,
//! and for measuring. What it says of itself is not compressed, only stored as zlib would have it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// What zlib begins with, and the dictionary's name.
const ZLIB: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];

pub struct Spdy {
    stream: TcpStream,
    streams: u32,
}

/// What the server has sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Reply(u32),
    Data {
        stream: u32,
        bytes: Vec<u8>,
        fin: bool,
    },
    Reset(u32),
    Ping(u32),
    /// Whether the client is there; it needs no answer.
    Settings,
    GoAway,
}

/// An HTTP answer: its code, its head, and its body as far as it came with it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
}

/// Where a URL leads: address and path.
pub fn parts(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("an absolute URL of plain HTTP");
    let slash = rest.find('/').expect("it has a path");
    rest.split_at(slash)
}

/// Sends `head` (its lines, without the last empty one) to where `url` leads.
pub fn request(url: &str, head: &[&str]) -> (TcpStream, Answer) {
    let (address, path) = parts(url);
    let mut stream = TcpStream::connect(address).expect("the streaming server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
    stream.set_nodelay(true).expect("a socket of TCP");
    let mut text = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\n");
    for line in head {
        text += line;
        text += "\r\n";
    }
    text += "\r\n";
    stream.write_all(text.as_bytes()).expect("the server reads requests");
    let answer = answer(&mut stream).expect("the server answers requests");
    (stream, answer)
}

/// Reads up to the empty line, and no byte further.
pub fn answer(stream: &mut impl Read) -> io::Result<Answer> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer { code: code.ok_or(io::ErrorKind::InvalidData)?, head })
}

impl Spdy {
    /// Upgrades to `subprotocol`.
    #[track_caller]
    pub fn connect(url: &str, subprotocol: &str) -> Self {
        let protocol = format!("X-Stream-Protocol-Version: {subprotocol}");
        let head = ["Connection: Upgrade", "Upgrade: SPDY/3.1", &protocol];
        let (stream, answer) = request(url, &head);
        assert_eq!(answer.code, 101, "{}", answer.head);
        Self { stream, streams: 0 }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Opens a stream with these headers; its number.
    pub fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = 2 * self.streams + 1;
        let number = |number: usize| u32::try_from(number).expect("small").to_be_bytes();
        let mut block = number(headers.len()).to_vec();
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&number(word.len()));
            block.extend_from_slice(word.as_bytes());
        }
        let mut body = [&stream.to_be_bytes()[..], &[0; 6]].concat();
        if self.streams == 0 {
            body.extend_from_slice(&ZLIB);
        }
        let length = u16::try_from(block.len()).expect("few headers");
        body.push(0);
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(&(!length).to_le_bytes());
        body.extend_from_slice(&block);
        body.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        self.streams += 1;
        self.control(1, &body);
        stream
    }

    pub fn control(&mut self, kind: u16, body: &[u8]) {
        let [_, a, b, c] = u32::try_from(body.len()).expect("small").to_be_bytes();
        let [d, e] = kind.to_be_bytes();
        self.raw(&[&[0x80, 3, d, e, 0, a, b, c], body].concat());
    }

    pub fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let [_, a, b, c] = u32::try_from(bytes.len()).expect("small").to_be_bytes();
        let header = [&stream.to_be_bytes()[..], &[u8::from(fin), a, b, c]].concat();
        self.raw(&[&header, bytes].concat());
    }

    /// The server may have closed already, which the next read tells.
    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Reads until `most` bytes of data have come, as fast as it can; how many did. What has been
    /// read beyond them is lost: the session is over.
    pub fn swallow(self, most: usize) -> usize {
        let (mut reader, mut taken) = (BufReader::with_capacity(1 << 20, self.stream), 0);
        while taken < most {
            let mut header = [0; 8];
            if reader.read_exact(&mut header).is_err() {
                break;
            }
            let [control, _, _, _, _, a, b, c] = header;
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("24 bits");
            let mut left = length;
            while left > 0 {
                let have = reader.fill_buf().map_or(0, <[u8]>::len).min(left);
                if have == 0 {
                    return taken;
                }
                reader.consume(have);
                left -= have;
            }
            if control & 0x80 == 0 {
                taken += length;
            }
        }
        taken
    }

    /// Everything that is still sent, up to the end of the connection.
    pub fn rest(&mut self) -> Vec<Frame> {
        self.collect()
    }
}

impl Iterator for Spdy {
    type Item = Frame;

    /// `None`: the server has closed.
    fn next(&mut self) -> Option<Frame> {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).ok()?;
        let [a, b, c, d, flags, e, f, g] = header;
        let length = u32::from_be_bytes([0, e, f, g]);
        let mut body = vec![0; usize::try_from(length).expect("24 bits")];
        self.stream.read_exact(&mut body).ok()?;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Some(Frame::Data { stream, bytes: body, fin: flags & 1 != 0 });
        }
        let number = u32::from_be_bytes(*body.first_chunk().expect("every control frame has one"));
        Some(match u16::from_be_bytes([c, d]) {
            2 => Frame::Reply(number),
            3 => Frame::Reset(number),
            4 => Frame::Settings,
            6 => Frame::Ping(number),
            7 => Frame::GoAway,
            kind => panic!("the server sends a frame of type {kind}"),
        })
    }
}

/// An exec or attach over v4 of `channel.k8s.io`.
pub struct Session {
    pub spdy: Spdy,
    pub error: u32,
    pub stdin: Option<u32>,
    pub stdout: u32,
    pub stderr: Option<u32>,
    pub resize: Option<u32>,
}

/// How a session ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: String,
}

impl Session {
    /// Opens the streams of a session with a stdout, and with those that are asked for.
    #[track_caller]
    pub fn connect(url: &str, stdin: bool, stderr: bool, tty: bool) -> Self {
        let mut spdy = Spdy::connect(url, "v4.channel.k8s.io");
        let mut open = |kind: &str| {
            let stream = spdy.open(&[("streamtype", kind)]);
            assert_eq!(spdy.next(), Some(Frame::Reply(stream)), "{kind}");
            stream
        };
        let error = open("error");
        let stdin = stdin.then(|| open("stdin"));
        let stdout = open("stdout");
        let stderr = stderr.then(|| open("stderr"));
        let resize = tty.then(|| open("resize"));
        Self { spdy, error, stdin, stdout, stderr, resize }
    }

    /// Reads to the end. Panics if anything comes out of its order: output, its end, status,
    /// goodbye.
    #[track_caller]
    pub fn finish(&mut self) -> Told {
        let mut told = Told::default();
        let mut gone = false;
        for frame in self.spdy.by_ref() {
            assert!(!gone, "something follows the goodbye: {frame:?}");
            match frame {
                Frame::Data { stream, bytes, .. } if stream == self.error => {
                    told.status += &String::from_utf8_lossy(&bytes);
                }
                Frame::Data { stream, bytes, .. } => {
                    assert!(told.status.is_empty(), "output follows the status");
                    let to =
                        if stream == self.stdout { &mut told.stdout } else { &mut told.stderr };
                    to.extend_from_slice(&bytes);
                }
                Frame::GoAway => gone = true,
                Frame::Reply(_) | Frame::Reset(_) | Frame::Ping(_) | Frame::Settings => {}
            }
        }
        assert!(gone, "the connection broke off after {told:?}");
        told
    }

    /// Reads until the status is there, whatever comes before it.
    #[track_caller]
    pub fn await_status(&mut self) -> String {
        let error = self.error;
        let status = self.spdy.find_map(|frame| match frame {
            Frame::Data { stream, bytes, .. } if stream == error && !bytes.is_empty() => {
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => None,
        });
        status.expect("every session ends with a status")
    }

    /// Reads output until it holds `text`.
    #[track_caller]
    pub fn await_output(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.spdy.next() {
                Some(Frame::Data { bytes, .. }) => seen += &String::from_utf8_lossy(&bytes),
                Some(_) => {}
                None => panic!("the connection ended before {text:?}: {seen:?}"),
            }
        }
        seen
    }
}
