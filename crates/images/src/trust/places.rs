//! `registries.d`: where signatures of images are (containers-registries.d(5)).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;

use super::scope::scopes;
use super::yaml::{self, Entry, Value};
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;

/// Where simple signatures are if nothing is said, in the container tools too.
const DEFAULT_LOOKASIDE: &str = "file:///var/lib/containers/sigstore";

/// Where signatures are looked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SignaturePlaces {
    default: Section,
    scopes: BTreeMap<String, Section>,
}

/// What is said of one scope.
#[derive(Clone, Debug, Default, PartialEq)]
struct Section {
    lookaside: Option<Url>,
    attachments: Option<bool>,
}

impl SignaturePlaces {
    /// Reads the `*.yaml` files of a directory, which may be missing.
    pub(super) fn load(directory: &Path) -> Result<Self, Error> {
        let mut places = Self::default();
        let failed = |error| Error::io("read registries.d", error);
        let entries = match fs_err::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(places),
            entries => entries.map_err(failed)?,
        };
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>();
        let mut paths = paths.map_err(failed)?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.sort();
        for path in paths {
            places.add(&path, &fs_err::read_to_string(&path).map_err(failed)?)?;
        }
        Ok(places)
    }

    /// Takes in another file. No scope may be in two.
    pub(super) fn add(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let wrong = |line: usize, key: &str, reason: &str| Error::Config {
            file: path.to_owned(),
            line,
            key: key.to_owned(),
            reason: reason.to_owned(),
        };
        let file = yaml::parse(text).map_err(|refused| wrong(refused.line, "", refused.reason))?;
        for Entry { key, line, value } in file {
            let Value::Mapping(value) = value else {
                return Err(wrong(line, &key, "must be a mapping"));
            };
            match key.as_str() {
                "default-docker" if self.default == Section::default() => {
                    self.default = section(value, &wrong)?;
                }
                "default-docker" => return Err(wrong(line, &key, "is in another file too")),
                "docker" => {
                    for Entry { key, line, value } in value {
                        let Value::Mapping(value) = value else {
                            return Err(wrong(line, &key, "must be a mapping"));
                        };
                        let section = section(value, &wrong)?;
                        if self.scopes.insert(key.clone(), section).is_some() {
                            return Err(wrong(line, &key, "is in another file too"));
                        }
                    }
                }
                _ => return Err(wrong(line, &key, "is not known: docker or default-docker")),
            }
        }
        Ok(())
    }

    /// Where simple signatures of a manifest in this repository begin; their numbers follow.
    pub(super) fn lookaside(&self, repository: &Reference, manifest: Digest) -> Url {
        let said = self.of(repository, |section| section.lookaside.clone());
        let mut url =
            said.unwrap_or_else(|| DEFAULT_LOOKASIDE.parse().expect("the URL is well-formed"));
        let base = url.path().trim_end_matches('/');
        let path = format!("{base}/{}@sha256={}/", repository.path(), manifest.hex());
        url.set_path(&path);
        url
    }

    /// Whether sigstore's signatures are in the repository itself.
    pub(super) fn has_attachments(&self, repository: &Reference) -> bool {
        self.of(repository, |section| section.attachments).unwrap_or(false)
    }

    /// What the most specific scope says that says anything.
    fn of<T>(&self, repository: &Reference, get: impl Fn(&Section) -> Option<T>) -> Option<T> {
        let scopes = scopes(repository);
        let said = scopes.iter().filter_map(|scope| self.scopes.get(scope)).find_map(&get);
        said.or_else(|| get(&self.default))
    }
}

