//! `registries.conf` (version 2): where an image is looked for, and with what trust.
//!
//! The file that every container tool on a node shares, see containers-registries.conf(5), and
//! the `*.conf` files of the directory beside it (`registries.conf.d`), which count over it in the
//! order of their names. What they say is read in `file`; here is what follows from it.

mod file;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::Error;
use crate::reference::Reference;

/// The rules of one `registries.conf`. Immutable: to reload is to load another.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// None: not said, which is another thing than that there are none.
    search: Option<Vec<String>>,
    credential_helpers: Option<Vec<String>>,
    /// Full names by short ones; none takes back what an earlier file said.
    aliases: BTreeMap<String, Option<String>>,
    rules: Vec<Rule>,
    unqualified: Unqualified,
}

/// What becomes of names without a registry.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Unqualified {
    /// They are aliases, or the first search registry's, else Docker Hub's.
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

impl Registries {
    /// Decides over names without a registry.
    #[must_use]
    pub fn with_unqualified(mut self, unqualified: Unqualified) -> Self {
        self.unqualified = unqualified;
        self
    }

    /// What the node's credentials are to be had from, in order, for
    /// [`NodeCredentials::with_helpers`](crate::NodeCredentials::with_helpers).
    pub fn credential_helpers(&self) -> &[String] {
        self.credential_helpers.as_deref().unwrap_or_default()
    }

    /// Reads a reference. A name without a registry may be an alias; else the first search registry
    /// takes it.
    pub(crate) fn reference(&self, text: &str) -> Result<Reference, Error> {
        if Reference::is_qualified(text) {
            return Reference::parse(text, None);
        }
        match (self.unqualified, self.full_name(text)) {
            (Unqualified::Refused, _) => {
                let reason = "it names no registry, and the node takes no such names";
                Err(Error::InvalidReference { reference: text.to_owned(), reason })
            }
            (Unqualified::Completed, Some(full)) => Reference::parse(&full, None),
            (Unqualified::Completed, None) => {
                let search = self.search.as_ref().and_then(|search| search.first());
                Reference::parse(text, search.map(String::as_str))
            }
        }
    }

    /// What an alias makes of a short name; tag and digest stay. As in containers/image an alias is
    /// used whatever `short-name-mode` says, which is for those who ask several search registries.
    fn full_name(&self, text: &str) -> Option<String> {
        let name = Reference::name_of(text);
        let full = self.aliases.get(name)?.as_ref()?;
        Some(format!("{full}{}", &text[name.len()..]))
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

fn endpoint(name: &str, insecure: bool) -> Endpoint {
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    Endpoint { host: host.to_owned(), repository: repository.to_owned(), insecure }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Registries, Error> {
        Registries::parse(Path::new("r.conf"), text)
    }

    pub(super) fn asked(registries: &Registries, name: &str) -> Vec<String> {
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
            "x" = "re.example/old/x"
            "team/y" = "docker.io/y"
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
            ("x", &["127.0.0.1:5000/new/x"]),
            ("x:1", &["127.0.0.1:5000/new/x"]),
            ("team/y", &["docker.io/library/y"]),
            ("team/x", &["search.example/team/x"]),
            ("y", &["search.example/y"]),
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
        for (name, full) in [("x:1", "re.example/old/x:1"), ("x", "re.example/old/x:latest")] {
            assert_eq!(registries.reference(name).unwrap().to_string(), full);
        }
        let by_digest = registries.reference(&format!("x@sha256:{HEX}")).unwrap();
        assert_eq!(by_digest.to_string(), format!("re.example/old/x@sha256:{HEX}"));
        let pinned = format!("m.example/a@sha256:{HEX}");
        assert_eq!(asked(&registries, &pinned), ["m1.example/a", "m3.example/a", "m.example/a"]);
    }

    #[test]
    fn names_without_a_registry_can_be_refused() {
        let registries = parse("[aliases]\nalias = \"docker.io/library/nginx\"").unwrap();
        let registries = registries.with_unqualified(Unqualified::Refused);
        for name in ["alias", "nginx", "library/nginx", "nginx:1", "team/app@sha256:0"] {
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
}
