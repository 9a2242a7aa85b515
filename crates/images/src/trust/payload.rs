//! What a signature says: the JSON that is signed, the same for simple signing and for sigstore
//! but for one word (containers-signature(5)). Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::digest::Digest;

/// Signatures are small; nobody's is larger than this. They are kept, so it counts.
pub(super) const LARGEST_PAYLOAD: usize = 16 << 10;

/// How an image was signed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    Simple,
    Sigstore,
}

/// What is claimed: these bytes, by this name.
#[derive(Debug, PartialEq)]
pub(super) struct Payload {
    pub(super) manifest: Digest,
    pub(super) name: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum MalformedPayload {
    #[error("it is not the JSON of a signature: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is a {0:?}")]
    Type(String),
    #[error("it is larger than {LARGEST_PAYLOAD} bytes")]
    TooLarge,
}

/// What must be written as an object: serde would take an array of the values, too, and what others
/// read in it is not what we do.
struct Object<T>(T);

/// Everything under `critical` must be understood; under `optional` nothing need be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    critical: Object<Critical>,
    #[serde(rename = "optional")]
    _optional: Option<BTreeMap<String, IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    r#type: String,
    image: Object<Image>,
    identity: Object<Identity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    manifest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    name: String,
}

impl Payload {
    pub(super) fn parse(bytes: &[u8], format: Format) -> Result<Self, MalformedPayload> {
        if bytes.len() > LARGEST_PAYLOAD {
            return Err(MalformedPayload::TooLarge);
        }
        let Object(Raw { critical: Object(critical), .. }) = serde_json::from_slice(bytes)?;
        let expected = match format {
            Format::Simple => "atomic container signature",
            Format::Sigstore => "cosign container image signature",
        };
        if critical.r#type != expected {
            return Err(MalformedPayload::Type(critical.r#type));
        }
        Ok(Self { manifest: critical.image.0.manifest, name: critical.identity.0.name })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        from.deserialize_map(Entries(PhantomData)).map(Self)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The payload that signs `manifest` by `name`.
    pub(crate) fn payload(format: Format, manifest: Digest, name: &str) -> Vec<u8> {
        let kind = match format {
            Format::Simple => "atomic container signature",
            Format::Sigstore => "cosign container image signature",
        };
        let payload = serde_json::json!({
            "critical": {
                "type": kind,
                "image": {"docker-manifest-digest": manifest},
                "identity": {"docker-reference": name},
            },
            "optional": {"creator": "a test", "timestamp": 1},
        });
        serde_json::to_vec(&payload).unwrap()
    }

    #[test]
    fn a_payload_is_read_as_its_own_format_alone() {
        let manifest = Digest::of(b"m");
        for format in [Format::Simple, Format::Sigstore] {
            let bytes = payload(format, manifest, "r.example/a:1");
            let expected = Payload { manifest, name: "r.example/a:1".to_owned() };
            assert_eq!(Payload::parse(&bytes, format).unwrap(), expected);
            let other = match format {
                Format::Simple => Format::Sigstore,
                Format::Sigstore => Format::Simple,
            };
            assert!(Payload::parse(&bytes, other).is_err(), "{format:?}");
        }
    }

    #[test]
    fn what_is_critical_and_not_understood_is_refused() {
        let digest = Digest::of(b"m");
        let critical = format!(
            r#""type": "cosign container image signature",
               "image": {{"docker-manifest-digest": "{digest}"}},
               "identity": {{"docker-reference": "r.example/a"}}"#
        );
        let parse = |text: &str| Payload::parse(text.as_bytes(), Format::Sigstore);
        assert!(parse(&format!(r#"{{"critical": {{{critical}}}, "optional": null}}"#)).is_ok());
        assert!(parse(&format!(r#"{{"critical": {{{critical}}}}}"#)).is_ok());
        let kind = "cosign container image signature";
        let (image, identity) = (
            format!(r#"{{"docker-manifest-digest": "{digest}"}}"#),
            r#"{"docker-reference": "a"}"#,
        );
        for text in [
            String::new(),
            "{}".to_owned(),
            format!(r#"[{{{critical}}}, null]"#),
            format!(r#"{{"critical": ["{kind}", {image}, {identity}]}}"#),
            format!(
                r#"{{"critical": {{"type": "{kind}", "image": ["{digest}"], "identity": {identity}}}}}"#
            ),
            format!(r#"{{"critical": {{"type": "{kind}", "image": {image}, "identity": ["a"]}}}}"#),
            format!(r#"{{"critical": {{{critical}, "more": 1}}}}"#),
            format!(r#"{{"critical": {{{critical}, "type": "x"}}}}"#),
            format!(r#"{{"critical": {{{critical}}}, "more": 1}}"#),
            format!(r#"{{"critical": {{{critical}}}}} {{}}"#),
            format!(r#"{{"critical": {{{}}}}}"#, critical.replace(&digest.hex(), "00")),
            format!(r#"{{"critical": {{{critical}}}}}{}"#, " ".repeat(LARGEST_PAYLOAD)),
        ] {
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
