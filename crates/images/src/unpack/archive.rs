//! The members of a tar archive, one after the other.
//!
//! Headers are the `tar` crate's to parse. Its iterator is not used: it ends a PAX value at the
//! first newline, which may well be a byte of a file capability, and it reads extensions of any
//! size into memory. What formats leave open is settled as Go's archive/tar does, with which most
//! images are made.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::attributes::malformed;
use super::sparse::Sparse;

const BLOCK: u64 = 512;
/// Most bytes of one extension, as in Go's archive/tar. The kernel's limits on names and attributes
/// are far below.
const LARGEST_EXTENSION: u64 = 1 << 20;
/// Most PAX records of one member. Each takes many times more memory than its least of five bytes;
/// an extension of sparse maps, which have most, holds half as many.
const MOST_RECORDS: usize = 1 << 16;
/// Most numbers in the map of a sparse file of the old format.
const MOST_NUMBERS: usize = 1 << 19;

/// A PAX record: a key and what it is set to.
pub(crate) type Record = (Vec<u8>, Vec<u8>);

/// What an archive says of one member. Its data is read from the [`Members`].
pub(crate) struct Member {
    pub(crate) header: Header,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) records: Vec<Record>,
    /// How many bytes of data follow.
    pub(crate) size: u64,
    pub(crate) sparse: Option<Sparse>,
}

/// Reads an archive. As a reader, it is the data of the member that came last.
pub(crate) struct Members<R> {
    archive: R,
    /// Data of the current member not yet read.
    unread: u64,
    padding: u64,
}

/// Extensions that came before the header they speak of.
#[derive(Default)]
struct Extensions {
    records: Vec<Record>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Members<R> {
    pub(crate) fn new(archive: R) -> Self {
        Self { archive, unread: 0, padding: 0 }
    }

    /// The next member; none at the archive's end mark, or where the stream ends between two.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extensions = Extensions::default();
        while let Some(header) = self.header()? {
            match header.entry_type() {
                EntryType::XHeader => extensions.records = records(&self.extension(&header)?)?,
                EntryType::GNULongName => extensions.name = Some(self.long_name(&header)?),
                EntryType::GNULongLink => extensions.link = Some(self.long_name(&header)?),
                // For the whole archive: comments, in practice.
                EntryType::XGlobalHeader => drop(self.extension(&header)?),
                _ => return self.member(header, extensions).map(Some),
            }
        }
        Ok(None)
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        if self.skip(self.unread)? < self.unread {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // umoci's archives end with the last member's data.
        if self.skip(self.padding)? < self.padding {
            return Ok(None);
        }
        (self.unread, self.padding) = (0, 0);
        let mut header = Header::new_old();
        if !read_whole_or_nothing(&mut self.archive, header.as_mut_bytes())? {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The checksum counts itself as spaces.
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..]);
        if header.cksum()? != expected {
            return Err(malformed("header checksum"));
        }
        Ok(Some(header))
    }

    /// Passes over `length` bytes; how many there were.
    fn skip(&mut self, length: u64) -> io::Result<u64> {
        io::copy(&mut self.archive.by_ref().take(length), &mut io::sink())
    }

    fn extension(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.entry_size()?;
        if size > LARGEST_EXTENSION {
            return Err(malformed("extension header, too large"));
        }
        self.begin(size);
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(content)
    }

    fn long_name(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let mut name = self.extension(header)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn member(&mut self, header: Header, extensions: Extensions) -> io::Result<Member> {
        let Extensions { records, name, link } = extensions;
        let set = |key: &[u8]| record(&records, key).map(<[u8]>::to_vec);
        let own_link = || header.link_name_bytes().unwrap_or_default().into_owned();
        let name = name.or_else(|| set(b"path"));
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = link.or_else(|| set(b"linkpath")).unwrap_or_else(own_link);
        let size = match record(&records, b"size") {
            _ if !has_data(header.entry_type()) => 0,
            Some(size) => decimal(size)?,
            None => header.entry_size()?,
        };
        let sparse = match header.entry_type() {
            EntryType::GNUSparse => Some(self.gnu_sparse(&header)?),
            _ => Sparse::from_records(&records)?,
        };
        self.begin(size);
        let name = sparse.as_ref().and_then(|sparse| sparse.name.clone()).unwrap_or(name);
        Ok(Member { header, name, link, records, size, sparse })
    }

    /// The map of the old format: in the header, and in blocks after it if it is long.
    fn gnu_sparse(&mut self, header: &Header) -> io::Result<Sparse> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("sparse header"))?;
        let mut numbers = Vec::new();
        let mut add = |extents: &[GnuSparseHeader]| {
            for extent in extents.iter().filter(|extent| !extent.is_empty()) {
                numbers.extend([extent.offset()?, extent.length()?]);
            }
            Ok::<_, io::Error>(numbers.len())
        };
        add(&gnu.sparse)?;
        let mut is_extended = gnu.is_extended();
        while is_extended {
            let mut more = GnuExtSparseHeader::new();
            self.archive.read_exact(more.as_mut_bytes())?;
            if add(more.sparse())? > MOST_NUMBERS {
                return Err(malformed("sparse map, too large"));
            }
            is_extended = more.is_extended();
        }
        Sparse::new(&numbers, gnu.real_size()?)
    }

    fn begin(&mut self, size: u64) {
        self.unread = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.archive.by_ref().take(self.unread).read(buffer)?;
        self.unread -= length as u64;
        Ok(length)
    }
}

