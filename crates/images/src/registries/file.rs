//! `registries.conf` as it is written: read, checked, and the files together.
//!
//! Read are `unqualified-search-registries`, `credential-helpers`, `[aliases]` and `[[registry]]` with
//! its mirrors; keys meant for other tools are left alone.

use std::collections::BTreeMap;
use std::io;
use std::iter;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Mirror, Registries, Rule, Serves};
use crate::auth;
use crate::error::{Error, config};
use crate::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<Spanned<String>>>,
    credential_helpers: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    aliases: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    registry: Vec<Spanned<RuleTable>>,
    /// Version 1's table.
    registries: Option<Spanned<toml::Table>>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[derive(Default)]
struct RuleTable {
    prefix: Option<Spanned<String>>,
    location: Option<Spanned<String>>,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<MirrorTable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorTable {
    location: Spanned<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: Option<Serves>,
}

impl Registries {
    /// Reads the file at `path` and those of the directory beside it; no path, no rules. A wrong
    /// value is an error that names file, line and key.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let mut registries = Self::default();
        let Some(path) = path else { return Ok(registries) };
        let failed = |error| Error::io("read registries.conf", error);
        for (number, path) in
            iter::once(path.to_owned()).chain(drop_ins(path).map_err(failed)?).enumerate()
        {
            match fs_err::read_to_string(&path) {
                Ok(text) => registries.merge(Self::parse(&path, &text)?),
                // The main file may be missing.
                Err(error) if number == 0 && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(registries)
    }

    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let wrong = |offset, reason: &str| config(path, text, offset, reason);
        let file: File = toml::from_str(text)
            .map_err(|error| wrong(error.span().map_or(0, |span| span.start), error.message()))?;
        if let Some(table) = file.registries {
            return Err(wrong(table.span().start, "version 1 of registries.conf is not supported"));
        }
        let location = |registry| checked(registry, &wrong);
        let search = file.unqualified_search_registries.map(|all| all.into_iter().map(location));
        let search = search.map(Iterator::collect).transpose()?;
        let named = |helper: Spanned<String>| match helper.get_ref() {
            name if auth::is_helper(name) => Ok(helper.into_inner()),
            _ => Err(wrong(helper.span().start, "is not the name of a credential helper")),
        };
        let credential_helpers = file.credential_helpers.map(|all| all.into_iter().map(named));
        let credential_helpers = credential_helpers.map(Iterator::collect).transpose()?;
        let aliases = file.aliases.into_iter().map(|(short, full)| alias(short, full, &wrong));
        let aliases = aliases.collect::<Result<_, _>>()?;
        let mut rules = Vec::new();
        for table in file.registry {
            rules.push(rule(table, &wrong)?);
        }
        Ok(Self { search, credential_helpers, aliases, rules, ..Self::default() })
    }

    /// Takes in a later file: its rules replace those of the same prefix, its aliases those of the same
    /// name, its search registries and credential helpers all of them, also by none.
    fn merge(&mut self, later: Self) {
        if later.search.is_some() {
            self.search = later.search;
        }
        if later.credential_helpers.is_some() {
            self.credential_helpers = later.credential_helpers;
        }
        self.aliases.extend(later.aliases);
        self.rules.retain(|rule| later.rules.iter().all(|new| new.prefix != rule.prefix));
        self.rules.extend(later.rules);
    }
}

/// The `*.conf` files of the directory beside `path`, by name.
fn drop_ins(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let entries = match fs_err::read_dir(PathBuf::from(directory)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let mut paths: Vec<_> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "conf")).collect();
    paths.sort();
    Ok(paths)
}

