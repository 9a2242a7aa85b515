//! What a daemon and a monitor of other releases say to each other. What is understood is said
//! again, and understood the same.

#![no_main]

use std::fs::File;
use std::os::fd::OwnedFd;

use cria_monitor::protocol::{FromMonitor, Packet, Request};
use libfuzzer_sys::fuzz_target;

/// The most descriptors that come with a packet here.
const DESCRIPTORS: u8 = 4;

fuzz_target!(|data: &[u8]| {
    let Some((count, bytes)) = data.split_first() else { return };
    if let Ok((sequence, request)) = Request::decode(packet(bytes, count % DESCRIPTORS)) {
        let shown = format!("{request:?}");
        let again = Request::decode(request.encode(sequence)).expect("our own words");
        assert_eq!(sequence, again.0);
        assert_eq!(without_numbers(&shown), without_numbers(&format!("{:?}", again.1)));
    }
    if let Ok(message) = FromMonitor::decode(packet(bytes, count % DESCRIPTORS)) {
        let shown = format!("{message:?}");
        let again = FromMonitor::decode(message.encode()).expect("our own words");
        assert_eq!(without_numbers(&shown), without_numbers(&format!("{again:?}")));
    }
});

fn packet(bytes: &[u8], descriptors: u8) -> Packet {
    let open = |_| OwnedFd::from(File::open("/dev/null").expect("it is there"));
    Packet { bytes: bytes.to_vec(), fds: (0..descriptors).map(open).collect() }
}

/// Descriptors may be in another order: their numbers are no part of what was said.
fn without_numbers(shown: &str) -> String {
    let mut parts = shown.split("OwnedFd { fd: ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}
