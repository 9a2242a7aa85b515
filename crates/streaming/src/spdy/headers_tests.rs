use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::*;

/// A client's side: compresses with the dictionary, over several blocks.
struct Client(Compress);

impl Client {
    fn new() -> Self {
        let mut compress = Compress::new(Compression::new(9), true);
        assert_eq!(compress.set_dictionary(&DICTIONARY).unwrap(), ID);
        Self(compress)
    }

    fn compress(&mut self, text: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(text.len() + 1024);
        self.0.compress_vec(text, &mut block, FlushCompress::Sync).unwrap();
        block
    }

    fn block(&mut self, pairs: &[(&str, &str)]) -> Vec<u8> {
        self.compress(&plain(pairs))
    }
}

fn plain(pairs: &[(&str, &str)]) -> Vec<u8> {
    let length = |text: &str| u32::try_from(text.len()).unwrap().to_be_bytes();
    let mut text = u32::try_from(pairs.len()).unwrap().to_be_bytes().to_vec();
    for (name, value) in pairs {
        for word in [name, value] {
            text.extend_from_slice(&length(word));
            text.extend_from_slice(word.as_bytes());
        }
    }
    text
}

#[test]
fn block_after_block_is_read_with_what_came_before() {
    let (mut client, mut reader) = (Client::new(), HeaderReader::new());
    for kind in ["error", "stdin", "stdout", "stderr", "resize"] {
        let headers = reader.read(&client.block(&[("streamtype", kind), ("Other", "x")])).unwrap();
        assert_eq!(headers.get("streamtype"), Some(kind));
        assert_eq!(headers.get("other"), Some("x"));
        assert_eq!(headers.get("another"), None);
    }
}

#[test]
fn empty_blocks_are_read_by_zlib_one_after_the_other() {
    let (mut writer, mut reader) = (HeaderWriter::default(), HeaderReader::new());
    for _ in 0..3 {
        assert_eq!(reader.read(&writer.empty_block()), Ok(Headers::default()));
    }
    let begin = HeaderWriter::default().empty_block();
    assert_eq!(u16::from_be_bytes([begin[0], begin[1]]) % 31, 0, "zlib's own check");
}

#[test]
fn a_bomb_is_refused_long_before_it_is_unpacked() {
    let mut client = Client::new();
    let block = client.compress(&vec![b'a'; 4 << 20]);
    assert!(block.len() < 16 << 10);
    assert_eq!(HeaderReader::new().read(&block), Err(HeaderError::TooLarge));
}

#[test]
fn what_is_no_block_is_refused() {
    assert_eq!(HeaderReader::new().read(b"garbage, not zlib"), Err(HeaderError::Compression));
    for text in [&[][..], &[0, 0, 0], &[0, 0, 0, 1], &[0, 0, 0, 1, 0, 0, 0, 9, b'x'], &[0xff; 4]] {
        let block = Client::new().compress(text);
        assert_eq!(HeaderReader::new().read(&block), Err(HeaderError::Malformed), "{text:?}");
    }
}

proptest! {
    #[test]
    fn whatever_a_client_says_is_understood(
        blocks in prop::collection::vec(
            prop::collection::vec(("[a-z-]{1,20}", "[ -~]{0,200}"), 0..6), 1..6),
    ) {
        let (mut client, mut reader) = (Client::new(), HeaderReader::new());
        for block in blocks {
            let pairs: Vec<_> = block.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let headers = reader.read(&client.block(&pairs)).unwrap();
            prop_assert_eq!(headers.0, block);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = HeaderReader::new().read(&bytes);
        let _ = parse(&bytes);
    }
}
