//! Reads the configuration: the file, its drop-ins in the order of their names, then the flags.
//!
//! Each file is checked alone, while its spans are at hand, so that an error names the right
//! drop-in and line. Then the files are merged key by key; the later wins, and a list replaces.
//! No key depends on another (but a TLS key on its certificate, which the start finds out), so what was
//! right alone is right together.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::Config;
use super::unknown::{Warning, nearest};
use crate::args::Args;

const DEFAULT_FILE: &str = "/etc/cria/cria.toml";
const DEFAULT_DROP_INS: &str = "/etc/cria/cria.toml.d";

/// Why there is no configuration to start with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration")]
    Read(#[source] io::Error),
    #[error("{}:{line}: {reason}", file.display())]
    Syntax { file: PathBuf, line: usize, reason: String },
    #[error("{}:{line}: {key}: {reason}", file.display())]
    Value { file: PathBuf, line: usize, key: String, reason: String },
}

/// What files and flags set, and where.
#[derive(Debug)]
pub(crate) struct Sources {
    /// By key with its tables (`runtime.monitor`); what is not here is at its default.
    settings: BTreeMap<String, Setting>,
    pub(crate) warnings: Vec<Warning>,
}

#[derive(Debug)]
struct Setting {
    value: Value,
    origin: Origin,
}

/// Who set a key last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Line { file: PathBuf, line: usize },
    Flag,
}

impl Sources {
    pub(crate) fn read(args: &Args) -> Result<Self, ConfigError> {
        let mut sources = Self { settings: BTreeMap::new(), warnings: vec![] };
        for file in files(args).map_err(ConfigError::Read)? {
            let text = fs_err::read_to_string(&file).map_err(ConfigError::Read)?;
            sources.add(&file, &text)?;
        }
        for (key, value) in args.settings() {
            sources.settings.insert(key.to_owned(), Setting { value, origin: Origin::Flag });
        }
        Ok(sources)
    }

    /// The configuration in effect.
    pub(crate) fn config(&self) -> Config {
        let mut table = Table::new();
        for (key, setting) in &self.settings {
            insert(&mut table, key, setting.value.clone());
        }
        table.try_into().expect("each value was read alone, and no key depends on another")
    }

    /// The configuration in effect as a file of its own; each key that is not at its default says
    /// who set it.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        self.render_table(&every_key_of(self.config()), "", &mut text);
        text
    }

    fn render_table(&self, table: &Table, prefix: &str, text: &mut String) {
        use fmt::Write as _;
        const INFALLIBLE: &str = "a string takes whatever is written";

        for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
            write!(text, "{key} = {value}").expect(INFALLIBLE);
            if let Some(setting) = self.settings.get(&format!("{prefix}{key}")) {
                write!(text, "  # {}", setting.origin).expect(INFALLIBLE);
            }
            text.push('\n');
        }
        for (key, value) in table {
            if let Value::Table(inner) = value {
                write!(text, "\n[{prefix}{key}]\n").expect(INFALLIBLE);
                self.render_table(inner, &format!("{prefix}{key}."), text);
            }
        }
    }

    fn add(&mut self, file: &Path, text: &str) -> Result<(), ConfigError> {
        let spanned = DeTable::parse(text).map_err(|error| syntax(file, text, &error))?;
        if let Err(error) = Config::deserialize(toml::Deserializer::from(spanned.clone())) {
            return Err(wrong_value(file, text, spanned.get_ref(), &error));
        }
        let values: Table = toml::from_str(text).map_err(|error| syntax(file, text, &error))?;
        let known = every_key_of(Config::default());
        let before = self.warnings.len();
        self.merge(&Reading { file, text, known: &known }, spanned.get_ref(), &values, "");
        self.warnings[before..].sort_by_key(|warning| warning.line);
        Ok(())
    }

    fn merge(&mut self, reading: &Reading, spans: &DeTable, values: &Table, prefix: &str) {
        for (name, span) in spans {
            let key = format!("{prefix}{}", name.get_ref());
            let line = line_of(reading.text, name.span().start);
            let value = values.get(name.get_ref().as_ref());
            match (look_up(reading.known, &key), span.get_ref(), value) {
                (Some(Value::Table(_)), DeValue::Table(spans), Some(Value::Table(values))) => {
                    self.merge(reading, spans, values, &format!("{key}."));
                }
                (Some(_), _, Some(value)) => {
                    let origin = Origin::Line { file: reading.file.to_owned(), line };
                    self.settings.insert(key, Setting { value: value.clone(), origin });
                }
                (None, _, _) | (_, _, None) => self.warnings.push(reading.unknown(key, line)),
            }
        }
    }
}

