//! WebSocket frames, as streaming clients send them. The first byte says in what pieces
//! they come, which changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((piece, bytes)) = data.split_first() else { return };
    cria_streaming::fuzzing::websocket(bytes, usize::from(*piece));
});
