//! The exit record that a monitor leaves on disk. What is read is written the same.

#![no_main]

use cria_monitor::exit::Exit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(exit) = Exit::decode(text) {
        assert_eq!(Exit::decode(&exit.encode()), Some(exit));
    }
});
