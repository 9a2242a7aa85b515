//! Public keys of sigstore signatures: what PEM and SubjectPublicKeyInfo hold, checked by ring.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;

/// One key, with the one algorithm that cosign and the container tools use it with.
#[derive(Clone)]
pub(crate) struct SigstoreKey {
    kind: &'static Kind,
    key: Vec<u8>,
}

struct Kind {
    name: &'static str,
    /// The AlgorithmIdentifier of such keys, DER without its outer tag.
    identifier: &'static [u8],
    algorithm: &'static dyn VerificationAlgorithm,
}

/// What can be checked. P-521, for one, cannot be.
static KINDS: [Kind; 4] = [
    Kind {
        name: "ECDSA P-256",
        identifier: &[
            0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, // ecPublicKey
            0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, // prime256v1
        ],
        algorithm: &ECDSA_P256_SHA256_ASN1,
    },
    Kind {
        name: "ECDSA P-384",
        identifier: &[
            0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, // ecPublicKey
            0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, // secp384r1
        ],
        algorithm: &ECDSA_P384_SHA256_ASN1,
    },
    Kind {
        name: "RSA",
        identifier: &[
            0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, // rsaEncryption
            0x05, 0x00,
        ],
        algorithm: &RSA_PKCS1_2048_8192_SHA256,
    },
    Kind { name: "Ed25519", identifier: &[0x06, 0x03, 0x2b, 0x65, 0x70], algorithm: &ED25519 },
];

impl SigstoreKey {
    /// Every key of a PEM file, of which there must be one at least.
    pub(super) fn parse_all(pem: &[u8]) -> Result<Vec<Self>, String> {
        let mut keys = Vec::new();
        for key in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
            let key = key.map_err(|_| "damaged PEM".to_owned())?;
            keys.push(Self::parse(&key).ok_or("a public key that cannot be used to check")?);
        }
        if keys.is_empty() {
            return Err("no public key in PEM".to_owned());
        }
        Ok(keys)
    }

    /// `SEQUENCE { SEQUENCE { algorithm }, BIT STRING { key } }`, and nothing after it.
    fn parse(spki: &[u8]) -> Option<Self> {
        let (spki, []) = der(0x30, spki)? else { return None };
        let (identifier, rest) = der(0x30, spki)?;
        let (bits, []) = der(0x03, rest)? else { return None };
        let [0, key @ ..] = bits else { return None };
        let kind = KINDS.iter().find(|kind| kind.identifier == identifier)?;
        Some(Self { kind, key: key.to_vec() })
    }

    pub(super) fn verifies(&self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.kind.algorithm, &self.key).verify(payload, signature).is_ok()
    }
}

impl std::fmt::Debug for SigstoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.name)
    }
}

impl PartialEq for SigstoreKey {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.kind, other.kind) && self.key == other.key
    }
}

/// The content of the value with this tag that `bytes` begin with, and what follows it.
fn der(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match bytes {
        [found, length @ 0..=0x7f, rest @ ..] if *found == tag => (usize::from(*length), rest),
        [found, 0x81, length @ 0x80..=0xff, rest @ ..] if *found == tag => {
            (usize::from(*length), rest)
        }
        [found, 0x82, high @ 1..=0xff, low, rest @ ..] if *found == tag => {
            (usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made, and signed with, by openssl: `genpkey`, `pkey -pubout`, `dgst -sha256 -sign` (and
    // `pkeyutl -sign -rawin` for Ed25519) over the text "payload".
    const KEYS: [(&str, &str, &str); 4] = include!("testdata/sigstore_keys.in");

    fn base64(text: &str) -> Vec<u8> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }

    #[test]
    fn signatures_of_every_kind_of_key_are_checked() {
        for (name, pem, signature) in KEYS {
            let keys = SigstoreKey::parse_all(pem.as_bytes()).unwrap();
            assert_eq!(format!("{keys:?}"), format!("[{name}]"));
            assert!(keys[0].verifies(b"payload", &base64(signature)), "{name}");
            assert!(!keys[0].verifies(b"Payload", &base64(signature)), "{name}");
            assert!(!keys[0].verifies(b"payload", b""), "{name}");
            for (other, _, foreign) in KEYS {
                let is_own = other == name;
                assert_eq!(
                    keys[0].verifies(b"payload", &base64(foreign)),
                    is_own,
                    "{name} {other}"
                );
            }
        }
    }

    #[test]
    fn a_file_holds_several_keys_and_nothing_that_cannot_be_checked() {
        let all: String = KEYS.iter().map(|(_, pem, _)| *pem).collect();
        assert_eq!(SigstoreKey::parse_all(all.as_bytes()).unwrap().len(), KEYS.len());
        let p521 = include_str!("testdata/p521.pem");
        for wrong in ["", "hello", p521, &format!("{all}{p521}"), &all.replace("MF", "MG")] {
            assert!(SigstoreKey::parse_all(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
