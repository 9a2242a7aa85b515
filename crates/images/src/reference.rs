//! Image references: `[domain/]path[:tag][@digest]`, as Docker defined them. Pure.

use std::fmt;

use crate::digest::Digest;
use crate::error::Error;

/// The registry of names without one.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Docker Hub's older name, still found in manifests of workloads.
const OLD_DEFAULT_DOMAIN: &str = "index.docker.io";
/// Docker Hub's namespace of names without one.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// The longest repository name, domain included, in bytes (distribution's limit).
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// A full reference: domain, repository, and a tag or a digest or both.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads `text`; a name without domain belongs to `search` if given, else to Docker Hub, and
    /// one without tag and digest means `latest`.
    pub fn parse(text: &str, search: Option<&str>) -> Result<Self, Error> {
        let refuse = |reason| Error::InvalidReference { reference: text.to_owned(), reason };

        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| refuse("its digest is malformed"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("its tag is malformed"));
        }
        let (domain, path) = split_name(name, search);
        if !is_domain(&domain) {
            return Err(refuse("its registry is malformed"));
        }
        if !is_path(&path) {
            return Err(refuse("its repository is malformed"));
        }
        if !name.contains('/') && Digest::from_hex(name).is_some() {
            return Err(refuse("it is an image id"));
        }
        if domain.len() + 1 + path.len() > LONGEST_NAME {
            return Err(refuse("its name is longer than 255 bytes"));
        }
        let latest = (tag.is_none() && digest.is_none()).then_some(DEFAULT_TAG);
        Ok(Self { domain, path, tag: tag.or(latest).map(str::to_owned), digest })
    }

    /// `text` without tag and digest.
    pub(crate) fn name_of(text: &str) -> &str {
        split_tag(text.split_once('@').map_or(text, |(rest, _)| rest)).0
    }

    /// Whether `text` begins with a registry.
    pub(crate) fn is_qualified(text: &str) -> bool {
        text.split_once('/').is_some_and(|(first, _)| looks_like_domain(first))
    }

    /// The registry's host, and its port if it is not the scheme's.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `domain/path:tag`, what an image is listed under. A reference with a digest names no tag:
    /// nobody asked the registry where the tag points.
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, self.digest) {
            (Some(tag), None) => Some(format!("{}/{}:{tag}", self.domain, self.path)),
            (_, Some(_)) | (None, None) => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Splits off the tag. A colon before the last slash belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (text, None),
    }
}

/// Splits off the domain: the first component, if it cannot be a namespace of Docker Hub.
fn split_name(name: &str, search: Option<&str>) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_domain(first) => (Some(first), rest),
        Some(_) | None => (None, name),
    };
    let domain = match domain.or(search).unwrap_or(DEFAULT_DOMAIN) {
        OLD_DEFAULT_DOMAIN => DEFAULT_DOMAIN,
        domain => domain,
    };
    // A search registry may itself carry a namespace.
    let (domain, path) = match domain.split_once('/') {
        Some((domain, namespace)) => (domain, format!("{namespace}/{path}")),
        None => (domain, path.to_owned()),
    };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        return (domain.to_owned(), format!("{DEFAULT_NAMESPACE}/{path}"));
    }
    (domain.to_owned(), path)
}

fn looks_like_domain(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':'])
        || component.chars().any(|c| c.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        // IPv6 in brackets.
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, rest)) => match rest.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let host_is_good = if domain.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(is_domain_label)
    };
    host_is_good && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_domain_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Runs of lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_in_words =
        bytes.first().copied().is_some_and(is_word) && bytes.last().copied().is_some_and(is_word);
    let separators = component.split(|c: char| c.is_ascii() && is_word(c as u8));
    ends_in_words
        && separators.into_iter().all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_does() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1", "docker.io/library/nginx:1"),
            ("me/nginx", "docker.io/me/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("LOUD/x", "LOUD/x:latest"),
            ("[::1]:5000/a/b:t", "[::1]:5000/a/b:t"),
            ("q.io/a/b-c/d__e.f_g---h:V_1.2-3", "q.io/a/b-c/d__e.f_g---h:V_1.2-3"),
        ] {
            assert_eq!(Reference::parse(text, None).unwrap().to_string(), full, "{text}");
        }
        let pinned = format!("a.b/c:t@sha256:{HEX}");
        let reference = Reference::parse(&pinned, None).unwrap();
        assert_eq!(reference.to_string(), pinned);
        assert_eq!(reference.tagged(), None);
        let digest = format!("c@sha256:{HEX}");
        assert_eq!(Reference::parse(&digest, None).unwrap().tag(), None);
    }

    #[test]
    fn a_search_registry_takes_only_names_without_domain() {
        for (text, full) in [
            ("nginx", "r.example:5000/nginx:latest"),
            ("me/nginx:2", "r.example:5000/me/nginx:2"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ] {
            let reference = Reference::parse(text, Some("r.example:5000")).unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
        }
        let nested = Reference::parse("nginx", Some("r.example/team")).unwrap();
        assert_eq!(nested.to_string(), "r.example/team/nginx:latest");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("a.b/{}", "x".repeat(252));
        for text in [
            "",
            ":t",
            "@",
            "a b",
            "A",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-t",
            "a:b:c",
            "a_",
            "-a",
            "a..b",
            "a___b",
            "a._b",
            "a@sha256:00",
            "a@md5:00",
            "x.y:0/a",
            "x.y:99999/a",
            "[::1/a",
            "[::g]/a",
            "-x.y/a",
            "x..y/a",
            "ä",
            "a:ä",
            HEX,
            &long,
        ] {
            assert!(Reference::parse(text, None).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_it_accepts_reads_back_the_same(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text, None) {
                prop_assert_eq!(Reference::parse(&reference.to_string(), None).unwrap(), reference);
            }
        }

        #[test]
        fn whatever_is_built_by_the_grammar_is_accepted(
            domain in "[a-z]{1,5}\\.[a-z]{1,5}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}([._]|__|-{1,3})[a-z0-9]{1,6}(/[a-z0-9]{1,6}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let text = format!("{domain}/{path}:{tag}");
            prop_assert_eq!(Reference::parse(&text, None).unwrap().to_string(), text);
        }
    }
}
