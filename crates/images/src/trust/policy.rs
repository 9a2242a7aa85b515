//! A policy, and whether it accepts an image (containers-policy.json(5)). Pure: signatures were
//! fetched before, keys read when the policy was.
//!
//! The requirements of the most specific scope count, and all of them; for each that wants a
//! signature one good one is enough.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::identity::SignedIdentity;
use super::openpgp::KeyRing;
use super::payload::{Format, Payload};
use super::scope::scopes;
use super::sigstore::SigstoreKey;
use crate::digest::Digest;
use crate::reference::Reference;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// Of names that no scope matches.
    pub(super) default: Vec<Requirement>,
    /// Of names in registries, by scope; the empty one is all of them.
    pub(super) scopes: BTreeMap<String, Vec<Requirement>>,
}

/// What an image must meet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Requirement {
    AcceptAnything,
    Reject,
    /// Simple signing, by one of these keys.
    SignedBy {
        keys: Arc<KeyRing>,
        identity: SignedIdentity,
    },
    /// Sigstore, by one of these keys.
    SigstoreSigned {
        keys: Arc<[SigstoreKey]>,
        identity: SignedIdentity,
    },
}

/// A signature as it was found; nothing of it is verified. Also in records of images.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Signature {
    /// An OpenPGP message with its payload.
    Simple {
        #[serde(with = "in_base64")]
        message: Vec<u8>,
    },
    Sigstore {
        #[serde(with = "in_base64")]
        payload: Vec<u8>,
        /// Base64, as it was attached.
        signature: String,
    },
}

impl Signature {
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Simple { message } => message.len(),
            Self::Sigstore { payload, signature } => payload.len() + signature.len(),
        }
    }
}

/// What is known of an image when a policy is asked about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    /// The name that it is to be used by.
    pub(crate) name: &'a Reference,
    /// What the name led to, and what that led to: a signature over any covers the last.
    pub(crate) manifests: &'a [Digest],
    pub(crate) signatures: &'a [Signature],
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// Kinds of signatures that a policy wants to see.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) simple: bool,
    pub(crate) sigstore: bool,
}

/// Why a policy does not accept an image.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("the policy rejects {scope}")]
    Rejected { scope: String },
    #[error("the policy for {scope} wants a signature ({format}), and there is none")]
    Unsigned { scope: String, format: &'static str },
    #[error("the policy for {scope} accepts no signature of it ({format}): {reasons}")]
    NotAccepted { scope: String, format: &'static str, reasons: String },
    #[error(
        "the policy for {scope} wants a signature ({format}), and none was kept when it was pulled: pull it again"
    )]
    NoneKept { scope: String, format: &'static str },
    #[error("nothing is known of where it came from")]
    Nameless,
}