fn rule(table: Spanned<RuleTable>, wrong: &impl Fn(usize, &str) -> Error) -> Result<Rule, Error> {
    let start = table.span().start;
    let table = table.into_inner();
    let location = table.location.map(|location| checked(location, wrong)).transpose()?;
    let prefix = match table.prefix.filter(|prefix| !prefix.get_ref().is_empty()) {
        Some(prefix) if prefix.get_ref().starts_with("*.") => {
            let span = prefix.span();
            let prefix = prefix.into_inner();
            if prefix.contains('/') || prefix[1..].contains('*') {
                return Err(wrong(span.start, "a wildcard prefix is *. and a host name"));
            }
            prefix
        }
        Some(prefix) => checked(prefix, wrong)?,
        None => location.clone().ok_or_else(|| wrong(start, "needs a prefix or a location"))?,
    };
    let mut mirrors = Vec::new();
    for mirror in table.mirror {
        let by_rule = if table.mirror_by_digest_only { Serves::DigestOnly } else { Serves::All };
        mirrors.push(Mirror {
            location: checked(mirror.location, wrong)?,
            insecure: mirror.insecure,
            serves: mirror.pull_from_mirror.unwrap_or(by_rule),
        });
    }
    Ok(Rule { prefix, location, insecure: table.insecure, blocked: table.blocked, mirrors })
}

/// A short name and the full one that it stands for; an empty one takes back an earlier file's.
fn alias(
    short: String,
    full: Spanned<String>,
    wrong: &impl Fn(usize, &str) -> Error,
) -> Result<(String, Option<String>), Error> {
    let start = full.span().start;
    let is_name =
        |text: &str| Reference::name_of(text) == text && Reference::parse(text, None).is_ok();
    if !is_name(&short) || Reference::is_qualified(&short) {
        return Err(wrong(start, "an alias is for a name without registry, tag and digest"));
    }
    let full = full.into_inner();
    if full.is_empty() {
        return Ok((short, None));
    }
    if !is_name(&full) || !Reference::is_qualified(&full) {
        return Err(wrong(
            start,
            "an alias stands for registry/repository, without tag and digest",
        ));
    }
    Ok((short, Some(full)))
}

