//! A signature packet: what it covers, how long it counts, and whether a key made it (RFC 9580,
//! section 5.2).

use super::Malformed;
use super::material::{Hash, Material, SignatureValue};
use super::packet::Reader;

/// What a signature is for.
pub(super) mod kind {
    pub(crate) const BINARY: u8 = 0x00;
    pub(crate) const CERTIFICATIONS: std::ops::RangeInclusive<u8> = 0x10..=0x13;
    pub(crate) const SUBKEY_BINDING: u8 = 0x18;
    pub(crate) const PRIMARY_KEY_BINDING: u8 = 0x19;
    pub(crate) const DIRECT_KEY: u8 = 0x1f;
    pub(crate) const KEY_REVOCATION: u8 = 0x20;
    pub(crate) const SUBKEY_REVOCATION: u8 = 0x28;
}

/// May sign data.
const FLAG_SIGNS: u8 = 0x02;

#[derive(Debug)]
pub(super) struct Signature {
    pub(super) kind: u8,
    /// Seconds since 1970, as all times here.
    created: u32,
    /// After which it counts no more; 0: never.
    lives: u32,
    /// Of the key that it is about, since that key's creation; 0: for ever.
    key_lives: u32,
    /// Of the key that it is about, if it says.
    flags: Option<u8>,
    /// By a subkey, that it belongs to the primary key.
    pub(super) embedded: Option<Vec<u8>>,
    hash: Hash,
    /// What is hashed after the data.
    suffix: Vec<u8>,
    value: SignatureValue,
}

/// What a signature says of the key that it is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Said {
    /// Seconds since 1970.
    pub(super) created: u32,
    /// When it counts no more.
    pub(super) ends: Option<u64>,
    /// Whether the key may sign data, if it says.
    pub(super) lets_sign: Option<bool>,
    /// How long the key counts, from its creation; 0: for ever.
    pub(super) key_lives: u32,
}

impl Said {
    pub(super) fn is_telling(&self) -> bool {
        self.lets_sign.is_some() || self.key_lives != 0
    }
}

impl Signature {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        match body.first() {
            Some(3) => Self::parse_v3(body),
            Some(4) => Self::parse_v4(body),
            Some(_) | None => Err(Malformed("a signature of an unknown version")),
        }
    }

    /// What some signing servers still make.
    fn parse_v3(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(&body[1..]);
        if reader.byte()? != 5 {
            return Err(Malformed("a signature of version 3 with more than it can have"));
        }
        let suffix = reader.take(5)?;
        let mut created = Reader(&suffix[1..]);
        reader.take(8)?;
        let (algorithm, hash) = (reader.byte()?, Hash::parse(reader.byte()?)?);
        reader.take(2)?;
        Ok(Self {
            kind: suffix[0],
            created: created.seconds()?,
            lives: 0,
            key_lives: 0,
            flags: None,
            embedded: None,
            hash,
            suffix: suffix.to_vec(),
            value: SignatureValue::parse(algorithm, reader)?,
        })
    }

    fn parse_v4(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(&body[1..]);
        let kind = reader.byte()?;
        let (algorithm, hash) = (reader.byte()?, Hash::parse(reader.byte()?)?);
        let length = reader.u16()?;
        let hashed = reader.take(length.into())?;
        let mut suffix = body[..6 + usize::from(length)].to_vec();
        let hashed_bytes = u32::from(length) + 6;
        suffix.extend([4, 0xff]);
        suffix.extend(hashed_bytes.to_be_bytes());
        let unhashed = reader.u16()?;
        let unhashed = reader.take(unhashed.into())?;
        reader.take(2)?;
        let value = SignatureValue::parse(algorithm, reader)?;
        let mut signature = Self {
            kind,
            created: 0,
            lives: 0,
            key_lives: 0,
            flags: None,
            embedded: None,
            hash,
            suffix,
            value,
        };
        signature.take_subpackets(hashed)?;
        // Of what is not covered, only what proves itself.
        if signature.embedded.is_none() {
            signature.embedded = embedded(unhashed)?;
        }
        Ok(signature)
    }

    fn take_subpackets(&mut self, area: &[u8]) -> Result<(), Malformed> {
        for subpacket in subpackets(area) {
            let Subpacket { kind, critical, mut body } = subpacket?;
            match kind {
                2 => self.created = body.seconds()?,
                3 => self.lives = body.seconds()?,
                9 => self.key_lives = body.seconds()?,
                27 => self.flags = Some(body.0.first().copied().unwrap_or(0)),
                32 => self.embedded = Some(body.0.to_vec()),
                // Exportable, trust, preferences, issuer, features, and the like: they limit
                // nothing of what a signature is used for here.
                4..=7 | 11 | 16 | 21..=26 | 28..=31 | 33..=35 | 39 => {}
                _ if critical => return Err(Malformed("a critical part that is not known")),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn said(&self) -> Said {
        let lets_sign = self.flags.map(|flags| flags & FLAG_SIGNS != 0);
        let (created, key_lives) = (self.created, self.key_lives);
        Said { created, ends: self.ends(), lets_sign, key_lives }
    }

    /// Whether `material` made this over `data`.
    pub(super) fn is_by(&self, material: &Material, data: &[&[u8]]) -> bool {
        let mut message = data.concat();
        message.extend_from_slice(&self.suffix);
        material.verify(self.hash, &message, &self.value)
    }

    /// SHA-1 will do where a key speaks of itself: its file is the administrator's. It will not
    /// where somebody else's bytes are signed.
    pub(super) fn has_weak_hash(&self) -> bool {
        self.hash == Hash::Sha1
    }

    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.ends().is_some_and(|end| end <= now)
    }

    fn ends(&self) -> Option<u64> {
        (self.lives != 0).then(|| u64::from(self.created) + u64::from(self.lives))
    }
}

struct Subpacket<'a> {
    kind: u8,
    critical: bool,
    body: Reader<'a>,
}

fn subpackets(area: &[u8]) -> impl Iterator<Item = Result<Subpacket<'_>, Malformed>> {
    let mut reader = Reader(area);
    let mut next = move || -> Result<Option<Subpacket<'_>>, Malformed> {
        if reader.0.is_empty() {
            return Ok(None);
        }
        let length = reader.subpacket_length()?;
        let mut body = Reader(reader.take(length)?);
        let kind = body.byte()?;
        Ok(Some(Subpacket { kind: kind & 0x7f, critical: kind & 0x80 != 0, body }))
    };
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let next = next().transpose();
        failed = matches!(next, Some(Err(_)));
        next
    })
}

fn embedded(area: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    for subpacket in subpackets(area) {
        let Subpacket { kind, body, .. } = subpacket?;
        if kind == 32 {
            return Ok(Some(body.0.to_vec()));
        }
    }
    Ok(None)
}
