//! Keys that may sign, out of keyring files: each with the signatures that say what it is for and
//! how long it counts (RFC 9580, section 10.1).
//!
//! Where in a file a signature stands says nothing: GnuPG moves each to where it belongs, so that a
//! revocation behind a key's last subkey revokes the key. Here each is tried on all that it could be
//! about. Copies of a key, in one file or in several, are one key with all that any of them says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::material::Material;
use super::packet::{self, Packet, Reader, packets, unarmoured};
use super::signature::{Said, Signature, kind};
use super::{Malformed, Refusal};

/// What keyrings have, by the body of the primary key.
pub(super) type Blocks = BTreeMap<Vec<u8>, Block>;

/// What stands with a primary key; nothing of it is verified.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Block {
    names: BTreeSet<Vec<u8>>,
    subkeys: BTreeSet<Vec<u8>>,
    signatures: BTreeSet<Vec<u8>>,
}

/// A primary key and its subkeys, with what the primary key says of them, which is verified.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Certificate {
    primary: Member,
    /// For each of its names, what it says of itself there.
    names: Vec<Vec<Said>>,
    subkeys: Vec<Member>,
}

/// A primary key or a subkey.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) material: Material,
    /// Seconds since 1970.
    created: u32,
    is_revoked: bool,
    /// Of it directly.
    said: Vec<Said>,
}

/// A key packet that can be used.
struct Key<'a> {
    body: &'a [u8],
    created: u32,
    material: Material,
}

/// The blocks of a keyring, armoured or not, in their order.
pub(super) fn blocks(file: &[u8]) -> Result<Vec<(Vec<u8>, Block)>, Malformed> {
    let file = unarmoured(file)?;
    let mut blocks: Vec<(Vec<u8>, Block)> = Vec::new();
    for Packet { kind, body } in packets(&file)? {
        let body = body.into_owned();
        let part = match (kind, blocks.last_mut()) {
            (packet::PUBLIC_KEY, _) => {
                blocks.push((body, Block::default()));
                continue;
            }
            // What a keyring notes for its own program.
            (packet::TRUST | packet::MARKER, _) => continue,
            (packet::USER_ATTRIBUTE, Some(_)) => continue,
            (packet::SIGNATURE, Some((_, block))) => &mut block.signatures,
            (packet::USER_ID, Some((_, block))) => &mut block.names,
            (packet::PUBLIC_SUBKEY, Some((_, block))) => &mut block.subkeys,
            (_, _) => return Err(Malformed("not a keyring of public keys")),
        };
        part.insert(body);
    }
    Ok(blocks)
}

impl Block {
    pub(super) fn add(&mut self, other: Self) {
        self.names.extend(other.names);
        self.subkeys.extend(other.subkeys);
        self.signatures.extend(other.signatures);
    }
}

impl Certificate {
    /// None: the primary key is of a kind that cannot be checked here.
    pub(super) fn read(primary: &[u8], block: &Block) -> Option<Self> {
        let key = Key::parse(primary)?;
        // Others' signatures may be of any kind.
        let parsed = block.signatures.iter().filter_map(|body| Signature::parse(body).ok());
        let signatures = Signatures { by: &key, all: parsed.collect() };
        let names = block.names.iter().map(|name| {
            let data = [key.hashed(), hashed_name(name)].concat();
            signatures.over(&data, kind::CERTIFICATIONS).map(Signature::said).collect()
        });
        let subkeys = block.subkeys.iter().filter_map(|body| Key::parse(body));
        Some(Self {
            names: names.collect(),
            subkeys: subkeys.map(|subkey| signatures.subkey(subkey)).collect(),
            primary: signatures.primary(),
        })
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.primary).chain(&self.subkeys)
    }

    /// Whether one of its keys was ever meant for signing. Those that are revoked or have expired
    /// are refused when they are met, not when their file is read: were the file refused, what was
    /// read before would stand, and the key with it.
    pub(super) fn is_for_signing(&self) -> bool {
        let is_meant = |member| matches!(self.check(member, 0), Ok(()) | Err(Refusal::KeyRevoked));
        self.members().any(is_meant)
    }

    /// Whether what `member`, one of its own, has signed counts. `now` is in seconds since 1970.
    pub(super) fn check(&self, member: &Member, now: u64) -> Result<(), Refusal> {
        if self.primary.is_revoked || member.is_revoked {
            return Err(Refusal::KeyRevoked);
        }
        let own = known(|now| self.own(now), now)?;
        let (said, lets_sign) = match std::ptr::eq(member, &self.primary) {
            // Keys of old do not say.
            true => (own, own.lets_sign != Some(false)),
            false => {
                let binding = known(|now| newest(&member.said, now), now)?;
                (binding, binding.lets_sign == Some(true))
            }
        };
        if !lets_sign {
            return Err(Refusal::OtherKey);
        }
        match self.primary.has_expired(own, now) || member.has_expired(said, now) {
            true => Err(Refusal::KeyExpired),
            false => Ok(()),
        }
    }

    /// What the primary key says of itself; none if it says nothing.
    ///
    /// Each thing for itself, as GnuPG has it: what the key says directly, else what it says with its
    /// names, the newest first. Its `addrevoker` adds a direct signature that says neither what the
    /// key is for nor how long it counts.
    fn own(&self, now: u64) -> Option<Said> {
        let direct = newest(self.primary.said.iter().filter(|said| said.is_telling()), now);
        let mut said: Vec<_> = self.names.iter().filter_map(|name| newest(name, now)).collect();
        said.sort_by_key(|said| Reverse(said.created));
        said.splice(0..0, direct);
        Some(Said {
            lets_sign: said.iter().find_map(|said| said.lets_sign),
            key_lives: said
                .iter()
                .map(|said| said.key_lives)
                .find(|lives| *lives != 0)
                .unwrap_or(0),
            ..*said.first()?
        })
    }
}

