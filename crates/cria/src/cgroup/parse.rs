//! What cgroup files say. Pure; bytes in, numbers out.

/// v1 writes "unlimited" as the largest page count, in bytes: nothing real is near it.
const V1_UNLIMITED: u64 = 1 << 62;

/// Pressure stall information.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Psi {
    pub(crate) some: PsiLine,
    pub(crate) full: Option<PsiLine>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PsiLine {
    pub(crate) avg10: f64,
    pub(crate) avg60: f64,
    pub(crate) avg300: f64,
    pub(crate) total_us: u64,
}

/// A file that holds one number.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    decimal(text.trim_ascii())
}

/// A limit of either version: `None` if there is none.
pub(super) fn limit(text: &[u8]) -> Option<u64> {
    number(text).filter(|bytes| *bytes < V1_UNLIMITED)
}

/// The values of `keys` in a file of `key value` lines.
pub(super) fn fields<const N: usize>(text: &[u8], keys: [&str; N]) -> [Option<u64>; N] {
    let mut found = [None; N];
    for line in text.split(|byte| *byte == b'\n') {
        let Some(space) = line.iter().position(|byte| *byte == b' ') else { continue };
        if let Some(index) = keys.iter().position(|key| key.as_bytes() == &line[..space]) {
            found[index] = decimal(&line[space + 1..]);
        }
    }
    found
}

/// A file of numbers, one a line, such as `cgroup.procs`.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = u64> {
    text.split(|byte| *byte == b'\n').filter_map(decimal)
}

/// A `*.pressure` file. `full` is absent for the processor on some kernels.
pub(super) fn pressure(text: &[u8]) -> Option<Psi> {
    let text = str::from_utf8(text).ok()?;
    let line = |name: &str| text.lines().find_map(|line| pressure_line(line.strip_prefix(name)?));
    Some(Psi { some: line("some ")?, full: line("full ") })
}

fn pressure_line(line: &str) -> Option<PsiLine> {
    let value = |key: &str| {
        line.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    };
    let average = |key| value(key)?.parse().ok();
    Some(PsiLine {
        avg10: average("avg10")?,
        avg60: average("avg60")?,
        avg300: average("avg300")?,
        total_us: value("total")?.parse().ok()?,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_limits() {
        for (text, as_number, as_limit) in [
            ("4096\n", Some(4096), Some(4096)),
            ("0", Some(0), Some(0)),
            ("max\n", None, None),
            ("9223372036854771712\n", Some(9_223_372_036_854_771_712), None),
            ("", None, None),
            ("-1\n", None, None),
        ] {
            assert_eq!(number(text.as_bytes()), as_number, "{text}");
            assert_eq!(limit(text.as_bytes()), as_limit, "{text}");
        }
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = b"inactive_file 7\ntotal_inactive_file 9\nfile 3\nbroken\nrss x\n";
        let found = fields(text, ["total_inactive_file", "file", "inactive_file", "rss", "none"]);
        assert_eq!(found, [Some(9), Some(3), Some(7), None, None]);
    }

    #[test]
    fn pressure_is_read_with_and_without_its_full_line() {
        let some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=123456\n";
        let line = PsiLine { avg10: 1.5, avg60: 0.25, avg300: 0.0, total_us: 123_456 };
        assert_eq!(pressure(some.as_bytes()), Some(Psi { some: line.clone(), full: None }));
        let both = format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=9\n");
        let full = PsiLine { avg10: 0.0, avg60: 0.0, avg300: 0.0, total_us: 9 };
        assert_eq!(pressure(both.as_bytes()), Some(Psi { some: line, full: Some(full) }));
        for broken in ["", "full avg10=0", "some avg10=0.00 avg60=0.00 total=9\n"] {
            assert_eq!(pressure(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn a_list_of_processes() {
        assert_eq!(lines(b"1\n22\n333\n").collect::<Vec<_>>(), [1, 22, 333]);
        assert_eq!(lines(b"").count(), 0);
    }
}
