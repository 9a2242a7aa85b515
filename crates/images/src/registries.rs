//! `registries.conf` (version 2): where an image is looked for, and with what trust.
//!
//! The file that every container tool on a node shares, see containers-registries.conf(5), and
//! the `*.conf` files of the directory beside it (`registries.conf.d`), which count over it in the
//! order of their names. Read here are `unqualified-search-registries`, `credential-helpers` and
//! `[[registry]]` with its mirrors; keys meant for other tools are left alone.

use std::io;
use std::iter;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::auth;
use crate::error::{Error, config};
use crate::reference::Reference;

/// The rules of one `registries.conf`. Immutable: to reload is to load another.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    search: Vec<String>,
    credential_helpers: Vec<String>,
    rules: Vec<Rule>,
    unqualified: Unqualified,
}

/// What becomes of names without a registry.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Unqualified {
    /// They are the first search registry's, else Docker Hub's.
    #[default]
    Completed,
    /// They are refused.
    Refused,
}

/// One `[[registry]]`.
#[derive(Clone, Debug)]
struct Rule {
    prefix: String,
    /// What replaces the prefix; none if the name stays as it is.
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug)]
struct Mirror {
    location: String,
    insecure: bool,
    serves: Serves,
}

/// Which references a mirror is asked for (`pull-from-mirror`).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Serves {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// One place to ask for an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint {
    /// Host, and port if it is not the scheme's.
    pub(crate) host: String,
    pub(crate) repository: String,
    /// Certificates are not checked, and plain HTTP will do.
    pub(crate) insecure: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    credential_helpers: Vec<Spanned<String>>,
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

    /// Decides over names without a registry.
    #[must_use]
    pub fn with_unqualified(mut self, unqualified: Unqualified) -> Self {
        self.unqualified = unqualified;
        self
    }

    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let wrong = |offset, reason: &str| config(path, text, offset, reason);
        let file: File = toml::from_str(text)
            .map_err(|error| wrong(error.span().map_or(0, |span| span.start), error.message()))?;
        if let Some(table) = file.registries {
            return Err(wrong(table.span().start, "version 1 of registries.conf is not supported"));
        }
        let mut search = Vec::new();
        for registry in file.unqualified_search_registries.unwrap_or_default() {
            search.push(checked(registry, &wrong)?);
        }
        let mut rules = Vec::new();
        for table in file.registry {
            rules.push(rule(table, &wrong)?);
        }
        let helpers = file.credential_helpers.into_iter().map(|helper| match helper.get_ref() {
            name if auth::is_helper(name) => Ok(helper.into_inner()),
            _ => Err(wrong(helper.span().start, "is not the name of a credential helper")),
        });
        let credential_helpers = helpers.collect::<Result<_, _>>()?;
        Ok(Self { search, credential_helpers, rules, ..Self::default() })
    }

    /// What the node's credentials are to be had from, in order, for
    /// [`NodeCredentials::with_helpers`](crate::NodeCredentials::with_helpers).
    pub fn credential_helpers(&self) -> &[String] {
        &self.credential_helpers
    }

    /// Takes in a later file: its rules replace those of the same prefix, its search registries and
    /// credential helpers all of them.
    fn merge(&mut self, later: Self) {
        if !later.search.is_empty() {
            self.search = later.search;
        }
        if !later.credential_helpers.is_empty() {
            self.credential_helpers = later.credential_helpers;
        }
        self.rules.retain(|rule| later.rules.iter().all(|new| new.prefix != rule.prefix));
        self.rules.extend(later.rules);
    }

    /// Reads a reference; the first search registry takes names without one.
    pub(crate) fn reference(&self, text: &str) -> Result<Reference, Error> {
        match self.unqualified {
            Unqualified::Refused if !Reference::is_qualified(text) => {
                let reason = "it names no registry, and the node takes no such names";
                Err(Error::InvalidReference { reference: text.to_owned(), reason })
            }
            Unqualified::Completed | Unqualified::Refused => {
                Reference::parse(text, self.search.first().map(String::as_str))
            }
        }
    }

    /// Where to ask for `reference`, in order: the mirrors, then the location itself.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        let name = reference.to_string();
        let matching = self.rules.iter().filter_map(|rule| Some((rule, rule.matches(&name)?)));
        // The longest prefix wins; of equals the first. A wildcard is no longer than its text.
        let Some((rule, matched)) = matching.rev().max_by_key(|(rule, _)| rule.prefix.len()) else {
            return Ok(vec![endpoint(&reference.repository(), false)]);
        };
        if rule.blocked {
            return Err(Error::Blocked { image: name, prefix: rule.prefix.clone() });
        }
        let repository = reference.repository();
        // A prefix may reach into the tag; the repository alone is rewritten.
        let rest = repository.get(matched..).unwrap_or_default();
        let by_digest = reference.digest().is_some();
        let mirrors = rule.mirrors.iter().filter(|mirror| mirror.serves.asks(by_digest));
        let mut endpoints: Vec<_> = mirrors
            .map(|mirror| endpoint(&format!("{}{rest}", mirror.location), mirror.insecure))
            .collect();
        let own = match &rule.location {
            Some(location) => format!("{location}{rest}"),
            None => repository.clone(),
        };
        endpoints.push(endpoint(&own, rule.insecure));
        Ok(endpoints)
    }
}

