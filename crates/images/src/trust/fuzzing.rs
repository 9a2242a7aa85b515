//! What the fuzz targets reach of trust. Only there in their builds.

use std::path::Path;

use super::openpgp::KeyRing;
use super::payload::{Format, Payload};
use super::places::SignaturePlaces;
use super::policy::{Claim, Signature};
use super::sigstore::SigstoreKey;
use super::{gather, load};
use crate::digest::Digest;
use crate::reference::Reference;

/// A key that policies can name, whatever its path.
const KEY: &[u8] = include_bytes!("testdata/key.asc");

pub(crate) fn policy(policy: &str, places: &str, name: &Reference) {
    let policy = load::parse(Path::new("policy.json"), policy, &|_| Ok(KEY.to_vec()));
    if let Ok(policy) = policy {
        let signatures = [Signature::Simple { message: KEY.to_vec() }];
        let manifests = [Digest::of(b"")];
        let _ = policy.check_name(name);
        let claim = Claim { name, manifests: &manifests, signatures: &signatures, now: 0 };
        let _ = policy.check(claim);
    }
    let mut all = SignaturePlaces::default();
    if all.add(Path::new("places.yaml"), places).is_ok() {
        let _ = all.lookaside(name, Digest::of(b""));
        let _ = all.has_attachments(name);
    }
}

pub(crate) fn signature(bytes: &[u8]) {
    let mut ring = KeyRing::default();
    ring.add(KEY).expect("the key is good");
    let _ = ring.verified(bytes, 0);
    let _ = KeyRing::default().add(bytes);
    for format in [Format::Simple, Format::Sigstore] {
        let _ = Payload::parse(bytes, format);
    }
    let _ = SigstoreKey::parse_all(bytes);
    let _ = gather::attached(bytes);
}
