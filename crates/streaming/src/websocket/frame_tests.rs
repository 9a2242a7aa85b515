use proptest::prelude::*;

use super::*;

/// A client's frame.
fn frame(first: u8, bytes: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let opcode = Opcode::Binary;
    let mut frame = header(opcode, bytes.len());
    frame[0] = first;
    frame[1] |= MASK;
    frame.extend_from_slice(&mask);
    frame.extend(bytes.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Messages (whole) and pings, from bytes that come in such pieces.
fn decode(bytes: &[u8], pieces: &[usize]) -> Result<Vec<(char, Vec<u8>)>, FrameError> {
    let mut decoder = Decoder::default();
    let mut found: Vec<(char, Vec<u8>)> = vec![];
    let mut pieces = pieces.iter().copied().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = pieces.next().unwrap_or(usize::MAX).clamp(1, rest.len());
        let mut piece = rest[..length].to_vec();
        rest = &rest[length..];
        let mut at = 0;
        while let Some(event) = decoder.next(&mut piece, &mut at)? {
            match event {
                Event::Part { start, length, first, .. } => {
                    if first {
                        found.push(('m', vec![]));
                    }
                    let message = found.iter_mut().rev().find(|(kind, _)| *kind == 'm').unwrap();
                    message.1.extend_from_slice(&piece[start..start + length]);
                }
                Event::Ping(bytes) => found.push(('p', bytes)),
                Event::Close => found.push(('c', vec![])),
            }
        }
        assert_eq!(at, piece.len());
    }
    Ok(found)
}

#[test]
fn messages_of_several_frames_have_pings_between_them() {
    let mask = [1, 2, 3, 4];
    let bytes = [
        frame(0x02, b"one ", mask),
        frame(0x89, b"ping", mask),
        frame(0x00, b"", mask),
        frame(0x80, b"two", mask),
        frame(0x8a, b"pong", mask),
        frame(0x82, b"", mask),
        frame(0x81, &[b'x'; 70_000], mask),
        frame(0x88, &[3, 232], mask),
    ]
    .concat();
    let expected = [
        ('m', b"one two".to_vec()),
        ('p', b"ping".to_vec()),
        ('m', vec![]),
        ('m', vec![b'x'; 70_000]),
        ('c', vec![]),
    ];
    for pieces in [&[][..], &[1], &[3, 7, 1000]] {
        assert_eq!(decode(&bytes, pieces).unwrap(), expected);
    }
}

#[test]
fn what_no_client_may_send_is_refused() {
    let mask = [9; 4];
    let cases = [
        (vec![0x82, 3, 1, 2, 3], FrameError::Unmasked),
        (frame(0x83, b"x", mask), FrameError::Kind(3)),
        (frame(0xc2, b"x", mask), FrameError::Kind(0x42)),
        (frame(0x09, b"x", mask), FrameError::Control(0)),
        (frame(0x89, &[0; 200], mask), FrameError::Control(126)),
        (frame(0x80, b"x", mask), FrameError::Order),
        ([frame(0x02, b"x", mask), frame(0x82, b"y", mask)].concat(), FrameError::Order),
    ];
    for (bytes, expected) in cases {
        assert_eq!(decode(&bytes, &[]), Err(expected), "{bytes:?}");
    }
}

#[test]
fn headers_have_the_length_in_its_shortest_form() {
    assert_eq!(header(Opcode::Binary, 125), [0x82, 125]);
    assert_eq!(header(Opcode::Text, 126), [0x81, 126, 0, 126]);
    assert_eq!(header(Opcode::Binary, 65535), [0x82, 126, 255, 255]);
    assert_eq!(header(Opcode::Binary, 65536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
}

proptest! {
    #[test]
    fn messages_are_the_same_in_whatever_pieces_they_come(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
        mask in any::<[u8; 4]>(),
        pieces in prop::collection::vec(1..50_usize, 1..6),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|it| frame(0x82, it, mask)).collect();
        let expected: Vec<_> = messages.into_iter().map(|it| ('m', it)).collect();
        prop_assert_eq!(decode(&bytes, &pieces).unwrap(), expected);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes, &[3, 1, 17]);
    }
}
