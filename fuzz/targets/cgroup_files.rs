//! What the kernel's cgroup files say. They are the kernel's, but some are of a container's making
//! in part (names, counts).

#![no_main]

use libfuzzer_sys::fuzz_target;

// The daemon is a program and no library: the file is taken as it is.
#[path = "../../crates/cria/src/cgroup/parse.rs"]
mod parse;

fuzz_target!(|text: &[u8]| {
    let _ = parse::number(text);
    let _ = parse::limit(text);
    let _ = parse::fields(text, ["usage_usec", "oom_kill", "anon", ""]);
    let _ = parse::lines(text).count();
    let _ = parse::pressure(text);
});
