//! A WebSocket client of the streaming server, as plain as can be: for what real clients never do,
//! and for the protocols that no client here speaks.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::spdy::{Answer, answer, request};

const MASK: [u8; 4] = [0x1f, 0x8b, 0x00, 0xff];

pub struct WebSocket {
    stream: Box<dyn Stream>,
}

/// What a WebSocket can be spoken over.
pub trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// What the server has sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Binary(Vec<u8>),
    Text(String),
    Pong(Vec<u8>),
    /// With its reason.
    Close(u16),
}

const HEAD: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// Asks for an upgrade to `protocol`, or to none in particular.
pub fn upgrade(url: &str, protocol: Option<&str>) -> (TcpStream, Answer) {
    let protocol = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}"));
    let head: Vec<_> = HEAD.into_iter().chain(protocol.as_deref()).collect();
    request(url, &head)
}

impl WebSocket {
    #[track_caller]
    pub fn connect(url: &str, protocol: Option<&str>) -> Self {
        let (stream, answer) = upgrade(url, protocol);
        assert_eq!(answer.code, 101, "{}", answer.head);
        Self { stream: Box::new(stream) }
    }

    /// The same on a connection that is there, and not to cria itself.
    #[track_caller]
    pub fn over(mut stream: impl Stream + 'static, host: &str, path: &str, protocol: &str) -> Self {
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
        head += &HEAD.join("\r\n");
        head += &format!("\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("the server reads requests");
        let answer = answer(&mut stream).expect("the server answers requests");
        assert_eq!(answer.code, 101, "{}", answer.head);
        Self { stream: Box::new(stream) }
    }

    /// A whole message on a channel.
    pub fn say(&mut self, channel: u8, bytes: &[u8]) {
        self.frame(0x82, &[&[channel], bytes].concat());
    }

    pub fn text(&mut self, text: &str) {
        self.frame(0x81, text.as_bytes());
    }

    pub fn ping(&mut self, bytes: &[u8]) {
        self.frame(0x89, bytes);
    }

    /// A frame with this first byte: whether it is the last of its message, and of which kind.
    pub fn frame(&mut self, first: u8, bytes: &[u8]) {
        let mut frame = vec![first];
        match (u8::try_from(bytes.len()), u16::try_from(bytes.len())) {
            (Ok(short @ ..=125), _) => frame.push(0x80 | short),
            (_, Ok(long)) => {
                frame.push(0x80 | 126);
                frame.extend(long.to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((bytes.len() as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(bytes.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.raw(&frame);
    }

    /// The server may have closed already, which the next read tells.
    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// What comes on `channel` until the end, and the bytes of the error channel, `errors`. Panics
    /// if output follows those, or if the connection does not end with a goodbye.
    #[track_caller]
    pub fn finish(&mut self, channel: u8, errors: u8) -> (Vec<u8>, String) {
        let (mut heard, mut status, mut gone) = (vec![], String::new(), false);
        for message in self.by_ref() {
            assert!(!gone, "something follows the goodbye: {message:?}");
            match message {
                Message::Binary(bytes) if bytes[0] == errors => {
                    status += &String::from_utf8_lossy(&bytes[1..]);
                }
                Message::Binary(bytes) if bytes[0] == channel => {
                    assert!(status.is_empty(), "output follows the status");
                    heard.extend_from_slice(&bytes[1..]);
                }
                Message::Binary(_) | Message::Text(_) | Message::Pong(_) => {}
                Message::Close(reason) => gone = reason == 1000,
            }
        }
        assert!(gone, "the connection broke off after {status:?}");
        (heard, status)
    }
}

impl Iterator for WebSocket {
    type Item = Message;

    /// `None`: the server has closed.
    fn next(&mut self) -> Option<Message> {
        let mut header = [0; 2];
        self.stream.read_exact(&mut header).ok()?;
        let [first, length] = header;
        let mut wide = [0; 8];
        let bytes = match length {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        self.stream.read_exact(&mut wide[8 - bytes..]).ok()?;
        let length = if bytes == 0 { length.into() } else { u64::from_be_bytes(wide) };
        let mut body = vec![0; usize::try_from(length).expect("64 bits")];
        self.stream.read_exact(&mut body).ok()?;
        Some(match first {
            0x81 => Message::Text(String::from_utf8(body).expect("a text is UTF-8")),
            0x82 => Message::Binary(body),
            0x88 => {
                Message::Close(body.first_chunk().map_or(0, |reason| u16::from_be_bytes(*reason)))
            }
            0x8a => Message::Pong(body),
            first => panic!("the server sends a frame that begins with {first:#x}"),
        })
    }
}