/// The newest that counts at a time.
fn newest<'a>(said: impl IntoIterator<Item = &'a Said>, now: u64) -> Option<Said> {
    let counts = said.into_iter().filter(|said| said.ends.is_none_or(|end| now < end));
    counts.max_by_key(|said| said.created).copied()
}

/// What is said at a time; what counted once counts as expired.
fn known(said: impl Fn(u64) -> Option<Said>, now: u64) -> Result<Said, Refusal> {
    said(now).ok_or_else(|| match said(0) {
        Some(_) => Refusal::KeyExpired,
        None => Refusal::OtherKey,
    })
}

/// All that stand with a primary key.
struct Signatures<'a> {
    by: &'a Key<'a>,
    all: Vec<Signature>,
}

impl Signatures<'_> {
    /// Those of some kinds that the primary key made over `data`.
    fn over(&self, data: &[u8], kinds: RangeInclusive<u8>) -> impl Iterator<Item = &Signature> {
        let of_kind = self.all.iter().filter(move |signature| kinds.contains(&signature.kind));
        of_kind.filter(move |signature| signature.is_by(&self.by.material, &[data]))
    }

    fn has(&self, data: &[u8], kind: u8) -> bool {
        self.over(data, kind..=kind).next().is_some()
    }

    fn primary(&self) -> Member {
        let data = self.by.hashed();
        let direct = self.over(&data, kind::DIRECT_KEY..=kind::DIRECT_KEY);
        Member {
            material: self.by.material.clone(),
            created: self.by.created,
            said: direct.map(Signature::said).collect(),
            is_revoked: self.has(&data, kind::KEY_REVOCATION),
        }
    }

    fn subkey(&self, subkey: Key<'_>) -> Member {
        let both = [self.by.hashed(), subkey.hashed()].concat();
        let bindings = self.over(&both, kind::SUBKEY_BINDING..=kind::SUBKEY_BINDING);
        let said = bindings.map(|binding| bound(binding, &subkey, &both)).collect();
        let is_revoked = self.has(&both, kind::SUBKEY_REVOCATION);
        Member { material: subkey.material, created: subkey.created, said, is_revoked }
    }
}

/// A subkey signs if it says itself that it belongs to its primary key: otherwise anybody could
/// claim a stranger's.
fn bound(binding: &Signature, subkey: &Key<'_>, both: &[u8]) -> Said {
    let back = binding.embedded.as_deref().and_then(|body| Signature::parse(body).ok());
    let is_bound = back.is_some_and(|back| {
        back.kind == kind::PRIMARY_KEY_BINDING && back.is_by(&subkey.material, &[both])
    });
    let said = binding.said();
    Said { lets_sign: Some(is_bound && said.lets_sign == Some(true)), ..said }
}

impl Member {
    fn has_expired(&self, said: Said, now: u64) -> bool {
        said.key_lives != 0 && u64::from(self.created) + u64::from(said.key_lives) <= now
    }
}

impl<'a> Key<'a> {
    fn parse(body: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let read = |reader: &mut Reader<'a>| {
            Ok::<_, Malformed>((reader.byte()?, reader.seconds()?, reader.byte()?))
        };
        let (version, created, algorithm) = read(&mut reader).ok()?;
        let material = Material::parse(algorithm, reader).ok()??;
        (version == 4).then_some(Self { body, created, material })
    }

    /// As signatures cover it.
    fn hashed(&self) -> Vec<u8> {
        let length = u16::try_from(self.body.len()).unwrap_or(u16::MAX);
        [&[0x99], &length.to_be_bytes()[..], self.body].concat()
    }
}

fn hashed_name(name: &[u8]) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    [&[0xb4], &length.to_be_bytes()[..], name].concat()
}