/// Keys that are not known are left alone: other tools have theirs.
fn section(
    entries: yaml::Mapping,
    wrong: &impl Fn(usize, &str, &str) -> Error,
) -> Result<Section, Error> {
    let mut section = Section::default();
    for Entry { key, line, value } in entries {
        let refuse = |reason| wrong(line, &key, reason);
        match (key.as_str(), value) {
            // `sigstore` is what `lookaside` was called; with both the new name counts.
            ("lookaside", Value::Word(url)) => section.lookaside = Some(place(&url, refuse)?),
            ("sigstore", Value::Word(url)) => {
                let url = place(&url, refuse)?;
                section.lookaside.get_or_insert(url);
            }
            ("use-sigstore-attachments", Value::Word(word)) => {
                section.attachments = Some(match word.as_str() {
                    "true" | "True" | "TRUE" => true,
                    "false" | "False" | "FALSE" => false,
                    _ => return Err(refuse("must be true or false")),
                });
            }
            ("lookaside" | "sigstore" | "use-sigstore-attachments", Value::Mapping(_)) => {
                return Err(refuse("must be one word"));
            }
            // What signs writes there.
            ("lookaside-staging" | "sigstore-staging", _) => {}
            (_, _) => {}
        }
    }
    Ok(section)
}

fn place(text: &str, refuse: impl Fn(&'static str) -> Error) -> Result<Url, Error> {
    let url: Url = text.parse().map_err(|_| refuse("must be a URL"))?;
    let is_known = match url.scheme() {
        "http" | "https" => url.host_str().is_some(),
        "file" => url.host_str().is_none(),
        _ => false,
    };
    match is_known && url.query().is_none() && url.fragment().is_none() {
        true => Ok(url),
        false => Err(refuse("must be an http, https or file URL, and nothing but a place")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(files: &[&str]) -> Result<SignaturePlaces, Error> {
        let mut places = SignaturePlaces::default();
        for file in files {
            places.add(Path::new("r.yaml"), file)?;
        }
        Ok(places)
    }

    #[test]
    fn the_most_specific_scope_that_says_something_counts() {
        let places = places(&[
            "default-docker:\n  lookaside: https://d.example/all\n",
            "docker:\n  r.example:5000:\n    sigstore: http://old.example\n    \
             use-sigstore-attachments: true\n    other-key: 1\n  r.example:5000/a/b:\n    \
             lookaside: file:///srv/signatures/\n    lookaside-staging: file:///tmp/x\n  \
             \"*.w.example\":\n    use-sigstore-attachments: true\n",
        ])
        .unwrap();
        let digest = Digest::of(b"m");
        for (name, base, attachments) in [
            ("r.example:5000/a/b", "file:///srv/signatures/a/b@", true),
            ("r.example:5000/a/b/c", "file:///srv/signatures/a/b/c@", true),
            ("r.example:5000/a/bc", "http://old.example/a/bc@", true),
            ("r.example/a/b", "https://d.example/all/a/b@", false),
            ("x.w.example/a", "https://d.example/all/a@", true),
            ("w.example/a", "https://d.example/all/a@", false),
        ] {
            let name = Reference::parse(name, None).unwrap();
            let expected = format!("{base}sha256={}/", digest.hex());
            assert_eq!(places.lookaside(&name, digest).as_str(), expected, "{name}");
            assert_eq!(places.has_attachments(&name), attachments, "{name}");
        }
        let silent = SignaturePlaces::default();
        let name = Reference::parse("r.example/a", None).unwrap();
        let url = silent.lookaside(&name, digest);
        assert!(url.as_str().starts_with("file:///var/lib/containers/sigstore/a@sha256="), "{url}");
    }

    #[test]
    fn wrong_values_are_refused_with_their_line() {
        for (files, line) in [
            (&["docker:\n  a:\n    lookaside: ftp://x\n"][..], 3),
            (&["docker:\n  a:\n    lookaside: x\n"], 3),
            (&["docker:\n  a:\n    lookaside: https://x?a=b\n"], 3),
            (&["docker:\n  a:\n    lookaside:\n"], 3),
            (&["docker:\n  a:\n    use-sigstore-attachments: maybe\n"], 3),
            (&["docker:\n  a: b\n"], 2),
            (&["docker: a\n"], 1),
            (&["dokcer:\n"], 1),
            (&["docker:\n  a: {}\n", "docker:\n  b: {}\n  a: {}\n"], 3),
            (&["default-docker:\n  lookaside: file:///a\n", "\ndefault-docker:\n"], 2),
        ] {
            match places(files) {
                Err(Error::Config { line: found, .. }) => assert_eq!(found, line, "{files:?}"),
                other => panic!("{files:?}: {other:?}"),
            }
        }
    }
}