/// A file while it is merged.
struct Reading<'a> {
    file: &'a Path,
    text: &'a str,
    known: &'a Table,
}

impl Reading<'_> {
    fn unknown(&self, key: String, line: usize) -> Warning {
        let known = paths(self.known, "");
        let nearest = nearest(&key, known.iter().map(String::as_str)).to_owned();
        Warning { file: self.file.to_owned(), line, key, nearest }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(formatter, "{}:{line}", file.display()),
            Self::Flag => formatter.write_str("the command line"),
        }
    }
}

/// The files to read, in order. Only what the command line names must be there.
fn files(args: &Args) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    match &args.config {
        Some(file) => files.push(file.clone()),
        None if Path::new(DEFAULT_FILE).try_exists()? => files.push(DEFAULT_FILE.into()),
        None => {}
    }
    let directory = args.config_dir.as_deref();
    match fs_err::read_dir(directory.unwrap_or(Path::new(DEFAULT_DROP_INS))) {
        Ok(entries) => files.extend(drop_ins(entries)?),
        Err(error) if directory.is_none() && error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(files)
}

fn drop_ins(entries: fs_err::ReadDir) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `config` as a table that has every key, also those that are not set.
fn every_key_of(config: Config) -> Table {
    Table::try_from(config).expect("every key can be written as TOML")
}

/// `new` with the values that `current` has of `keys`, and which of them `new` had otherwise.
pub(super) fn keep(
    new: &Config,
    current: &Config,
    keys: &[&'static str],
) -> (Config, Vec<&'static str>) {
    let mut table = every_key_of(new.clone());
    let current = every_key_of(current.clone());
    let mut differed = vec![];
    for key in keys {
        let value = look_up(&current, key).expect("a key of the configuration");
        if look_up(&table, key) != Some(value) {
            insert(&mut table, key, value.clone());
            differed.push(*key);
        }
    }
    (table.try_into().expect("each value was in a configuration"), differed)
}

fn look_up<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((name, rest)) => look_up(table.get(name)?.as_table()?, rest),
        None => table.get(key),
    }
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((name, rest)) => {
            let inner = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
            let inner = inner.as_table_mut().expect("only known keys are inserted");
            insert(inner, rest, value);
        }
        None => drop(table.insert(key.to_owned(), value)),
    }
}

/// Every key of `table` and of those within, with its tables.
fn paths(table: &Table, prefix: &str) -> Vec<String> {
    let mut all = vec![];
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        if let Value::Table(inner) = value {
            all.extend(paths(inner, &format!("{key}.")));
        }
        all.push(key);
    }
    all
}

fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = line_of(text, error.span().map_or(0, |span| span.start));
    ConfigError::Syntax { file: file.to_owned(), line, reason: reason(error) }
}

fn wrong_value(file: &Path, text: &str, table: &DeTable, error: &toml::de::Error) -> ConfigError {
    let Some(span) = error.span() else {
        return syntax(file, text, error);
    };
    ConfigError::Value {
        file: file.to_owned(),
        line: line_of(text, span.start),
        key: key_at(table, &span).join("."),
        reason: reason(error),
    }
}

/// On one line, as it stands in a log.
fn reason(error: &toml::de::Error) -> String {
    error.message().lines().collect::<Vec<_>>().join(" ")
}

/// The key whose value covers `span`, with its tables.
fn key_at(table: &DeTable, span: &Range<usize>) -> Vec<String> {
    for (name, value) in table {
        if let DeValue::Table(inner) = value.get_ref() {
            // A table's own span is its header's, so what is below it has to be looked at anyway.
            let found = key_at(inner, span);
            if !found.is_empty() {
                return [vec![name.get_ref().to_string()], found].concat();
            }
        }
        if covers(value, span) || name.span() == *span {
            return vec![name.get_ref().to_string()];
        }
    }
    vec![]
}

fn covers(value: &Spanned<DeValue>, span: &Range<usize>) -> bool {
    value.span().start <= span.start && span.end <= value.span().end
}

/// Counted from one.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