/// Why one signature does not count.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error(transparent)]
    Message(#[from] super::openpgp::Refusal),
    #[error("it is not by a trusted key")]
    OtherKey,
    #[error("it is not base64")]
    NotBase64,
    #[error(transparent)]
    Payload(#[from] super::payload::MalformedPayload),
    #[error("it is for the name {0:?}")]
    OtherName(String),
    #[error("it is for {0}")]
    OtherManifest(Digest),
}

impl Policy {
    /// What holds where no policy was written.
    pub(crate) fn accept_anything() -> Self {
        Self { default: vec![Requirement::AcceptAnything], scopes: BTreeMap::new() }
    }

    /// What kinds of signatures are asked for by this name.
    pub(crate) fn wanted(&self, name: &Reference) -> Wanted {
        let mut wanted = Wanted::default();
        for requirement in self.requirements(name).1 {
            match requirement {
                Requirement::AcceptAnything | Requirement::Reject => {}
                Requirement::SignedBy { .. } => wanted.simple = true,
                Requirement::SigstoreSigned { .. } => wanted.sigstore = true,
            }
        }
        wanted
    }

    /// Whether no signature could change that an image by this name is rejected.
    pub(crate) fn check_name(&self, name: &Reference) -> Result<(), Rejection> {
        let (scope, requirements) = self.requirements(name);
        match requirements.contains(&Requirement::Reject) {
            true => Err(Rejection::Rejected { scope }),
            false => Ok(()),
        }
    }

    pub(crate) fn check(&self, claim: Claim<'_>) -> Result<(), Rejection> {
        let (scope, requirements) = self.requirements(claim.name);
        requirements.iter().try_for_each(|requirement| requirement.check(&scope, claim))
    }

    /// Of the most specific scope, with what it is called.
    fn requirements(&self, name: &Reference) -> (String, &[Requirement]) {
        for scope in scopes(name) {
            if let Some(requirements) = self.scopes.get(&scope) {
                return (scope, requirements);
            }
        }
        let requirements = self.scopes.get("").unwrap_or(&self.default);
        ("everything else".to_owned(), requirements)
    }
}

impl Rejection {
    /// Said of an image that is held, of which there may be signatures elsewhere.
    pub(super) fn none_kept(self) -> Self {
        match self {
            Self::Unsigned { scope, format } => Self::NoneKept { scope, format },
            Self::Rejected { .. }
            | Self::NotAccepted { .. }
            | Self::NoneKept { .. }
            | Self::Nameless => self,
        }
    }
}

impl Requirement {
    fn check(&self, scope: &str, claim: Claim<'_>) -> Result<(), Rejection> {
        match self {
            Self::AcceptAnything => Ok(()),
            Self::Reject => Err(Rejection::Rejected { scope: scope.to_owned() }),
            Self::SignedBy { keys, identity } => {
                one_is_good(scope, "simple signing", claim, identity, |signature| {
                    let Signature::Simple { message } = signature else { return None };
                    Some(simple_payload(keys, message, claim.now))
                })
            }
            Self::SigstoreSigned { keys, identity } => {
                one_is_good(scope, "sigstore", claim, identity, |signature| {
                    let Signature::Sigstore { payload, signature } = signature else { return None };
                    Some(sigstore_payload(keys, payload, signature))
                })
            }
        }
    }
}

/// Looks for a signature whose payload `verified` finds authentic and that speaks of this image.
/// Of another format's signatures `verified` makes nothing.
fn one_is_good(
    scope: &str,
    format: &'static str,
    claim: Claim<'_>,
    identity: &SignedIdentity,
    verified: impl Fn(&Signature) -> Option<Result<Payload, Unfit>>,
) -> Result<(), Rejection> {
    let scope = scope.to_owned();
    let mut reasons = Vec::new();
    for payload in claim.signatures.iter().filter_map(verified) {
        match payload.and_then(|payload| speaks_of(&payload, claim, identity)) {
            Ok(()) => return Ok(()),
            Err(unfit) => reasons.push(unfit.to_string()),
        }
    }
    reasons.dedup();
    match reasons.is_empty() {
        true => Err(Rejection::Unsigned { scope, format }),
        false => Err(Rejection::NotAccepted { scope, format, reasons: reasons.join("; ") }),
    }
}

fn speaks_of(payload: &Payload, claim: Claim<'_>, identity: &SignedIdentity) -> Result<(), Unfit> {
    if !identity.accepts(claim.name, &payload.name) {
        return Err(Unfit::OtherName(payload.name.clone()));
    }
    if !claim.manifests.contains(&payload.manifest) {
        return Err(Unfit::OtherManifest(payload.manifest));
    }
    Ok(())
}

fn simple_payload(keys: &KeyRing, message: &[u8], now: u64) -> Result<Payload, Unfit> {
    Ok(Payload::parse(&keys.verified(message, now)?, Format::Simple)?)
}

fn sigstore_payload(
    keys: &[SigstoreKey],
    payload: &[u8],
    signature: &str,
) -> Result<Payload, Unfit> {
    let signature = STANDARD.decode(signature).map_err(|_| Unfit::NotBase64)?;
    if !keys.iter().any(|key| key.verifies(payload, &signature)) {
        return Err(Unfit::OtherKey);
    }
    Ok(Payload::parse(payload, Format::Sigstore)?)
}

impl Wanted {
    pub(crate) fn or(self, other: Self) -> Self {
        Self { simple: self.simple || other.simple, sigstore: self.sigstore || other.sigstore }
    }

    pub(crate) fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// Bytes as text in JSON.
mod in_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(Error::custom)
    }
}
