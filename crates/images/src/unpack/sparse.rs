//! Sparse files (GNU tar manual, "Storing Sparse Files"): the old GNU format, whose map the archive's
//! reader delivers, and 0.0, 0.1 and 1.0 in PAX records.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::archive::{Record, decimal};
use super::attributes::malformed;

const PREFIX: &[u8] = b"GNU.sparse.";
const BLOCK: usize = 512;
/// Most extents of one file; each takes 16 bytes here. GNU tar writes one per hole.
const MOST_EXTENTS: usize = 1 << 20;

/// How a sparse file is laid out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Sparse {
    /// The file's true name; what the header calls it is for tools that know no sparse files.
    pub(crate) name: Option<Vec<u8>>,
    real_size: u64,
    /// Offset and length of each run of data; none if they are listed before the data (1.0).
    map: Option<Vec<(u64, u64)>>,
}

impl Sparse {
    /// A file of `real_size` bytes with data at pairs of offset and length.
    pub(crate) fn new(numbers: &[u64], real_size: u64) -> io::Result<Self> {
        Ok(Self { name: None, real_size, map: Some(extents(numbers, real_size)?) })
    }

    /// Reads the PAX records; none if the file is not sparse.
    pub(crate) fn from_records(records: &[Record]) -> io::Result<Option<Self>> {
        let prefixed =
            |(key, value): &'_ Record| Some((key.strip_prefix(PREFIX)?.to_vec(), value.clone()));
        let records: Vec<Record> = records.iter().filter_map(prefixed).collect();
        if records.is_empty() {
            return Ok(None);
        }
        let mut sparse = Self::default();
        let mut numbers = Vec::new();
        let mut listed_before_data = false;
        for (key, value) in &records {
            match key.as_slice() {
                b"name" => sparse.name = Some(value.clone()),
                b"realsize" | b"size" => sparse.real_size = decimal(value)?,
                b"major" => listed_before_data = value == b"1",
                // 0.0 has a pair of records for each extent, 0.1 one list of them.
                b"offset" | b"numbytes" => numbers.push(decimal(value)?),
                b"map" => {
                    numbers = value
                        .split(|byte| *byte == b',')
                        .filter(|number| !number.is_empty())
                        .map(decimal)
                        .collect::<io::Result<_>>()?;
                }
                _ => {}
            }
        }
        if !listed_before_data {
            sparse.map = Some(extents(&numbers, sparse.real_size)?);
        }
        Ok(Some(sparse))
    }

    /// Writes the file: its holes stay holes.
    pub(crate) fn write(self, data: &mut impl Read, file: &File) -> io::Result<()> {
        let map = match self.map {
            Some(map) => map,
            None => extents(&read_map(data)?, self.real_size)?,
        };
        file.set_len(self.real_size)?;
        let mut buffer = vec![0; 64 << 10];
        for (mut offset, mut length) in map {
            while length > 0 {
                let part = usize::try_from(length).map_or(buffer.len(), |l| l.min(buffer.len()));
                data.read_exact(&mut buffer[..part])?;
                file.write_all_at(&buffer[..part], offset)?;
                offset += part as u64;
                length -= part as u64;
            }
        }
        Ok(())
    }
}

/// The map of format 1.0: decimal lines, filled up with zeros to whole blocks.
fn read_map(data: &mut impl Read) -> io::Result<Vec<u64>> {
    let mut block = [0; BLOCK];
    let mut digits = Vec::new();
    let mut numbers = Vec::new();
    let mut wanted = None;
    loop {
        data.read_exact(&mut block)?;
        for byte in block {
            if byte != b'\n' {
                digits.push(byte);
                if digits.len() > 20 {
                    return Err(malformed("sparse map"));
                }
                continue;
            }
            let value = decimal(&digits)?;
            digits.clear();
            match wanted {
                None => {
                    let count = usize::try_from(value).map_err(|_| malformed("sparse map"))?;
                    if count > MOST_EXTENTS {
                        return Err(malformed("sparse map"));
                    }
                    wanted = Some(count * 2);
                }
                Some(_) => numbers.push(value),
            }
            if wanted == Some(numbers.len()) {
                return Ok(numbers);
            }
        }
    }
}

fn extents(numbers: &[u64], real_size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut end = 0;
    let mut extents = Vec::new();
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MOST_EXTENTS {
        return Err(malformed("sparse map"));
    }
    for pair in numbers.chunks_exact(2) {
        let (offset, length) = (pair[0], pair[1]);
        let next = offset.checked_add(length).filter(|next| offset >= end && *next <= real_size);
        end = next.ok_or_else(|| malformed("sparse map"))?;
        extents.push((offset, length));
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let record = |(key, value): &(&str, &str)| {
            (format!("GNU.sparse.{key}").into_bytes(), value.as_bytes().to_vec())
        };
        pairs.iter().map(record).collect()
    }

    #[test]
    fn all_three_formats_are_read() {
        let map = Some(vec![(0, 10), (1000, 24)]);
        for (version, fields, data) in [
            (
                "0.0",
                records(&[
                    ("size", "2000"),
                    ("numblocks", "2"),
                    ("offset", "0"),
                    ("numbytes", "10"),
                    ("offset", "1000"),
                    ("numbytes", "24"),
                ]),
                "",
            ),
            ("0.1", records(&[("size", "2000"), ("map", "0,10,1000,24")]), ""),
            (
                "1.0",
                records(&[("major", "1"), ("minor", "0"), ("realsize", "2000")]),
                "2\n0\n10\n1000\n24\n",
            ),
        ] {
            let sparse = Sparse::from_records(&fields).unwrap().unwrap();
            assert_eq!(sparse.real_size, 2000, "{version}");
            if data.is_empty() {
                assert_eq!(sparse.map, map, "{version}");
            } else {
                let mut block = data.as_bytes().to_vec();
                block.resize(BLOCK, 0);
                let numbers = read_map(&mut block.as_slice()).unwrap();
                assert_eq!(Some(extents(&numbers, 2000).unwrap()), map, "{version}");
            }
        }
        assert_eq!(Sparse::from_records(&[]).unwrap(), None);
    }

    #[test]
    fn maps_that_overlap_or_exceed_the_file_are_refused() {
        for map in ["0,10,5,10", "0,3000", "10", "0,10,1990,11", "a,b", "18446744073709551615,2"] {
            let fields = records(&[("size", "2000"), ("map", map)]);
            assert!(Sparse::from_records(&fields).is_err(), "{map}");
        }
        let mut endless: &[u8] = &[b'1'; 4 * BLOCK];
        assert!(read_map(&mut endless).is_err());
        let mut many = b"99999999\n".to_vec();
        many.resize(BLOCK, 0);
        assert!(read_map(&mut many.as_slice()).is_err());
    }
}
