//! Whether a signature speaks of the image that was asked for: `signedIdentity` of
//! containers-policy.json(5). Pure.

use serde::Deserialize;

use crate::reference::Reference;

/// What the name within a signature must be to the name that was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum SignedIdentity {
    /// The same, tag or digest included.
    Exact,
    /// The same tag; for an image by digest, the same repository.
    #[default]
    RepoDigestOrExact,
    /// The same repository.
    Repository,
    /// This name, whatever was asked for.
    ExactReference(Reference),
    /// Any name of this repository, whatever was asked for.
    ExactRepository(String),
    /// As [`Self::RepoDigestOrExact`], with one prefix in place of another.
    Remap { prefix: String, signed_prefix: String },
}

/// A `signedIdentity` as the file has it.
#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum IdentityEntry {
    // With braces: serde lets unknown keys pass in variants without.
    #[serde(rename = "matchExact")]
    MatchExact {},
    #[serde(rename = "matchRepoDigestOrExact")]
    MatchRepoDigestOrExact {},
    #[serde(rename = "matchRepository")]
    MatchRepository {},
    #[serde(rename = "exactReference", rename_all = "camelCase")]
    ExactReference { docker_reference: String },
    #[serde(rename = "exactRepository", rename_all = "camelCase")]
    ExactRepository { docker_repository: String },
    #[serde(rename = "remapIdentity", rename_all = "camelCase")]
    RemapIdentity { prefix: String, signed_prefix: String },
}

impl SignedIdentity {
    pub(super) fn from_entry(entry: IdentityEntry) -> Result<Self, String> {
        Ok(match entry {
            IdentityEntry::MatchExact {} => Self::Exact,
            IdentityEntry::MatchRepoDigestOrExact {} => Self::RepoDigestOrExact,
            IdentityEntry::MatchRepository {} => Self::Repository,
            IdentityEntry::ExactReference { docker_reference: name } => {
                match SignedName::parse(&name) {
                    Some(SignedName { reference, is_bare: false }) => {
                        Self::ExactReference(reference)
                    }
                    Some(_) | None => {
                        return Err(format!("{name:?} is no name with a tag or digest"));
                    }
                }
            }
            IdentityEntry::ExactRepository { docker_repository: name } => {
                match SignedName::parse(&name) {
                    Some(SignedName { reference, is_bare: true }) => {
                        Self::ExactRepository(reference.repository())
                    }
                    Some(_) | None => return Err(format!("{name:?} is no repository")),
                }
            }
            IdentityEntry::RemapIdentity { prefix, signed_prefix } => {
                for prefix in [&prefix, &signed_prefix] {
                    if !is_prefix(prefix) {
                        return Err(format!("{prefix:?} is no HOST[:PORT][/PATH]"));
                    }
                }
                Self::Remap { prefix, signed_prefix }
            }
        })
    }

    /// Whether a signature that names `signed` will do for `asked`.
    pub(super) fn accepts(&self, asked: &Reference, signed: &str) -> bool {
        let Some(signed) = SignedName::parse(signed) else { return false };
        match self {
            Self::Exact => signed.is(asked),
            Self::RepoDigestOrExact => signed.is_repo_digest_or_exact(asked),
            Self::Repository => signed.reference.repository() == asked.repository(),
            Self::ExactReference(expected) => signed.is(expected),
            Self::ExactRepository(repository) => signed.reference.repository() == *repository,
            Self::Remap { prefix, signed_prefix } => match remapped(asked, prefix, signed_prefix) {
                Some(asked) => signed.is_repo_digest_or_exact(&asked),
                None => false,
            },
        }
    }
}

/// A name as signatures write it. One without tag and digest means no tag, not `latest`.
struct SignedName {
    reference: Reference,
    is_bare: bool,
}

impl SignedName {
    fn parse(text: &str) -> Option<Self> {
        let reference = Reference::parse(text, None).ok()?;
        let last = text.rsplit('/').next().unwrap_or(text);
        Some(Self { reference, is_bare: !last.contains([':', '@']) })
    }

    fn is(&self, other: &Reference) -> bool {
        !self.is_bare && self.reference == *other
    }

    /// A reference with both tag and digest is one by digest: nobody asks where its tag points.
    fn is_repo_digest_or_exact(&self, asked: &Reference) -> bool {
        match asked.digest() {
            Some(_) => self.reference.repository() == asked.repository(),
            None => self.is(asked),
        }
    }
}

/// `asked` with its prefix replaced, if it has it; none if that makes no name.
fn remapped(asked: &Reference, prefix: &str, signed_prefix: &str) -> Option<Reference> {
    let repository = asked.repository();
    let rest = match repository.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        Some(_) | None => return Some(asked.clone()),
    };
    let tail = &asked.to_string()[repository.len()..];
    let name = format!("{signed_prefix}{rest}{tail}");
    // A host with nothing behind it would be read as a repository of Docker Hub's.
    Reference::parse(&name, None).ok().filter(|parsed| parsed.to_string() == name)
}