impl Rule {
    /// How many bytes of `name` the prefix covers, if it matches.
    fn matches(&self, name: &str) -> Option<usize> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            let host = name.split('/').next().unwrap_or_default();
            return host.strip_suffix(domain).filter(|sub| !sub.is_empty()).map(|_| host.len());
        }
        let rest = name.strip_prefix(&self.prefix)?;
        // A host alone must not match another port of that host.
        let has_path = self.prefix.contains('/');
        let ends_well = rest.is_empty()
            || rest.starts_with('/')
            || (has_path && (rest.starts_with(':') || rest.starts_with('@')));
        ends_well.then_some(self.prefix.len())
    }
}

impl Serves {
    fn asks(self, by_digest: bool) -> bool {
        match self {
            Self::All => true,
            Self::DigestOnly => by_digest,
            Self::TagOnly => !by_digest,
        }
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

fn endpoint(name: &str, insecure: bool) -> Endpoint {
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    Endpoint { host: host.to_owned(), repository: repository.to_owned(), insecure }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Registries, Error> {
        Registries::parse(Path::new("r.conf"), text)
    }

    #[test]
    fn a_file_that_is_missing_has_no_rules_and_one_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Registries::load(Some(&folder.path().join("none"))).unwrap().rules.is_empty());
        assert!(Registries::load(Some(folder.path())).is_err());
    }

    fn asked(registries: &Registries, name: &str) -> Vec<String> {
        let reference = registries.reference(name).unwrap();
        let endpoints = registries.endpoints(&reference).unwrap();
        let insecure = |endpoint: &Endpoint| if endpoint.insecure { "!" } else { "" };
        endpoints.iter().map(|e| format!("{}{}/{}", insecure(e), e.host, e.repository)).collect()
    }

    #[test]
    fn rules_lead_to_their_endpoints_in_order() {
        let registries = parse(
            r#"
            unqualified-search-registries = ["search.example", "docker.io"]
            short-name-mode = "disabled"
            [aliases]
            "x" = "y/z"
            [[registry]]
            location = "plain.example:5000"
            insecure = true
            [[registry]]
            prefix = "re.example/old"
            location = "127.0.0.1:5000/new"
            [[registry]]
            prefix = "re.example/old/deeper"
            location = "deep.example"
            [[registry]]
            prefix = "*.wild.example"
            location = "w.example/all"
            [[registry]]
            prefix = "one.wild.example"
            [[registry]]
            location = "m.example"
            [[registry.mirror]]
            location = "m1.example"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "m2.example/sub/"
            insecure = true
            pull-from-mirror = "tag-only"
            [[registry.mirror]]
            location = "m3.example"
            [[registry]]
            prefix = "host.example"
            location = "never.example"
        "#,
        )
        .unwrap();
        for (name, endpoints) in [
            ("short", &["search.example/short"][..]),
            ("other.example/a", &["other.example/a"]),
            ("plain.example:5000/a/b", &["!plain.example:5000/a/b"]),
            ("plain.example/a", &["plain.example/a"]),
            ("re.example/old/a:1", &["127.0.0.1:5000/new/a"]),
            ("re.example/older", &["re.example/older"]),
            ("re.example/old", &["127.0.0.1:5000/new"]),
            ("re.example/old:tag", &["127.0.0.1:5000/new"]),
            ("re.example/old/deeper/a", &["deep.example/a"]),
            ("a.wild.example/b", &["w.example/all/b"]),
            ("a.b.wild.example/b", &["w.example/all/b"]),
            ("one.wild.example/b", &["one.wild.example/b"]),
            ("wild.example/b", &["wild.example/b"]),
            ("m.example/a:1", &["!m2.example/sub/a", "m3.example/a", "m.example/a"]),
            ("host.example:8443/a", &["host.example:8443/a"]),
        ] {
            assert_eq!(asked(&registries, name), endpoints, "{name}");
        }
        let pinned = format!("m.example/a@sha256:{HEX}");
        assert_eq!(asked(&registries, &pinned), ["m1.example/a", "m3.example/a", "m.example/a"]);
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
                 credential-helpers = [\"one\", \"containers-auth.json\"]\n{all}"
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
        write("registries.conf.d/30-bad.conf", "[[registry]]\nlocation = 1\n");
        let error = Registries::load(Some(&main)).unwrap_err().to_string();
        assert!(error.contains("30-bad.conf:2: location"), "{error}");
    }

    #[test]
    fn names_without_a_registry_can_be_refused() {
        let registries = parse("").unwrap().with_unqualified(Unqualified::Refused);
        for name in ["nginx", "library/nginx", "nginx:1", "team/app@sha256:0"] {
            let refused = registries.reference(name).unwrap_err();
            assert!(matches!(refused, Error::InvalidReference { .. }), "{name}");
        }
        for name in ["docker.io/library/nginx", "localhost/x", "r.example:5000/x", "[::1]:5000/x"] {
            registries.reference(name).unwrap();
        }
    }

    #[test]
    fn what_is_blocked_is_refused_and_its_longer_exception_is_not() {
        let registries = parse(
            "[[registry]]\nlocation = \"no.example\"\nblocked = true\n\
             [[registry]]\nlocation = \"no.example/but/this\"\n",
        )
        .unwrap();
        let blocked = registries.reference("no.example/x").unwrap();
        assert!(matches!(
            registries.endpoints(&blocked),
            Err(Error::Blocked { prefix, .. }) if prefix == "no.example"
        ));
        assert_eq!(asked(&registries, "no.example/but/this"), ["no.example/but/this"]);
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
