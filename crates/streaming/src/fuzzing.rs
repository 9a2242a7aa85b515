//! What the fuzz targets reach of this crate beyond what it offers to the daemon. Only there in
//! their builds (`cfg(fuzzing)`).

use crate::spdy::frame::{self, Control, FrameError};
use crate::spdy::headers::HeaderReader;
use crate::websocket::frame as websocket_frame;

#[derive(Debug, PartialEq, Eq)]
enum Spdy {
    Control(Control),
    Data { stream: u32, bytes: Vec<u8>, fin: bool },
}

#[derive(Debug, PartialEq, Eq)]
enum WebSocket {
    Message { bytes: Vec<u8>, last: bool },
    Ping(Vec<u8>),
    Close,
}

/// Reads a client's SPDY: the same, whether it comes at once or `piece` by piece; then the headers
/// in it, and all of it as if it were headers.
pub fn spdy(bytes: &[u8], piece: usize) {
    let whole = spdy_frames(bytes, usize::MAX);
    assert_eq!(whole, spdy_frames(bytes, piece));
    let mut reader = HeaderReader::new();
    for frame in &whole.0 {
        if let Spdy::Control(Control::SynStream { headers, .. } | Control::Headers { headers }) =
            frame
            && reader.read(headers).is_err()
        {
            break;
        }
    }
    let _ = HeaderReader::new().read(bytes);
}

fn spdy_frames(bytes: &[u8], piece: usize) -> (Vec<Spdy>, Option<FrameError>) {
    let (mut decoder, mut frames) = (frame::Decoder::default(), vec![]);
    for mut piece in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.next(&mut piece) {
                Err(error) => return (frames, Some(error)),
                Ok(None) => break,
                Ok(Some(frame::Event::Control(control))) => frames.push(Spdy::Control(control)),
                Ok(Some(frame::Event::Data { stream, bytes, fin })) => match frames.last_mut() {
                    // A part of a frame, or another frame: to a session it is the same.
                    Some(Spdy::Data { stream: before, bytes: all, fin: ended })
                        if *before == stream && !*ended =>
                    {
                        all.extend_from_slice(bytes);
                        *ended = fin;
                    }
                    Some(_) | None => {
                        frames.push(Spdy::Data { stream, bytes: bytes.to_vec(), fin });
                    }
                },
            }
        }
    }
    (frames, None)
}

/// Reads a client's WebSocket: the same, whether it comes at once or `piece` by piece.
pub fn websocket(bytes: &[u8], piece: usize) {
    assert_eq!(websocket_frames(bytes, usize::MAX), websocket_frames(bytes, piece));
}

fn websocket_frames(
    bytes: &[u8],
    piece: usize,
) -> (Vec<WebSocket>, Option<websocket_frame::FrameError>) {
    let (mut decoder, mut frames) = (websocket_frame::Decoder::default(), vec![]);
    for piece in bytes.chunks(piece.max(1)) {
        let (mut piece, mut at) = (piece.to_vec(), 0);
        loop {
            match decoder.next(&mut piece, &mut at) {
                Err(error) => return (frames, Some(error)),
                Ok(None) => break,
                Ok(Some(websocket_frame::Event::Ping(bytes))) => {
                    frames.push(WebSocket::Ping(bytes));
                }
                Ok(Some(websocket_frame::Event::Close)) => frames.push(WebSocket::Close),
                Ok(Some(websocket_frame::Event::Part { start, length, first, last: ended })) => {
                    let part = &piece[start..start + length];
                    let open = frames.iter_mut().rev().find_map(|frame| match frame {
                        WebSocket::Message { bytes, last } if !*last => Some((bytes, last)),
                        WebSocket::Message { .. } | WebSocket::Ping(_) | WebSocket::Close => None,
                    });
                    match open {
                        Some((bytes, last)) => {
                            assert!(!first, "a message begins within another");
                            bytes.extend_from_slice(part);
                            *last = ended;
                        }
                        None => {
                            assert!(first, "a message goes on without a beginning");
                            frames.push(WebSocket::Message { bytes: part.to_vec(), last: ended });
                        }
                    }
                }
            }
        }
    }
    (frames, None)
}
