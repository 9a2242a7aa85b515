//! OpenPGP's packets, and the text armour around them (RFC 9580, sections 4 and 6). Pure.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Malformed;

pub(super) const SIGNATURE: u8 = 2;
pub(super) const ONE_PASS: u8 = 4;
pub(super) const PUBLIC_KEY: u8 = 6;
pub(super) const COMPRESSED: u8 = 8;
pub(super) const MARKER: u8 = 10;
pub(super) const LITERAL: u8 = 11;
pub(super) const TRUST: u8 = 12;
pub(super) const USER_ID: u8 = 13;
pub(super) const PUBLIC_SUBKEY: u8 = 14;
pub(super) const USER_ATTRIBUTE: u8 = 17;

#[derive(Debug, PartialEq)]
pub(super) struct Packet<'a> {
    pub(super) kind: u8,
    pub(super) body: Cow<'a, [u8]>,
}

/// All packets of `bytes`, which must end with the last of them.
pub(super) fn packets(bytes: &[u8]) -> Result<Vec<Packet<'_>>, Malformed> {
    let mut reader = Reader(bytes);
    let mut packets = Vec::new();
    while !reader.0.is_empty() {
        packets.push(packet(&mut reader)?);
    }
    Ok(packets)
}

fn packet<'a>(reader: &mut Reader<'a>) -> Result<Packet<'a>, Malformed> {
    let header = reader.byte()?;
    match (header & 0x80 != 0, header & 0x40 != 0) {
        (true, true) => Ok(Packet { kind: header & 0x3f, body: new_body(reader)? }),
        (true, false) => {
            let length = match header & 3 {
                0 => usize::from(reader.byte()?),
                1 => usize::from(reader.u16()?),
                2 => reader.u32()?,
                // As long as there is anything.
                _ => reader.0.len(),
            };
            Ok(Packet { kind: header >> 2 & 0xf, body: reader.take(length)?.into() })
        }
        (false, _) => Err(Malformed("a packet without a header")),
    }
}

/// A body may come in pieces, each but the last with a power of two for its length.
fn new_body<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, [u8]>, Malformed> {
    let mut collected = Vec::new();
    loop {
        let first = reader.byte()?;
        let length = match first {
            0..=191 => usize::from(first),
            192..=223 => two_octets(first, reader.byte()?),
            255 => reader.u32()?,
            224..=254 => {
                collected.extend_from_slice(reader.take(1 << (first & 0x1f))?);
                continue;
            }
        };
        let last = reader.take(length)?;
        if collected.is_empty() {
            return Ok(last.into());
        }
        collected.extend_from_slice(last);
        return Ok(collected.into());
    }
}

fn two_octets(first: u8, second: u8) -> usize {
    ((usize::from(first) - 192) << 8) + usize::from(second) + 192
}

/// Reads from the front of some bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u32(&mut self) -> Result<usize, Malformed> {
        Ok(self.seconds()? as usize)
    }

    /// A time, or a span of it.
    pub(super) fn seconds(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A number of any size, without leading zeros.
    pub(super) fn number(&mut self) -> Result<&'a [u8], Malformed> {
        let bits = usize::from(self.u16()?);
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(&bytes[zeros..])
    }

    /// The length of a subpacket: as a packet's, but without pieces.
    pub(super) fn subpacket_length(&mut self) -> Result<usize, Malformed> {
        match self.byte()? {
            255 => self.u32(),
            first @ 0..=191 => Ok(usize::from(first)),
            first @ 192..=254 => Ok(two_octets(first, self.byte()?)),
        }
    }
}

/// The binary form of what may be armoured; several blocks are one after another. The checksum is
/// not looked at, as RFC 9580 has it: signatures tell of damage.
pub(super) fn unarmoured(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    let is_binary = bytes.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| b & 0x80 != 0);
    if is_binary {
        return Ok(bytes.into());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed("neither packets nor text"))?;
    let mut lines = text.lines().map(str::trim);
    let mut binary = Vec::new();
    let mut blocks = 0;
    while lines.any(|line| line.starts_with("-----BEGIN PGP ")) {
        // Headers, up to an empty line.
        let mut body = String::new();
        let block = lines.by_ref().take_while(|line| !line.starts_with("-----END PGP "));
        for line in block.skip_while(|line| !line.is_empty()) {
            if !line.starts_with('=') {
                body.push_str(line);
            }
        }
        let decoded = STANDARD.decode(body).map_err(|_| Malformed("armour that is not base64"))?;
        binary.extend(decoded);
        blocks += 1;
    }
    if blocks == 0 {
        return Err(Malformed("no block of keys"));
    }
    Ok(binary.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u8, body: &[u8]) -> Packet<'_> {
        Packet { kind, body: body.into() }
    }

    #[test]
    fn packets_of_either_format_are_taken_apart() {
        let long = [7; 300];
        let mut new_long = vec![0xc0 | LITERAL, 192, 108];
        new_long.extend(long);
        let mut four = vec![0xc0 | LITERAL, 255, 0, 0, 1, 44];
        four.extend(long);
        let mut old_long = vec![0x80 | LITERAL << 2 | 1, 1, 44];
        old_long.extend(long);
        for (bytes, expected) in [
            (&[][..], vec![]),
            (&[0xc2, 1, 9], vec![packet(2, &[9])]),
            (&[0x88, 1, 9, 0x98, 0], vec![packet(2, &[9]), packet(6, &[])]),
            (&[0xa3, 1, 2, 3], vec![packet(8, &[1, 2, 3])]),
            // Two pieces of one byte each, and a last of two.
            (&[0xcb, 224, 1, 224, 2, 2, 3, 4], vec![packet(11, &[1, 2, 3, 4])]),
            (&new_long, vec![packet(11, &long)]),
            (&four, vec![packet(11, &long)]),
            (&old_long, vec![packet(11, &long)]),
        ] {
            assert_eq!(packets(bytes), Ok(expected), "{bytes:?}");
        }
        for bytes in [&[0x02, 1, 9][..], &[0xc2], &[0xc2, 2, 9], &[0xcb, 224, 1], &[0xcb, 255, 0]] {
            assert!(packets(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn armour_is_taken_off_with_its_headers_and_checksums() {
        let block = |body: &str| {
            format!(
                "-----BEGIN PGP PUBLIC KEY BLOCK-----\r\nVersion: x\r\n\r\n{body}\r\n=AAAA\r\n\
                 -----END PGP PUBLIC KEY BLOCK-----\r\n"
            )
        };
        let two = format!("words before\n{}{}", block("AQID"), block("BAU=\n"));
        assert_eq!(unarmoured(two.as_bytes()).unwrap(), &[1, 2, 3, 4, 5][..]);
        assert_eq!(unarmoured(&[0x99, 0]).unwrap(), &[0x99, 0][..]);
        for wrong in ["", "hello", &block("A*")] {
            assert!(unarmoured(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
