//! The little of YAML that `registries.d` is written in: mappings by indentation, of plain or
//! quoted words. Anything else is refused with its line, so that nothing is taken for what it is
//! not. Pure.

/// A mapping in the order of the file.
pub(super) type Mapping = Vec<Entry>;

#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Word(String),
    Mapping(Mapping),
}

#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) line: usize,
    pub(super) reason: &'static str,
}

struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

pub(super) fn parse(text: &str) -> Result<Mapping, Refused> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let content = line.trim_start_matches(' ');
        let indent = line.len() - content.len();
        match content.trim_end() {
            "" | "---" if indent == 0 => {}
            comment if comment.is_empty() || comment.starts_with('#') => {}
            text if text.starts_with('\t') => {
                return Err(Refused { line: number, reason: "indented by a tab" });
            }
            text => lines.push(Line { number, indent, text }),
        }
    }
    let mut rest = lines.as_slice();
    let indent = rest.first().map_or(0, |line| line.indent);
    let mapping = mapping(&mut rest, indent)?;
    match rest.first() {
        Some(line) => Err(Refused { line: line.number, reason: "indented less than the first" }),
        None => Ok(mapping),
    }
}

/// The entries that are indented by exactly so much, with what is below them.
fn mapping(rest: &mut &[Line<'_>], indent: usize) -> Result<Mapping, Refused> {
    let mut entries = Mapping::new();
    while let Some((line, below)) = rest.split_first() {
        if line.indent < indent {
            break;
        }
        let refuse = |reason| Refused { line: line.number, reason };
        if line.indent > indent {
            return Err(refuse("indented more than its neighbours"));
        }
        let (key, after) = key(line.text).map_err(refuse)?;
        if entries.iter().any(|entry| entry.key == key) {
            return Err(refuse("written twice"));
        }
        *rest = below;
        let inner = rest.first().map_or(0, |next| next.indent);
        let value = match word(after).map_err(refuse)? {
            Some(word) => word,
            None if inner > indent => Value::Mapping(mapping(rest, inner)?),
            None => Value::Mapping(Mapping::new()),
        };
        entries.push(Entry { key, line: line.number, value });
    }
    Ok(entries)
}

/// The key before a colon that ends the line or has a space behind it, and what follows.
fn key(text: &str) -> Result<(String, &str), &'static str> {
    const NO_KEY: &str = "not \"key: value\"";
    if let Some((key, after)) = quoted(text)? {
        let after = after.trim_start().strip_prefix(':').ok_or(NO_KEY)?;
        return match after.is_empty() || after.starts_with(' ') {
            true => Ok((key, after)),
            false => Err(NO_KEY),
        };
    }
    is_plain(text)?;
    let is_end = |(at, _): &(usize, &str)| {
        let after = &text[at + 1..];
        after.is_empty() || after.starts_with(' ')
    };
    let (at, _) = text.match_indices(':').find(is_end).ok_or(NO_KEY)?;
    match text[..at].trim_end() {
        "" => Err(NO_KEY),
        key if key.contains(" #") => Err(NO_KEY),
        key => Ok((key.to_owned(), &text[at + 1..])),
    }
}

/// A value on its key's line; none if there is nothing but perhaps a comment.
fn word(text: &str) -> Result<Option<Value>, &'static str> {
    let text = text.trim();
    let is_comment = |rest: &str| rest.trim().is_empty() || rest.starts_with(" #");
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    if let Some(rest) = text.strip_prefix("{}") {
        return match is_comment(rest) {
            true => Ok(Some(Value::Mapping(Mapping::new()))),
            false => Err("more than a value"),
        };
    }
    if let Some((word, rest)) = quoted(text)? {
        return match is_comment(rest) {
            true => Ok(Some(Value::Word(word))),
            false => Err("more than a value"),
        };
    }
    is_plain(text)?;
    let plain = text.split_once(" #").map_or(text, |(plain, _)| plain).trim_end();
    match plain.contains(": ") || plain.ends_with(':') {
        true => Err("a mapping within a line"),
        false => Ok(Some(Value::Word(plain.to_owned()))),
    }
}

/// What is between quotes at the beginning, and what follows; none if there are no quotes.
fn quoted(text: &str) -> Result<Option<(String, &str)>, &'static str> {
    let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return Ok(None);
    };
    let (inner, rest) = text[1..].split_once(quote).ok_or("a quote that does not end")?;
    match inner.contains('\\') || rest.starts_with(quote) {
        true => Err("quotes within quotes are not read"),
        false => Ok(Some((inner.to_owned(), rest))),
    }
}

/// What begins so means something else in YAML.
fn is_plain(text: &str) -> Result<(), &'static str> {
    let is_special = text.starts_with(['[', ']', '{', '}', '&', '!', '|', '>', '%', '@', '`', ','])
        || text == "-"
        || text.starts_with("- ")
        || text.starts_with("? ")
        || text.starts_with("* ")
        || (text.starts_with('*') && !text.starts_with("*."));
    match is_special {
        true => Err("only mappings of plain words are read here"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(mapping: &Mapping) -> String {
        let entries = mapping.iter().map(|entry| match &entry.value {
            Value::Word(word) => format!("{}={word}", entry.key),
            Value::Mapping(inner) => format!("{}({})", entry.key, shown(inner)),
        });
        entries.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn mappings_are_read_by_their_indentation() {
        for (text, expected) in [
            ("", ""),
            ("# nothing\n\n---\n", ""),
            ("docker: {}\n", "docker()"),
            ("docker:\n", "docker()"),
            (
                "# where\ndefault-docker:\n  lookaside: file:///a # here\ndocker:\n\n    \
                 r.example:5000:\n        use-sigstore-attachments: true\n    \"q.example/a\":\n        \
                 lookaside: 'https://x:8080/s#1'\n    *.w.example:\n      sigstore: http://y\n",
                "default-docker(lookaside=file:///a) docker(r.example:5000(use-sigstore-attachments=true) \
                 q.example/a(lookaside=https://x:8080/s#1) *.w.example(sigstore=http://y))",
            ),
        ] {
            assert_eq!(shown(&parse(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_read_is_refused_with_its_line() {
        for (text, line) in [
            ("a:\n  b: c\n d: e\n", 3),
            ("  a: b\nc: d\n", 2),
            ("a: b\n  c: d\n", 2),
            ("a:\n\tb: c\n", 2),
            ("a\n", 1),
            ("a:b\n", 1),
            (": a\n", 1),
            ("a: [b]\n", 1),
            ("a: {b: c}\n", 1),
            ("- a: b\n", 1),
            ("a: &b c\n", 1),
            ("a: *b\n", 1),
            ("a: |\n  b\n", 1),
            ("a: \"b\n", 1),
            ("a: \"b\\n\"\n", 1),
            ("a: 'it''s'\n", 1),
            ("a: 'b' c\n", 1),
            ("a: b: c\n", 1),
            ("a: b\na: c\n", 2),
        ] {
            assert_eq!(parse(text).map_err(|refused| refused.line), Err(line), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ a\\-:#'\"*{}\n\t]{0,60}") {
            let _ = parse(&text);
        }
    }
}
