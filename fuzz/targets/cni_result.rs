//! What CNI plugins answer, and the quantities in pods' annotations: up to a NUL the one, then the
//! other.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;

// The daemon is a program and no library: the files are taken as they are.
#[path = "../../crates/cria/src/cni/bandwidth.rs"]
mod bandwidth;
#[path = "../../crates/cria/src/cni/result.rs"]
mod result;

mod config {
    pub(crate) type Object = serde_json::Map<String, serde_json::Value>;
}

use bandwidth::Bandwidth;
use result::AddResult;

fuzz_target!(|text: &str| {
    let (result, quantity) = text.split_once('\0').unwrap_or((text, ""));
    if let Ok(result) = serde_json::from_str::<AddResult>(result) {
        let _ = result.ips("eth0");
    }
    let annotation = ("kubernetes.io/ingress-bandwidth".to_owned(), quantity.to_owned());
    let _ = Bandwidth::from_annotations(&BTreeMap::from([annotation]));
});
