//! The CRI log format: `TIME stdout|stderr F|P text\n`. Pure.

/// A line longer than this is written in parts, all but the last tagged `P`.
pub(crate) const LINE_BYTES: usize = 16 << 10;
/// `2026-11-23T23:57:46.123456789Z stdout F `
pub(crate) const PREFIX_BYTES: usize = 40;
/// What a record has beside its text.
pub(crate) const OVERHEAD_BYTES: usize = PREFIX_BYTES + 1;
pub(crate) const TAG_AT: usize = PREFIX_BYTES - 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// The line goes on in the next record of its stream.
    Partial,
    Full,
}

/// The next record's text at the start of a stream's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: usize,
    /// Text and newline.
    pub(crate) consumed: usize,
    pub(crate) tag: Tag,
}

/// What can be written of `bytes` now: a complete line, or as much of one as a record holds.
pub(crate) fn next_piece(bytes: &[u8]) -> Option<Piece> {
    let window = &bytes[..bytes.len().min(LINE_BYTES + 1)];
    match crate::sys::find(b'\n', window) {
        Some(text) => Some(Piece { text, consumed: text + 1, tag: Tag::Full }),
        None if bytes.len() >= LINE_BYTES => {
            Some(Piece { text: LINE_BYTES, consumed: LINE_BYTES, tag: Tag::Partial })
        }
        None => None,
    }
}

/// What a record starts with.
pub(crate) struct Prefix([u8; PREFIX_BYTES]);

impl Prefix {
    /// `stream` is `stdout` or `stderr`. Times outside the years 0 to 9999 do not occur.
    pub(crate) fn new(stream: &[u8; 6], seconds: i64, nanoseconds: u32) -> Self {
        let mut prefix = *b"0000-00-00T00:00:00.000000000Z stdxxx F ";
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        for (at, width, value) in [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, second / 3600),
            (14, 2, second / 60 % 60),
            (17, 2, second % 60),
            (20, 9, i64::from(nanoseconds)),
        ] {
            digits(&mut prefix[at..at + width], value);
        }
        prefix[31..37].copy_from_slice(stream);
        Self(prefix)
    }

    pub(crate) fn tagged(&mut self, tag: Tag) -> &[u8] {
        self.0[TAG_AT] = match tag {
            Tag::Partial => b'P',
            Tag::Full => b'F',
        };
        &self.0
    }
}

/// Days since 1970 as a date of the Gregorian calendar. The year is taken to start in March, so
/// that the odd day comes last: then months are runs of 153 days per five.
fn civil(days: i64) -> (i64, i64, i64) {
    let since_0000_march = days + 719_468;
    let era = since_0000_march.div_euclid(146_097);
    let day_of_era = since_0000_march.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn digits(field: &mut [u8], mut value: i64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value.rem_euclid(10)).unwrap_or(0);
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_as_the_kubelet_parses_them() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z stdout F "),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z stdout F "),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z stdout F "),
            (1_709_251_199, 5, "2024-02-29T23:59:59.000000005Z stdout F "),
            (1_709_251_200, 5, "2024-03-01T00:00:00.000000005Z stdout F "),
            (1_795_478_266, 123_456_789, "2026-11-23T23:57:46.123456789Z stdout F "),
            (4_102_444_799, 0, "2099-12-31T23:59:59.000000000Z stdout F "),
        ] {
            let mut prefix = Prefix::new(b"stdout", seconds, nanoseconds);
            assert_eq!(String::from_utf8_lossy(prefix.tagged(Tag::Full)), expected);
        }
        let mut prefix = Prefix::new(b"stderr", 0, 0);
        assert!(prefix.tagged(Tag::Partial).ends_with(b" stderr P "));
    }

    #[test]
    fn a_piece_is_a_line_or_what_a_record_holds() {
        let full = |text| Some(Piece { text, consumed: text + 1, tag: Tag::Full });
        let partial = Some(Piece { text: LINE_BYTES, consumed: LINE_BYTES, tag: Tag::Partial });
        let line = |length: usize, end: &[u8]| [&vec![b'x'; length], end].concat();
        for (bytes, expected) in [
            (line(0, b""), None),
            (line(0, b"\n"), full(0)),
            (line(3, b""), None),
            (line(3, b"\r\nmore\n"), full(4)),
            (line(1, b"\0\n"), full(2)),
            (line(LINE_BYTES - 1, b""), None),
            (line(LINE_BYTES - 1, b"\n"), full(LINE_BYTES - 1)),
            (line(LINE_BYTES, b""), partial),
            (line(LINE_BYTES, b"\n"), full(LINE_BYTES)),
            (line(LINE_BYTES + 1, b"\n"), partial),
            (line(2 * LINE_BYTES, b""), partial),
        ] {
            assert_eq!(next_piece(&bytes), expected, "{} bytes", bytes.len());
        }
    }
}
