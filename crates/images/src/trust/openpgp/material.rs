//! Public keys as numbers, and the cryptography over them, which is ring's (RFC 9580, section 9).

use ring::digest;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, EcdsaVerificationAlgorithm,
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents,
    UnparsedPublicKey,
};

use super::Malformed;
use super::packet::Reader;

const RSA: u8 = 1;
const RSA_SIGN_ONLY: u8 = 3;
const ECDSA: u8 = 19;
const EDDSA: u8 = 22;
const ED25519_NATIVE: u8 = 27;

const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_ED25519: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

/// What a signature can be checked with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

/// The numbers of a signature.
#[derive(Debug)]
pub(super) enum SignatureValue {
    Rsa(Vec<u8>),
    /// Of a curve; each as it was written.
    Pair(Vec<u8>, Vec<u8>),
    Native([u8; 64]),
    /// By an algorithm that no key here has.
    Unknown,
}

impl Material {
    /// The algorithm and what follows it in a key packet. None: not one that signs, or not one
    /// that can be checked here.
    pub(super) fn parse(algorithm: u8, mut reader: Reader<'_>) -> Result<Option<Self>, Malformed> {
        Ok(match algorithm {
            RSA | RSA_SIGN_ONLY => {
                let (modulus, exponent) = (reader.number()?.to_vec(), reader.number()?.to_vec());
                Some(Self::Rsa { modulus, exponent })
            }
            ECDSA | EDDSA => {
                let length = reader.byte()?;
                let (curve, point) = (reader.take(length.into())?, reader.number()?);
                match (algorithm, curve, point) {
                    (ECDSA, OID_P256, point) => Some(Self::P256(point.to_vec())),
                    (ECDSA, OID_P384, point) => Some(Self::P384(point.to_vec())),
                    (EDDSA, OID_ED25519, [0x40, point @ ..]) => Some(Self::Ed25519(point.to_vec())),
                    (_, _, _) => None,
                }
            }
            ED25519_NATIVE => Some(Self::Ed25519(reader.take(32)?.to_vec())),
            _ => None,
        })
    }

    pub(super) fn verify(&self, hash: Hash, message: &[u8], value: &SignatureValue) -> bool {
        match (self, value) {
            (Self::Rsa { modulus, exponent }, SignatureValue::Rsa(value)) => {
                let algorithm = match hash {
                    Hash::Sha1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
                    Hash::Sha256 => &RSA_PKCS1_2048_8192_SHA256,
                    Hash::Sha384 => &RSA_PKCS1_2048_8192_SHA384,
                    Hash::Sha512 => &RSA_PKCS1_2048_8192_SHA512,
                };
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                let value = padded(value, modulus.len());
                value.is_some_and(|value| key.verify(algorithm, message, &value).is_ok())
            }
            (Self::P256(point), SignatureValue::Pair(r, s)) => {
                hash == Hash::Sha256
                    && verify_ecdsa(&ECDSA_P256_SHA256_FIXED, 32, point, message, (r, s))
            }
            (Self::P384(point), SignatureValue::Pair(r, s)) => {
                hash == Hash::Sha384
                    && verify_ecdsa(&ECDSA_P384_SHA384_FIXED, 48, point, message, (r, s))
            }
            (Self::Ed25519(key), SignatureValue::Pair(r, s)) => {
                pair(r, s, 32).is_some_and(|value| verify_ed25519(key, hash, message, &value))
            }
            (Self::Ed25519(key), SignatureValue::Native(value)) => {
                verify_ed25519(key, hash, message, value)
            }
            (Self::Rsa { .. }, SignatureValue::Pair(..))
            | (Self::P256(_) | Self::P384(_) | Self::Ed25519(_), SignatureValue::Rsa(_))
            | (Self::Rsa { .. } | Self::P256(_) | Self::P384(_), SignatureValue::Native(_))
            | (_, SignatureValue::Unknown) => false,
        }
    }
}

fn verify_ecdsa(
    algorithm: &'static EcdsaVerificationAlgorithm,
    length: usize,
    point: &[u8],
    message: &[u8],
    (r, s): (&[u8], &[u8]),
) -> bool {
    let key = UnparsedPublicKey::new(algorithm, point);
    pair(r, s, length).is_some_and(|value| key.verify(message, &value).is_ok())
}

/// OpenPGP signs the hash, not the message itself, with Ed25519.
fn verify_ed25519(key: &[u8], hash: Hash, message: &[u8], value: &[u8]) -> bool {
    let algorithm = match hash {
        Hash::Sha1 => return false,
        Hash::Sha256 => &digest::SHA256,
        Hash::Sha384 => &digest::SHA384,
        Hash::Sha512 => &digest::SHA512,
    };
    let hashed = digest::digest(algorithm, message);
    UnparsedPublicKey::new(&ED25519, key).verify(hashed.as_ref(), value).is_ok()
}

fn pair(r: &[u8], s: &[u8], length: usize) -> Option<Vec<u8>> {
    Some([padded(r, length)?, padded(s, length)?].concat())
}

/// `number` with leading zeros up to `length`, if it is no longer.
fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let zeros = length.checked_sub(number.len())?;
    Some([&vec![0; zeros], number].concat())
}

impl Hash {
    pub(super) fn parse(id: u8) -> Result<Self, Malformed> {
        match id {
            2 => Ok(Self::Sha1),
            8 => Ok(Self::Sha256),
            9 => Ok(Self::Sha384),
            10 => Ok(Self::Sha512),
            _ => Err(Malformed("a hash that is not SHA-2's")),
        }
    }
}

impl SignatureValue {
    pub(super) fn parse(algorithm: u8, mut reader: Reader<'_>) -> Result<Self, Malformed> {
        Ok(match algorithm {
            RSA | RSA_SIGN_ONLY => Self::Rsa(reader.number()?.to_vec()),
            ECDSA | EDDSA => Self::Pair(reader.number()?.to_vec(), reader.number()?.to_vec()),
            ED25519_NATIVE => {
                Self::Native(reader.take(64)?.try_into().map_err(|_| Malformed("it is cut short"))?)
            }
            _ => Self::Unknown,
        })
    }
}
