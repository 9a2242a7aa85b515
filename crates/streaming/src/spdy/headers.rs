//! Header blocks: name and value pairs, compressed by zlib with a preset dictionary. One
//! compression goes on over all blocks of a direction of a connection. Pure.
//!
//! What a server has to say is nothing: its blocks are empty. They are written as stored blocks of
//! deflate, so that no compressor's quarter of a megabyte is needed per connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, ID};

/// All names and values of a block together: some ten words in practice.
const BLOCK_BYTES: usize = 16 << 10;
const PAIRS: u32 = 64;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("a header block cannot be decompressed")]
    Compression,
    #[error("a header block is larger than {BLOCK_BYTES} bytes")]
    TooLarge,
    #[error("a header block ends before its last pair, or has too many")]
    Malformed,
}

/// The headers of one stream. Names are in lower case, as SPDY demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Reads the blocks of one direction, in their order.
pub(crate) struct HeaderReader(Decompress);

impl HeaderReader {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.decompress(block)?)
    }

    fn decompress(&mut self, block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut input = block;
        let mut text = Vec::with_capacity(512);
        loop {
            let (before_in, before_out) = (self.0.total_in(), text.len());
            let result = self.0.decompress_vec(input, &mut text, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before_in).unwrap_or(usize::MAX);
            input = input.get(taken..).ok_or(HeaderError::Compression)?;
            match result {
                Err(error) if error.needs_dictionary() == Some(ID) => {
                    let set = self.0.set_dictionary(&DICTIONARY);
                    set.map_err(|_| HeaderError::Compression)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(Status::Ok | Status::BufError) => {}
            }
            // A full buffer may hide more; otherwise all there is has come out.
            if text.len() < text.capacity() {
                return if input.is_empty() { Ok(text) } else { Err(HeaderError::Compression) };
            }
            if text.len() > BLOCK_BYTES {
                return Err(HeaderError::TooLarge);
            }
            if taken == 0 && text.len() == before_out && input.is_empty() {
                return Ok(text);
            }
            text.reserve(text.len().max(512));
        }
    }
}

fn parse(text: &[u8]) -> Result<Headers, HeaderError> {
    let mut rest = text;
    let pairs = number(&mut rest)?;
    if pairs > PAIRS {
        return Err(HeaderError::Malformed);
    }
    let mut headers = Vec::new();
    for _ in 0..pairs {
        let name = string(&mut rest)?.to_lowercase();
        headers.push((name, string(&mut rest)?));
    }
    Ok(Headers(headers))
}

fn number(rest: &mut &[u8]) -> Result<u32, HeaderError> {
    let (number, after) = rest.split_first_chunk().ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(u32::from_be_bytes(*number))
}

fn string(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = usize::try_from(number(rest)?).map_err(|_| HeaderError::Malformed)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Writes blocks without a header.
#[derive(Default)]
pub(crate) struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    pub(crate) fn empty_block(&mut self) -> Vec<u8> {
        // Deflate with the largest window; the dictionary's name follows.
        const ZLIB: [u8; 2] = [0x78, 0x20];
        // Stored, not the last: length, its complement, and a block of no pairs.
        const NO_PAIRS: [u8; 9] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0];
        // What a flush ends with: some readers take nothing out before they have seen it.
        const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
        let mut block = Vec::with_capacity(20);
        if !std::mem::replace(&mut self.begun, true) {
            block.extend_from_slice(&ZLIB);
            block.extend_from_slice(&ID.to_be_bytes());
        }
        block.extend_from_slice(&NO_PAIRS);
        block.extend_from_slice(&FLUSH);
        block
    }
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