/// `host[:port][/path]`: what could be the beginning of a name with something behind it.
fn is_prefix(prefix: &str) -> bool {
    let (host, _) = prefix.split_once('/').unwrap_or((prefix, ""));
    let looks_complete = host.contains(['.', ':']) || host == "localhost";
    looks_complete
        && Reference::parse(&format!("{prefix}/x"), None)
            .is_ok_and(|name| name.to_string() == format!("{prefix}/x:latest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn remap(prefix: &str, signed_prefix: &str) -> SignedIdentity {
        SignedIdentity::Remap { prefix: prefix.to_owned(), signed_prefix: signed_prefix.to_owned() }
    }

    #[test]
    fn each_kind_of_identity_accepts_its_names_and_no_others() {
        use SignedIdentity::{Exact, ExactReference, ExactRepository, Repository};
        let default = SignedIdentity::default;
        let pinned = format!("r.example/a@sha256:{HEX}");
        let both = format!("r.example/a:1@sha256:{HEX}");
        let exact = || ExactReference(Reference::parse("v.example/p:1", None).unwrap());
        let repository = || ExactRepository("v.example/p".to_owned());
        for (identity, asked, signed, accepted) in [
            (Exact, "r.example/a:1", "r.example/a:1", true),
            (Exact, "r.example/a:1", "r.example/a:2", false),
            (Exact, "r.example/a", "r.example/a:latest", true),
            (Exact, "r.example/a", "r.example/a", false),
            (Exact, &pinned, "r.example/a:1", false),
            (Exact, &pinned, &pinned, true),
            (default(), "r.example/a:1", "r.example/a:1", true),
            (default(), "r.example/a:1", "r.example/a:2", false),
            (default(), "r.example/a:1", "r.example/a", false),
            (default(), "r.example/a:1", "r.example/b:1", false),
            (default(), "r.example/a:1", "o.example/a:1", false),
            (default(), &pinned, "r.example/a:7", true),
            (default(), &pinned, "r.example/a", true),
            (default(), &pinned, "r.example/b:7", false),
            (default(), &both, "r.example/a:7", true),
            (default(), "busybox:1", "docker.io/library/busybox:1", true),
            (default(), "busybox:1", "busybox:1", true),
            (Repository, "r.example/a:1", "r.example/a:2", true),
            (Repository, "r.example/a:1", "r.example/a", true),
            (Repository, "r.example/a:1", "r.example/ab", false),
            (exact(), "r.example/a:1", "v.example/p:1", true),
            (exact(), "v.example/p:2", "v.example/p:2", false),
            (repository(), "r.example/a:1", "v.example/p:7", true),
            (repository(), "r.example/a:1", "v.example/p", true),
            (repository(), "r.example/a:1", "v.example/q:7", false),
            (remap("m.example/v", "v.example"), "m.example/v/a/b:1", "v.example/a/b:1", true),
            (remap("m.example/v", "v.example"), "m.example/v/a/b:1", "m.example/v/a/b:1", false),
            (remap("m.example/v", "v.example"), "m.example/vv/a:1", "m.example/vv/a:1", true),
            (remap("m.example/v", "v.example/x"), "m.example/v:1", "v.example/x:1", true),
            // Nothing would be left for a repository.
            (remap("m.example/v", "v.example"), "m.example/v:1", "v.example:1", false),
            (default(), "r.example/a:1", "", false),
            (default(), "r.example/a:1", "R.example//a", false),
        ] {
            let asked = Reference::parse(asked, None).unwrap();
            assert_eq!(identity.accepts(&asked, signed), accepted, "{identity:?} {asked} {signed}");
        }
    }

    #[test]
    fn an_identity_that_cannot_be_meant_is_refused() {
        let parse = |text: &str| {
            let entry = serde_json::from_str(text).map_err(|error| error.to_string())?;
            SignedIdentity::from_entry(entry)
        };
        assert_eq!(parse(r#"{"type": "matchExact"}"#), Ok(SignedIdentity::Exact));
        let repository = r#"{"type": "exactRepository", "dockerRepository": "busybox"}"#;
        let expected = SignedIdentity::ExactRepository("docker.io/library/busybox".to_owned());
        assert_eq!(parse(repository), Ok(expected));
        for text in [
            "{}",
            r#"{"type": "matchAnything"}"#,
            r#"{"type": "matchExact", "more": 1}"#,
            r#"{"type": "matchExact", "type": "matchExact"}"#,
            r#"{"type": "exactReference"}"#,
            r#"{"type": "exactReference", "dockerReference": "r.example/a"}"#,
            r#"{"type": "exactRepository", "dockerRepository": "r.example/a:1"}"#,
            r#"{"type": "remapIdentity", "prefix": "r.example"}"#,
            r#"{"type": "remapIdentity", "prefix": "r.example/", "signedPrefix": "s.example"}"#,
            r#"{"type": "remapIdentity", "prefix": "r.example/a:1", "signedPrefix": "s.example"}"#,
            r#"{"type": "remapIdentity", "prefix": "library", "signedPrefix": "s.example"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
