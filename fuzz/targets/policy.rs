//! `policy.json` and `registries.d`, and what they say of an image: a policy, then behind a NUL a file
//! of `registries.d`, then behind another a reference.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut parts = text.splitn(3, '\0');
    let (policy, places) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let reference = parts.next().unwrap_or("docker.io/library/busybox:1");
    cria_images::fuzzing::policy(policy, places, reference);
});
