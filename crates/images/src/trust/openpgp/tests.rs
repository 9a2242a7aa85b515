use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::*;

const CREATED: u32 = 1_000_000;
/// Later than all of that.
const NOW: u64 = 2_000_000;

/// A key made here, with what it says of itself.
pub(in crate::trust) struct TestKey {
    pair: Ed25519KeyPair,
}

/// A subpacket of a signature.
fn subpacket(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len() + 1).ok().filter(|length| *length < 192);
    match length {
        Some(length) => [&[length, kind], body].concat(),
        None => {
            let length = u32::try_from(body.len() + 1).unwrap();
            [&[255], &length.to_be_bytes()[..], &[kind], body].concat()
        }
    }
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&[0xc0 | kind, 255], &length.to_be_bytes()[..], body].concat()
}

fn flags(flags: u8) -> Vec<u8> {
    subpacket(27, &[flags])
}

fn key_lives(seconds: u32) -> Vec<u8> {
    subpacket(9, &seconds.to_be_bytes())
}

impl TestKey {
    pub(in crate::trust) fn new(seed: u8) -> Self {
        Self { pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap() }
    }

    /// The body of its packet, of the older form of Ed25519.
    fn body(&self) -> Vec<u8> {
        let mut body = vec![4];
        body.extend(CREATED.to_be_bytes());
        body.extend([22, 9, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01, 1, 7, 0x40]);
        body.extend(self.pair.public_key().as_ref());
        body
    }

