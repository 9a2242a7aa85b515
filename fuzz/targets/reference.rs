//! Image references, as users and kubelets write them. What is read reads the same when written
//! out in full.

#![no_main]

use cria_images::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for search in [None, Some("registry.example:5000")] {
        let Ok(reference) = Reference::parse(text, search) else { continue };
        let whole = reference.to_string();
        let again = Reference::parse(&whole, None).expect("what is written in full is a reference");
        assert_eq!(again, reference, "{whole}");
        for part in [reference.domain(), reference.path()] {
            assert!(!part.is_empty() && !part.contains(['@', '\\', ' ', '\0']), "{part:?}");
        }
        assert!(reference.path().split('/').all(|part| !["", ".", ".."].contains(&part)));
    }
});