/// `host[:port][/path]`, without trailing slashes.
fn checked(value: Spanned<String>, wrong: &impl Fn(usize, &str) -> Error) -> Result<String, Error> {
    let start = value.span().start;
    let location = value.into_inner();
    let location = location.trim_end_matches('/');
    if location.is_empty() {
        return Err(wrong(start, "must not be empty"));
    }
    if location.contains("://") {
        return Err(wrong(start, "must be host[:port][/path], without a scheme"));
    }
    if location.starts_with('/') || location.contains(char::is_whitespace) {
        return Err(wrong(start, "must be host[:port][/path]"));
    }
    Ok(location.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::asked;
    use super::*;

    fn parse(text: &str) -> Result<Registries, Error> {
        Registries::parse(Path::new("r.conf"), text)
    }

    #[test]
    fn a_file_that_is_missing_has_no_rules_and_one_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Registries::load(Some(&folder.path().join("none"))).unwrap().rules.is_empty());
        assert!(Registries::load(Some(folder.path())).is_err());
    }

    #[test]
    fn later_files_count_over_earlier_ones_prefix_by_prefix() {
        let directory = tempfile::tempdir().unwrap();
        let main = directory.path().join("registries.conf");
        let write = |name: &str, text: &str| {
            fs_err::create_dir_all(directory.path().join("registries.conf.d")).unwrap();
            fs_err::write(directory.path().join(name), text).unwrap();
        };
        let rule = |prefix: &str, location: &str| {
            format!("[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{location}\"\n")
        };
        let all =
            format!("{}{}", rule("a.example", "one.example"), rule("b.example", "one.example"));
        write(
            "registries.conf",
            &format!(
                "unqualified-search-registries = [\"s.example\"]\n\
                 credential-helpers = [\"one\", \"containers-auth.json\"]\n\
                 [aliases]\nalias = \"a.example/alias\"\n{all}"
            ),
        );
        write("registries.conf.d/20-b.conf", &rule("b.example", "three.example"));
        write("registries.conf.d/10-b.conf", &rule("b.example", "two.example"));
        write("registries.conf.d/ignored", "not TOML");
        let registries = Registries::load(Some(&main)).unwrap();
        for (name, endpoint) in [
            ("a.example/x", "one.example/x"),
            ("b.example/x", "three.example/x"),
            ("short", "s.example/short"),
        ] {
            assert_eq!(asked(&registries, name), [endpoint], "{name}");
        }
        assert_eq!(registries.credential_helpers(), ["one", "containers-auth.json"]);
        write("registries.conf.d/20-c.conf", "credential-helpers = [\"two\"]");
        assert_eq!(Registries::load(Some(&main)).unwrap().credential_helpers(), ["two"]);
        assert_eq!(asked(&Registries::load(Some(&main)).unwrap(), "alias"), ["one.example/alias"]);
        write(
            "registries.conf.d/21-none.conf",
            "credential-helpers = []\nunqualified-search-registries = []\n\
             [aliases]\nalias = \"c.example/other\"\n",
        );
        let registries = Registries::load(Some(&main)).unwrap();
        assert_eq!(registries.credential_helpers(), [""; 0]);
        assert_eq!(asked(&registries, "short"), ["docker.io/library/short"]);
        assert_eq!(asked(&registries, "alias"), ["c.example/other"]);
        write("registries.conf.d/22-none.conf", "[aliases]\nalias = \"\"\n");
        let registries = Registries::load(Some(&main)).unwrap();
        assert_eq!(asked(&registries, "alias"), ["docker.io/library/alias"]);
        write("registries.conf.d/30-bad.conf", "[[registry]]\nlocation = 1\n");
        let error = Registries::load(Some(&main)).unwrap_err().to_string();
        assert!(error.contains("30-bad.conf:2: location"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_by_file_line_and_key() {
        for (text, message) in [
            ("\n[[registry]]\nlocation = 1\n", "r.conf:3: location: invalid type"),
            ("[[registry]]\nlocation = \"\"\n", "r.conf:2: location: must not be empty"),
            ("[[registry]]\nlocation = \"https://x\"\n", "r.conf:2: location: must be host"),
            ("[[registry]]\nlocation = \"a b\"\n", "r.conf:2: location: must be host"),
            ("[[registry]]\nprefix = \"*.a/b\"\n", "r.conf:2: prefix: a wildcard prefix"),
            ("a = 1\n[[registry]]\nblocked = true\n", "r.conf:2: [[registry]]: needs a prefix"),
            ("unqualified-search-registries = [\"\"]", "r.conf:1: unqualified-search-registries:"),
            ("credential-helpers = [\"a/b\"]", "r.conf:1: credential-helpers: is not the name"),
            ("[aliases]\nx = \"y/z\"", "r.conf:2: x: an alias stands for registry/repository"),
            ("[aliases]\nx = \"a.b/c:1\"", "r.conf:2: x: an alias stands for"),
            ("[aliases]\nx = \"a.b/C\"", "r.conf:2: x: an alias stands for"),
            ("[aliases]\n\"x:1\" = \"a.b/c\"", "r.conf:2: \"x:1\": an alias is for a name"),
            ("[aliases]\n\"a.b/x\" = \"a.b/c\"", "r.conf:2: \"a.b/x\": an alias is for a name"),
            ("[aliases]\nx = 1", "r.conf:2: x: invalid type"),
            ("[registries.search]\nregistries = []\n", "r.conf:1: [registries.search]: version 1"),
            (
                "[[registry]]\nlocation=\"a\"\n[[registry.mirror]]\nlocation=\"b\"\n\
                 pull-from-mirror = \"some\"\n",
                "r.conf:5: pull-from-mirror: unknown variant",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "(\\[\\[registry\\]\\]\n)?\\PC{0,60}") {
            let _ = parse(&text);
        }
    }
}