/// Whether data may follow a header, whatever size it tells.
fn has_data(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

/// What the last record of this key says; an empty one takes an earlier one back.
pub(crate) fn record<'a>(records: &'a [Record], key: &[u8]) -> Option<&'a [u8]> {
    let last = records.iter().rev().find(|(known, _)| known == key);
    last.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
}

pub(crate) fn decimal(digits: &[u8]) -> io::Result<u64> {
    let number = str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| malformed("number in a PAX record"))
}

/// PAX records: `length key=value\n`, the length in decimal and of the whole record. A value may
/// hold any byte.
fn records(mut content: &[u8]) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    // Some writers fill up with zeros.
    while content.first().is_some_and(|byte| *byte != 0) {
        let (one, rest) = split_record(content).ok_or_else(|| malformed("PAX record"))?;
        if records.len() == MOST_RECORDS {
            return Err(malformed("PAX extension, too many records"));
        }
        records.push(one);
        content = rest;
    }
    Ok(records)
}

fn split_record(content: &[u8]) -> Option<(Record, &[u8])> {
    let space = content.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&content[..space]).ok()?.parse().ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty()).then(|| ((key.to_vec(), value.to_vec()), rest))
}

fn read_whole_or_nothing(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_hold_any_byte_and_no_lie_about_their_length() {
        let read = |text: &[u8]| records(text).ok();
        let one = |key: &[u8], value: &[u8]| Some(vec![(key.to_vec(), value.to_vec())]);
        assert_eq!(read(b"6 a=b\n"), one(b"a", b"b"));
        assert_eq!(read(b"8 a=\n=\n\n"), one(b"a", b"\n=\n"));
        assert_eq!(read(b"5 a=\n\0\0"), one(b"a", b""));
        assert_eq!(read(b""), Some(vec![]));
        for wrong in [
            &b"7 a=b\n"[..],
            b"5 a=b\n",
            b"6 a=bx",
            b"4 =\n",
            b"4 a\n",
            b"1 a=b\n",
            b"a=b\n",
            b"99999999999999999999 a=b\n",
            b"-6 a=b\n",
            b" a=b\n",
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn extensions_are_held_to_their_size_and_their_number_of_records() {
        let record = &b"6 a=b\n"[..];
        let long = |size: usize| {
            let value = size - "1000000 a=\n".len();
            format!("{size} a={}\n", "x".repeat(value)).into_bytes()
        };
        for (content, is_read) in [
            (long(1 << 20), true),
            ([&long((1 << 20) - 1)[..], b"\0\0"].concat(), false),
            (record.repeat(1 << 16), true),
            (record.repeat((1 << 16) + 1), false),
        ] {
            let mut archive = Vec::new();
            for (kind, content) in [(b'x', &content[..]), (b'0', b"")] {
                let mut header = Header::new_ustar();
                header.set_path("f").unwrap();
                header.as_mut_bytes()[156] = kind;
                header.set_size(content.len() as u64);
                header.set_cksum();
                archive.extend_from_slice(header.as_bytes());
                archive.extend_from_slice(content);
                archive.resize(archive.len().next_multiple_of(512), 0);
            }
            let read = Members::new(&archive[..]).next();
            assert_eq!(read.is_ok(), is_read, "{} bytes", content.len());
        }
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_takes_back() {
        let records = records(b"6 a=1\n6 a=2\n6 b=1\n5 b=\n").unwrap();
        assert_eq!(record(&records, b"a"), Some(&b"2"[..]));
        assert_eq!(record(&records, b"b"), None);
        assert_eq!(record(&records, b"c"), None);
    }

    #[test]
    fn an_archive_may_end_with_its_last_members_data_and_nowhere_else() {
        let mut header = Header::new_gnu();
        header.set_path("file").unwrap();
        header.set_size(5);
        header.set_cksum();
        let whole = [&header.as_bytes()[..], b"hello", &[0; 507]].concat();
        for (length, is_whole) in [
            (0, true),
            (100, false),
            (512, false),
            (516, false),
            (517, true),
            (600, true),
            (1024, true),
        ] {
            let mut members = Members::new(&whole[..length]);
            let ended = loop {
                match members.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            assert_eq!(ended, is_whole, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            size in any::<u64>(),
            kind in prop_oneof![Just(b'x'), Just(b'L'), Just(b'S'), Just(b'0'), Just(b'g')],
        ) {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[156] = kind;
            header.set_size(size);
            header.set_cksum();
            let archive = [&header.as_bytes()[..], &bytes].concat();
            for archive in [&bytes[..], &archive] {
                let mut members = Members::new(archive);
                while let Ok(Some(_)) = members.next() {}
            }
            let _ = records(&bytes);
        }
    }
}
