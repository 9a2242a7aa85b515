//! The little of OpenPGP that simple signing needs: public keys out of a keyring, and signed
//! messages, as GnuPG writes them.
//!
//! Written here, on ring, because the libraries for it bring every cipher that OpenPGP ever had
//! (see ARCHITECTURE.md). Read are keys of version 4 with RSA (2048 bits and more), Ed25519 or
//! ECDSA on P-256 and P-384, and signatures of version 3 and 4 over SHA-2. Whatever else comes
//! makes a signature that does not count.

mod key;
mod material;
mod packet;
mod signature;
#[cfg(test)]
pub(super) mod tests;

use std::io::Read;

use flate2::read::{DeflateDecoder, ZlibDecoder};

use super::payload::LARGEST_PAYLOAD;
use key::{Blocks, Certificate};
use material::Material;
use packet::{Packet, packets};
use signature::{Signature, kind};

/// What cannot be read, or not by these rules.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(&'static str);

/// Why a message's signature does not count.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is no signed message: {0}")]
    Malformed(#[from] Malformed),
    #[error("it is not by a trusted key")]
    OtherKey,
    #[error("its key has expired")]
    KeyExpired,
    #[error("its key is revoked")]
    KeyRevoked,
    #[error("it has expired")]
    Expired,
    #[error("it is made with SHA-1")]
    WeakHash,
}

/// The keys whose signatures count.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KeyRing {
    blocks: Blocks,
    /// What the blocks come to.
    certificates: Vec<Certificate>,
}

impl KeyRing {
    /// Adds the keys of a file, of which one at least must be for signing. A ring is of no use
    /// after an error.
    pub(super) fn add(&mut self, file: &[u8]) -> Result<(), Malformed> {
        let mut is_for_signing = false;
        let blocks = key::blocks(file)?;
        let primaries: Vec<_> = blocks.iter().map(|(primary, _)| primary.clone()).collect();
        for (primary, block) in blocks {
            self.blocks.entry(primary).or_default().add(block);
        }
        self.certificates.clear();
        for (primary, block) in &self.blocks {
            let Some(certificate) = Certificate::read(primary, block) else { continue };
            is_for_signing |= primaries.contains(primary) && certificate.is_for_signing();
            self.certificates.push(certificate);
        }
        match is_for_signing {
            true => Ok(()),
            false => Err(Malformed("it has no key that may sign and can be checked")),
        }
    }

    /// What a signed message says, if one of these keys has signed it. `now` is in seconds since
    /// 1970.
    pub(super) fn verified(&self, message: &[u8], now: u64) -> Result<Vec<u8>, Refusal> {
        let Message { content, signature } = Message::parse(message)?;
        if signature.has_weak_hash() {
            return Err(Refusal::WeakHash);
        }
        self.check_key(now, |material| signature.is_by(material, &[&content]))?;
        if signature.has_expired(now) {
            return Err(Refusal::Expired);
        }
        Ok(content)
    }

    /// Whether one of the keys that `made_it` names counts: two primary keys may share a subkey.
    fn check_key(&self, now: u64, made_it: impl Fn(&Material) -> bool) -> Result<(), Refusal> {
        let mut answer = Err(Refusal::OtherKey);
        for certificate in &self.certificates {
            for member in certificate.members().filter(|member| made_it(&member.material)) {
                answer = certificate.check(member, now);
                if answer.is_ok() {
                    return answer;
                }
            }
        }
        answer
    }
}

/// A message with its one signature.
struct Message {
    content: Vec<u8>,
    signature: Signature,
}

impl Message {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let outer = packets(bytes)?;
        match outer.as_slice() {
            [Packet { kind: packet::COMPRESSED, body }] => {
                Self::of(&packets(&decompressed(body)?)?)
            }
            packets => Self::of(packets),
        }
    }

    fn of(packets: &[Packet<'_>]) -> Result<Self, Malformed> {
        let (mut content, mut signature) = (None, None);
        for Packet { kind, body } in packets {
            let is_second = match *kind {
                packet::LITERAL => content.replace(literal(body)?).is_some(),
                packet::SIGNATURE => signature.replace(Signature::parse(body)?).is_some(),
                // Announces the signature; what counts is the signature itself.
                packet::ONE_PASS | packet::MARKER => false,
                _ => return Err(Malformed("a packet that has no place in it")),
            };
            if is_second {
                return Err(Malformed("more than one message or signature"));
            }
        }
        let (Some(content), Some(signature)) = (content, signature) else {
            return Err(Malformed("no message, or no signature"));
        };
        if signature.kind != kind::BINARY {
            return Err(Malformed("a signature of something else"));
        }
        Ok(Self { content, signature })
    }
}

/// The data of a literal packet: after its format, name and time.
fn literal(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = packet::Reader(body);
    reader.byte()?;
    let name = reader.byte()?;
    reader.take(name.into())?;
    reader.seconds()?;
    Ok(reader.0.to_vec())
}

fn decompressed(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut content = Vec::new();
    // Room for the packets around the payload.
    let most = 2 * LARGEST_PAYLOAD as u64;
    let (algorithm, body) = body.split_first().ok_or(Malformed("it is cut short"))?;
    let read = match algorithm {
        0 => body.take(most).read_to_end(&mut content),
        1 => DeflateDecoder::new(body).take(most).read_to_end(&mut content),
        2 => ZlibDecoder::new(body).take(most).read_to_end(&mut content),
        _ => return Err(Malformed("a compression that is not ZIP or ZLIB")),
    };
    read.map_err(|_| Malformed("damaged compressed data"))?;
    Ok(content)
}
