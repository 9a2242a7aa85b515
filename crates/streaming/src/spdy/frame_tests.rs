use proptest::prelude::*;

use super::*;

/// All events of `bytes`, which come in pieces of these lengths; the data of one frame together.
fn decode(bytes: &[u8], pieces: &[usize]) -> Result<Vec<(Control, Vec<u8>)>, FrameError> {
    let mut decoder = Decoder::default();
    let mut events: Vec<(Control, Vec<u8>)> = vec![];
    let mut open = None;
    let mut rest = bytes;
    let mut pieces = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let length = pieces.next().unwrap_or(usize::MAX).clamp(1, rest.len());
        let (mut piece, after) = rest.split_at(length);
        rest = after;
        while let Some(event) = decoder.next(&mut piece)? {
            match event {
                Event::Control(control) => events.push((control, vec![])),
                Event::Data { stream, bytes, fin } => {
                    if open != Some(stream) {
                        events.push((Control::Reset { stream }, vec![]));
                    }
                    events.last_mut().unwrap().1.extend_from_slice(bytes);
                    open = (!fin).then_some(stream);
                }
            }
        }
        assert!(piece.is_empty());
    }
    Ok(events)
}

/// A data frame, with FIN.
fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
    [&data_header(stream, bytes.len(), true), bytes].concat()
}

fn syn_stream(stream: u32, flags: u8, headers: &[u8]) -> Vec<u8> {
    let body = [&stream.to_be_bytes(), [0; 6].as_slice(), headers].concat();
    let mut frame = control(1, &body, &[]);
    frame[4] = flags;
    frame
}

#[test]
fn every_kind_of_frame_is_read_as_what_it_says() {
    let cases = [
        (
            syn_stream(5, 0, b"abc"),
            Control::SynStream { stream: 5, fin: false, headers: b"abc".to_vec() },
        ),
        (syn_stream(7, 1, b""), Control::SynStream { stream: 7, fin: true, headers: vec![] }),
        // The reserved bit before the stream counts for nothing.
        (
            syn_stream(0x8000_0009, 0, b""),
            Control::SynStream { stream: 9, fin: false, headers: vec![] },
        ),
        (syn_reply(3, b"xy"), Control::Other),
        (reset(3, ResetStatus::Cancel), Control::Reset { stream: 3 }),
        (no_settings(), Control::Other),
        (ping(77), Control::Ping { id: 77 }),
        (go_away(9), Control::GoAway),
        (control(8, &1_u32.to_be_bytes(), b"more"), Control::Headers { headers: b"more".to_vec() }),
        (control(9, &[0; 8], &[]), Control::Other),
        (control(4711, &[], &[]), Control::Other),
    ];
    for (bytes, expected) in cases {
        assert_eq!(decode(&bytes, &[]), Ok(vec![(expected.clone(), vec![])]), "{expected:?}");
        assert_eq!(decode(&bytes, &[1]), Ok(vec![(expected, vec![])]));
    }
}

#[test]
fn frames_are_written_byte_for_byte_as_the_draft_has_them() {
    assert_eq!(ping(1), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
    assert_eq!(go_away(5), [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 0]);
    let refused = reset(5, ResetStatus::RefusedStream);
    assert_eq!(refused, [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 3]);
    assert_eq!(syn_reply(5, b"h"), [0x80, 3, 0, 2, 0, 0, 0, 5, 0, 0, 0, 5, b'h']);
    assert_eq!(data_header(3, 0x01_0203, true), [0, 0, 0, 3, 1, 1, 2, 3]);
}

#[test]
fn what_is_no_frame_is_refused_before_its_body_is_kept() {
    let header = |word: [u8; 4], length: [u8; 3]| [word.as_slice(), &[0], &length].concat();
    let cases = [
        (header([0x80, 2, 0, 1], [0, 0, 4]), FrameError::Version(2)),
        (header([0x80, 3, 0, 1], [0xff, 0xff, 0xff]), FrameError::TooLong(MOST_DATA)),
        (control(1, &[0; 9], &[]), FrameError::TooShort { kind: 1, length: 9 }),
        (control(3, &[0; 3], &[]), FrameError::TooShort { kind: 3, length: 3 }),
        (control(6, &[], &[]), FrameError::TooShort { kind: 6, length: 0 }),
        (control(8, &[0; 3], &[]), FrameError::TooShort { kind: 8, length: 3 }),
    ];
    for (bytes, expected) in cases {
        assert_eq!(decode(&bytes, &[]), Err(expected));
    }
}

#[test]
fn an_empty_data_frame_ends_its_stream_once() {
    let mut decoder = Decoder::default();
    let bytes = data(3, b"");
    let mut input = bytes.as_slice();
    let end = Event::Data { stream: 3, bytes: b"", fin: true };
    assert_eq!(decoder.next(&mut input), Ok(Some(end)));
    assert_eq!(decoder.next(&mut input), Ok(None));
}

proptest! {
    #[test]
    fn frames_are_the_same_in_whatever_pieces_they_come(
        frames in prop::collection::vec(
            prop_oneof![
                (1..99_u32, prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(s, b)| data(s, &b)),
                (1..99_u32, prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(s, b)| syn_stream(s, 0, &b)),
                any::<u32>().prop_map(ping),
            ],
            1..12,
        ),
        pieces in prop::collection::vec(1..40_usize, 1..8),
    ) {
        let bytes = frames.concat();
        prop_assert_eq!(decode(&bytes, &pieces), decode(&bytes, &[]));
        prop_assert_eq!(decode(&bytes, &[]).unwrap().len(), frames.len());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes, &[3, 1, 17]);
        // The same behind a header that makes sense.
        let _ = decode(&[&[0x80, 3, 0], bytes.as_slice()].concat(), &[5]);
    }
}