    fn hashed(&self) -> Vec<u8> {
        let body = self.body();
        [&[0x99], &u16::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
    }

    fn numbers(&self, message: &[u8]) -> Vec<u8> {
        let hashed = ring::digest::digest(&ring::digest::SHA256, message);
        let signed = self.pair.sign(hashed.as_ref());
        let (r, s) = signed.as_ref().split_at(32);
        [&[1, 0], r, &[1, 0], s].concat()
    }

    /// The body of a signature of version 4, as old as the key.
    fn signature(&self, kind: u8, subpackets: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
        self.signature_at(1, kind, subpackets, data)
    }

    /// One that is made some seconds after the key.
    fn signature_at(&self, after: u32, kind: u8, subpackets: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
        let mut hashed = subpacket(2, &(CREATED + after).to_be_bytes());
        hashed.extend(subpackets.concat());
        let mut body = vec![4, kind, 22, 8];
        body.extend(u16::try_from(hashed.len()).unwrap().to_be_bytes());
        body.extend(hashed);
        let length = u32::try_from(body.len()).unwrap();
        let message = [data, &body, &[4, 0xff], &length.to_be_bytes()].concat();
        body.extend([0, 0, 0, 0]);
        body.extend(self.numbers(&message));
        body
    }

    /// Its packet, and what it says of itself over a name.
    fn certified(&self, subpackets: &[Vec<u8>]) -> Vec<u8> {
        self.certified_at(1, subpackets)
    }

    fn certified_at(&self, after: u32, subpackets: &[Vec<u8>]) -> Vec<u8> {
        let name = b"test";
        let data = [&self.hashed()[..], &[0xb4, 0, 0, 0, 4], name].concat();
        let signature = self.signature_at(after, 0x13, subpackets, &data);
        [
            packet(packet::PUBLIC_KEY, &self.body()),
            packet(packet::USER_ID, name),
            packet(packet::SIGNATURE, &signature),
        ]
        .concat()
    }

    /// A signature by itself that its own key is revoked.
    fn revocation(&self) -> Vec<u8> {
        packet(packet::SIGNATURE, &self.signature(0x20, &[], &self.hashed()))
    }

    /// A keyring of this key alone.
    pub(in crate::trust) fn public(&self) -> Vec<u8> {
        self.certified(&[flags(3)])
    }

    fn subkey(&self, subkey: &Self, subpackets: &[Vec<u8>]) -> Vec<u8> {
        let both = [self.hashed(), subkey.hashed()].concat();
        [
            packet(packet::PUBLIC_SUBKEY, &subkey.body()),
            packet(packet::SIGNATURE, &self.signature(0x18, subpackets, &both)),
        ]
        .concat()
    }

    /// By this subkey, that it belongs to `primary`.
    fn back(&self, primary: &Self) -> Vec<u8> {
        subpacket(32, &self.signature(0x19, &[], &[primary.hashed(), self.hashed()].concat()))
    }

    /// `content` as a signed message.
    pub(in crate::trust) fn sign(&self, content: &[u8]) -> Vec<u8> {
        message(content, &self.signature(0, &[], content))
    }
}

fn message(content: &[u8], signature: &[u8]) -> Vec<u8> {
    let literal = [&[b'b', 0, 0, 0, 0, 0], content].concat();
    [packet(packet::LITERAL, &literal), packet(packet::SIGNATURE, signature)].concat()
}

fn ring(file: &[u8]) -> Result<KeyRing, Malformed> {
    let mut ring = KeyRing::default();
    ring.add(file)?;
    Ok(ring)
}

#[test]
fn a_message_counts_if_a_key_of_the_ring_has_signed_it() {
    let (ours, other) = (TestKey::new(1), TestKey::new(2));
    let ring = ring(&ours.public()).unwrap();
    assert_eq!(ring.verified(&ours.sign(b"content"), NOW), Ok(b"content".to_vec()));
    assert_eq!(ring.verified(&other.sign(b"content"), NOW), Err(Refusal::OtherKey));
    let spoilt = message(b"Content", &ours.signature(0, &[], b"content"));
    assert_eq!(ring.verified(&spoilt, NOW), Err(Refusal::OtherKey));
    let of_text = message(b"content", &ours.signature(1, &[], b"content"));
    assert!(matches!(ring.verified(&of_text, NOW), Err(Refusal::Malformed(_))));
}

#[test]
fn times_of_keys_and_signatures_are_kept() {
    let key = TestKey::new(1);
    let sign =
        |subpackets: &[Vec<u8>]| message(b"content", &key.signature(0, subpackets, b"content"));
    let end = u64::from(CREATED) + 100;
    for (key_lives_for, subpackets, now, expected) in [
        (0, vec![], NOW, Ok(b"content".to_vec())),
        (100, vec![], end - 1, Ok(b"content".to_vec())),
        (100, vec![], end, Err(Refusal::KeyExpired)),
        (0, vec![lives(100)], end, Ok(b"content".to_vec())),
        (0, vec![lives(100)], end + 1, Err(Refusal::Expired)),
    ] {
        let ring = ring(&key.certified(&[flags(2), key_lives(key_lives_for)])).unwrap();
        assert_eq!(ring.verified(&sign(&subpackets), now), expected, "{key_lives_for} {now}");
    }
}

#[test]
fn only_keys_that_may_sign_are_taken() {
    let key = TestKey::new(1);
    let mut spoilt = key.public();
    let last = spoilt.len() - 1;
    spoilt[last] ^= 1;
    for (what, file, is_taken) in [
        ("old, without flags", key.certified(&[]), true),
        ("certifies only", key.certified(&[flags(1)]), false),
        ("without a signature", packet(packet::PUBLIC_KEY, &key.body()), false),
        ("with a spoilt signature", spoilt, false),
        ("with something critical", key.certified(&[flags(2), subpacket(0x80 | 20, &[0])]), false),
        ("no key", key.sign(b"content"), false),
    ] {
        assert_eq!(ring(&file).is_ok(), is_taken, "{what}");
    }
}

#[test]
fn a_revocation_counts_wherever_it_stands() {
    let (key, other, subkey) = (TestKey::new(1), TestKey::new(2), TestKey::new(3));
    let own = packet(packet::PUBLIC_KEY, &key.body());
    let public = key.certified(&[flags(3)]);
    let rest = &public[own.len()..];
    let bound = key.subkey(&subkey, &[flags(2), subkey.back(&key)]);
    let last = key.subkey(&other, &[flags(0x0c)]);
    let both = [key.hashed(), subkey.hashed()].concat();
    let by_other = packet(packet::SIGNATURE, &other.signature(0x20, &[], &key.hashed()));
    let of_subkey = packet(packet::SIGNATURE, &key.signature(0x28, &[], &both));
    let of_key = key.revocation();
    let (revoked, counts) = (Err(Refusal::KeyRevoked), Ok(b"x".to_vec()));
    for (what, parts, of_key, of_subkey) in [
        ("nowhere", vec![&own, rest, &bound, &last], &counts, &counts),
        ("behind the key", vec![&own, &of_key, rest, &bound, &last], &revoked, &revoked),
        ("behind the name", vec![&own, rest, &of_key, &bound, &last], &revoked, &revoked),
        ("behind the subkeys", vec![&own, rest, &bound, &last, &of_key], &revoked, &revoked),
        ("with a second copy", vec![&public, &bound, &own, &of_key], &revoked, &revoked),
        ("with the first copy", vec![&own, &of_key, &public, &bound], &revoked, &revoked),
        ("by somebody else", vec![&own, &by_other, rest, &bound, &by_other], &counts, &counts),
        ("of the subkey", vec![&public, &bound, &of_subkey, &last], &counts, &revoked),
        ("behind another subkey", vec![&public, &bound, &last, &of_subkey], &counts, &revoked),
        ("before the subkey", vec![&own, &of_subkey, rest, &bound], &counts, &revoked),
        ("in a second copy", vec![&public, &bound, &public, &of_subkey], &counts, &revoked),
    ] {
        let ring = ring(&parts.concat()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(ring.verified(&key.sign(b"x"), NOW), *of_key, "{what}: the key");
        assert_eq!(ring.verified(&subkey.sign(b"x"), NOW), *of_subkey, "{what}: the subkey");
    }
}

#[test]
fn copies_of_a_key_are_one_key_with_all_that_any_of_them_says() {
    let key = TestKey::new(1);
    let for_ever = key.certified_at(1, &[flags(3)]);
    let shortened = key.certified_at(2, &[flags(3), key_lives(100)]);
    let renewed = key.certified_at(3, &[flags(3), key_lives(2_000_000)]);
    let revoked = [&for_ever[..], &key.revocation()].concat();
    let counts = Ok(b"x".to_vec());
    for (what, copies, expected) in [
        ("shortened", [&for_ever, &shortened], Err(Refusal::KeyExpired)),
        ("renewed", [&shortened, &renewed], counts),
        ("revoked", [&for_ever, &revoked], Err(Refusal::KeyRevoked)),
    ] {
        for copies in [copies, [copies[1], copies[0]]] {
            let mut of_two = KeyRing::default();
            copies.iter().for_each(|copy| of_two.add(copy).unwrap());
            for ring in [ring(&copies.map(Vec::as_slice).concat()).unwrap(), of_two] {
                assert_eq!(ring.verified(&key.sign(b"x"), NOW), expected, "{what}");
            }
        }
    }
}

/// A signature's own end.
fn lives(seconds: u32) -> Vec<u8> {
    subpacket(3, &seconds.to_be_bytes())
}

#[test]
fn what_a_key_says_of_itself_is_put_together_from_all_that_counts() {
    let key = TestKey::new(1);
    let direct = |after, subpackets: &[Vec<u8>]| {
        packet(packet::SIGNATURE, &key.signature_at(after, 0x1f, subpackets, &key.hashed()))
    };
    let named = |after, subpackets: &[Vec<u8>]| key.certified_at(after, subpackets);
    // As gpg's `addrevoker` makes it.
    let revoker = direct(9, &[subpacket(12, &[0x80; 22]), subpacket(7, &[0])]);
    let (counts, expired) = (Ok(b"x".to_vec()), Err(Refusal::KeyExpired));
    for (what, said, expected) in [
        ("an end by name", [named(1, &[flags(3), key_lives(9)]), revoker.clone()], &expired),
        ("an end directly", [named(2, &[flags(3)]), direct(1, &[key_lives(9)])], &expired),
        ("a later end by name", [named(1, &[key_lives(9)]), named(2, &[flags(3)])], &counts),
        ("one that has ended", [named(2, &[lives(9)]), named(1, &[flags(3)])], &counts),
        ("all have ended", [named(1, &[flags(3), lives(9)]), vec![]], &expired),
        (
            "an end that has ended",
            [named(1, &[flags(3)]), direct(2, &[key_lives(9), lives(8)])],
            &counts,
        ),
    ] {
        let said = said.concat();
        assert_eq!(ring(&said).unwrap().verified(&key.sign(b"x"), NOW), *expected, "{what}");
    }
    for (what, said) in [
        ("made by hand", [key.certified(&[flags(1)]), revoker].concat()),
        ("made by gpg", include_bytes!("../testdata/gpg_addrevoker.asc").to_vec()),
    ] {
        assert!(ring(&said).is_err(), "certifies only, {what}");
    }
}

#[test]
fn a_subkey_counts_by_its_newest_binding_that_has_not_ended() {
    let (key, subkey) = (TestKey::new(1), TestKey::new(2));
    let both = [key.hashed(), subkey.hashed()].concat();
    let bound = |after, subpackets: &[Vec<u8>]| {
        let subpackets = [subpackets, &[subkey.back(&key)]].concat();
        packet(packet::SIGNATURE, &key.signature_at(after, 0x18, &subpackets, &both))
    };
    let packets = [key.public(), packet(packet::PUBLIC_SUBKEY, &subkey.body())];
    for (what, bindings, expected) in [
        ("for ever", [bound(1, &[flags(2)]), vec![]], Ok(b"x".to_vec())),
        ("ended", [bound(1, &[flags(2), lives(9)]), vec![]], Err(Refusal::KeyExpired)),
        (
            "taken back for a time",
            [bound(1, &[flags(2)]), bound(2, &[flags(0), lives(9)])],
            Ok(b"x".to_vec()),
        ),
        ("taken back", [bound(1, &[flags(2)]), bound(2, &[flags(0)])], Err(Refusal::OtherKey)),
    ] {
        let ring = ring(&[packets.concat(), bindings.concat()].concat()).unwrap();
        assert_eq!(ring.verified(&subkey.sign(b"x"), NOW), expected, "{what}");
    }
}

#[test]
fn a_subkey_counts_if_it_and_its_primary_key_say_so() {
    let (primary, subkey, stranger) = (TestKey::new(1), TestKey::new(2), TestKey::new(3));
    let certify_only = primary.certified(&[flags(1)]);
    let bound = |subpackets: &[Vec<u8>]| {
        [certify_only.clone(), primary.subkey(&subkey, subpackets)].concat()
    };
    let both = [primary.hashed(), subkey.hashed()].concat();
    let mut revoked = bound(&[flags(2), subkey.back(&primary)]);
    revoked.extend(packet(packet::SIGNATURE, &primary.signature(0x28, &[], &both)));
    let foreign = [certify_only.clone(), stranger.subkey(&subkey, &[flags(2)])].concat();
    for (what, file, is_taken) in [
        ("bound", bound(&[flags(2), subkey.back(&primary)]), true),
        ("not said to sign", bound(&[subkey.back(&primary)]), false),
        ("does not say it belongs", bound(&[flags(2)]), false),
        ("says it belongs to another", bound(&[flags(2), subkey.back(&stranger)]), false),
        ("another says it", bound(&[flags(2), stranger.back(&primary)]), false),
        ("bound by another", foreign, false),
        ("revoked", revoked, false),
    ] {
        let ring = ring(&file);
        let counts = ring.is_ok_and(|ring| ring.verified(&subkey.sign(b"x"), NOW).is_ok());
        assert_eq!(counts, is_taken, "{what}");
    }
    let file = [
        primary.certified(&[flags(1), key_lives(50)]),
        primary.subkey(&subkey, &[flags(2), key_lives(100), subkey.back(&primary)]),
    ];
    let ring = ring(&file.concat()).unwrap();
    let ends_with_its_primary_key = ring.verified(&subkey.sign(b"x"), u64::from(CREATED) + 60);
    assert_eq!(ends_with_its_primary_key, Err(Refusal::KeyExpired));
}

#[test]
fn signatures_of_version_3_count_too() {
    let key = TestKey::new(1);
    let covered = [&[0], &CREATED.to_be_bytes()[..]].concat();
    let mut body = [&[3, 5], &covered[..], &[0; 8], &[22, 8], &[0, 0]].concat();
    body.extend(key.numbers(&[b"content", &covered[..]].concat()));
    let ring = ring(&key.public()).unwrap();
    assert_eq!(ring.verified(&message(b"content", &body), NOW), Ok(b"content".to_vec()));
    assert_eq!(ring.verified(&message(b"other", &body), NOW), Err(Refusal::OtherKey));
}

#[test]
fn a_message_has_one_content_and_one_signature_and_may_be_compressed() {
    use std::io::Write;
    let key = TestKey::new(1);
    let ring = ring(&key.public()).unwrap();
    let plain = key.sign(b"content");
    let compressed = |algorithm: u8, bytes: Vec<u8>| {
        packet(packet::COMPRESSED, &[vec![algorithm], bytes].concat())
    };
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), Default::default());
    deflate.write_all(&plain).unwrap();
    let deflated = deflate.finish().unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), Default::default());
    zlib.write_all(&plain).unwrap();
    let one_pass = packet(packet::ONE_PASS, &[3, 0, 8, 22, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let once = compressed(1, deflated.clone());
    for (what, message, counts) in [
        ("plain", plain.clone(), true),
        ("announced", [one_pass, plain.clone()].concat(), true),
        ("stored", compressed(0, plain.clone()), true),
        ("deflated", once.clone(), true),
        ("zlib", compressed(2, zlib.finish().unwrap()), true),
        ("bzip2", compressed(3, plain.clone()), false),
        ("compressed twice", compressed(0, once), false),
        ("cut short", compressed(1, deflated[..deflated.len() / 2].to_vec()), false),
        ("twice", [plain.clone(), plain.clone()].concat(), false),
        ("nothing", vec![], false),
        ("with a key", [key.public(), plain].concat(), false),
    ] {
        assert_eq!(ring.verified(&message, NOW).is_ok(), counts, "{what}");
    }
    let bomb = vec![0; 4 << 20];
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), Default::default());
    deflate.write_all(&bomb).unwrap();
    assert!(ring.verified(&compressed(1, deflate.finish().unwrap()), NOW).is_err());
}

#[test]
fn what_gpg_makes_of_a_key_and_its_revocation_is_read_alike() {
    let key = include_bytes!("../testdata/gpg_key.asc");
    let revocation = include_bytes!("../testdata/gpg_revocation.asc");
    let message = include_bytes!("../testdata/gpg_message.gpg");
    // In the year 2025, before the key's end.
    let now = 1_750_000_000;
    assert_eq!(ring(key).unwrap().verified(message, now), Ok(b"x".to_vec()));
    let revoked = ring(&[&key[..], revocation].concat()).unwrap();
    assert_eq!(revoked.verified(message, now), Err(Refusal::KeyRevoked));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_damage_makes_the_readers_panic(at in any::<prop::sample::Index>(), byte: u8, cut in 0..400_usize) {
        let key = TestKey::new(1);
        let mut damaged = [key.public(), key.subkey(&TestKey::new(2), &[flags(2)])].concat();
        let place = at.index(damaged.len());
        damaged[place] = byte;
        damaged.truncate(cut);
        let _ = ring(&damaged);
        let _ = ring(&key.public()).unwrap().verified(&damaged, NOW);
    }
}
