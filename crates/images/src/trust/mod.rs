//! Which images may be used: `policy.json`, policies of namespaces, and the signatures that they
//! ask for.
//!
//! ```text
//!  policy.json ─────────┐                       lookaside, attachments
//!  <namespace>.json ────┼─▶ Trust ─▶ Policy         (`gather`)
//!  registries.d ────────┘              │                │
//!                   name, digests ─────┴──▶ check ◀─────┘ signatures
//! ```
//!
//! Asked when an image is pulled, before anything of it but manifests is fetched, and again when it
//! is used. For that the signatures are kept in the image's record: the second answer needs no
//! network. They are fetched if any policy of the node asks for them, not only the caller's, so
//! that a namespace can use what another one has pulled.

mod admission;
mod evidence;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gather;
mod identity;
mod load;
mod openpgp;
mod payload;
mod places;
mod policy;
mod scope;
mod sigstore;
mod yaml;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

pub(crate) use admission::Arrival;
pub(crate) use evidence::{Evidence, Found};
use places::SignaturePlaces;
use policy::{Policy, Wanted};

use crate::error::Error;
use crate::reference::Reference;

/// The files that say which images may be used.
#[derive(Clone, Copy, Debug)]
pub struct TrustFiles<'a> {
    /// `policy.json`.
    pub policy: &'a Path,
    /// A directory of `<namespace>.json`.
    pub namespaces: &'a Path,
    /// `registries.d`.
    pub places: &'a Path,
}

impl TrustFiles<'_> {
    /// The files with keys that the policies name, also those that are not there yet: of each policy
    /// up to the first that cannot be used, at which its reading ends. Blocking.
    pub fn key_files(&self) -> BTreeSet<PathBuf> {
        let named = RefCell::new(BTreeSet::new());
        let read = |key: &Path| {
            named.borrow_mut().insert(key.to_owned());
            fs_err::read(key)
        };
        let own = files_of_namespaces(self.namespaces).unwrap_or_default().into_values();
        for policy in own.chain([self.policy.to_owned()]) {
            if let Ok(text) = fs_err::read_to_string(&policy) {
                // What is wrong with it is said to whoever wants to use it.
                drop(load::parse(&policy, &text, &read));
            }
        }
        named.into_inner()
    }
}

/// Which images may be used. Immutable: to reload is to load another.
#[derive(Clone, Debug)]
pub struct Trust {
    policies: Arc<Policies>,
}

#[derive(Debug)]
struct Policies {
    node: Policy,
    /// Otherwise there is no file, and nothing is asked of any image.
    is_from_file: bool,
    namespaces: BTreeMap<String, Policy>,
    places: SignaturePlaces,
}

impl Default for Trust {
    /// Accepts anything.
    fn default() -> Self {
        Self {
            policies: Arc::new(Policies {
                node: Policy::accept_anything(),
                is_from_file: false,
                namespaces: BTreeMap::new(),
                places: SignaturePlaces::default(),
            }),
        }
    }
}

impl Trust {
    /// Reads the files anew. Whatever is there must be understood; any may be missing. Of a policy
    /// that was there and is not, nothing can be concluded: whoever replaces it may just be between
    /// removing and writing, and what would hold instead may be wider. So `policy.json` must still be
    /// there, and a namespace keeps its own. Blocking.
    pub fn reload(&self, files: &TrustFiles<'_>) -> Result<Self, Error> {
        let (node, is_from_file) = match fs_err::read_to_string(files.policy) {
            Ok(text) => (parse(files.policy, &text)?, true),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.has_policy() => {
                (Policy::accept_anything(), false)
            }
            Err(error) => return Err(Error::io("read policy.json", error)),
        };
        let mut namespaces = load_namespaces(files.namespaces)?;
        for (namespace, policy) in &self.policies.namespaces {
            namespaces.entry(namespace.clone()).or_insert_with(|| {
                warn!(
                    namespace,
                    "its policy's file has vanished; it holds until SIGHUP or a restart"
                );
                policy.clone()
            });
        }
        let places = SignaturePlaces::load(files.places)?;
        let policies = Policies { node, is_from_file, namespaces, places };
        Ok(Self { policies: Arc::new(policies) })
    }

    /// This to reload from where somebody asks for it, who has no file half replaced: namespaces
    /// without a file then have the node's policy.
    pub fn without_namespaces(&self) -> Self {
        let Policies { node, is_from_file, namespaces: _, places } = &*self.policies;
        Self {
            policies: Arc::new(Policies {
                node: node.clone(),
                is_from_file: *is_from_file,
                namespaces: BTreeMap::new(),
                places: places.clone(),
            }),
        }
    }

    /// Whether there is a file for the whole node.
    pub fn has_policy(&self) -> bool {
        self.policies.is_from_file
    }

    /// The namespace's own policy if it has one, else the node's.
    pub(crate) fn policy(&self, namespace: &str) -> &Policy {
        self.policies.namespaces.get(namespace).unwrap_or(&self.policies.node)
    }

    /// What signatures any policy asks for by this name.
    pub(crate) fn wanted(&self, name: &Reference) -> Wanted {
        let others = self.policies.namespaces.values();
        let own = self.policies.node.wanted(name);
        others.fold(own, |wanted, policy| wanted.or(policy.wanted(name)))
    }

    pub(crate) fn places(&self) -> &SignaturePlaces {
        &self.policies.places
    }
}

fn parse(path: &Path, text: &str) -> Result<Policy, Error> {
    load::parse(path, text, &|key| fs_err::read(key))
}

fn load_namespaces(directory: &Path) -> Result<BTreeMap<String, Policy>, Error> {
    let failed = |error| Error::io("read the namespaces' policies", error);
    let read = |(namespace, path): (String, PathBuf)| {
        let text = fs_err::read_to_string(&path).map_err(failed)?;
        Ok((namespace, parse(&path, &text)?))
    };
    files_of_namespaces(directory).map_err(failed)?.into_iter().map(read).collect()
}

/// The policy's file of each namespace that has one.
fn files_of_namespaces(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let entries = match fs_err::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let path: PathBuf = entry?.path();
        let namespace = path.file_stem().and_then(|stem| stem.to_str());
        let is_policy = path.extension().is_some_and(|extension| extension == "json");
        // No namespace begins with a dot; what editors leave does.
        let namespace = namespace.filter(|name| is_policy && !name.starts_with('.'));
        if let Some(namespace) = namespace {
            files.insert(namespace.to_owned(), path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_own_policy_or_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let (policy, namespaces) = (folder.path().join("p.json"), folder.path().join("n"));
        let places = folder.path().join("d");
        let files = TrustFiles { policy: &policy, namespaces: &namespaces, places: &places };
        let none = Trust::default().reload(&files).unwrap();
        assert!(!none.has_policy());
        let name = Reference::parse("r.example/a", None).unwrap();
        let accepts = |trust: &Trust, namespace| trust.check_name(&name, namespace).is_ok();
        assert!(accepts(&none, "strict"));

        fs_err::create_dir(&namespaces).unwrap();
        let reject = r#"{"default": [{"type": "reject"}]}"#;
        let accept = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs_err::write(namespaces.join("strict.json"), reject).unwrap();
        fs_err::write(namespaces.join(".strict.json"), "half").unwrap();
        fs_err::write(namespaces.join("strict.json~"), "old").unwrap();
        let strict = none.reload(&files).unwrap();
        assert!(!accepts(&strict, "strict") && accepts(&strict, "other") && accepts(&strict, ""));

        fs_err::write(&policy, reject).unwrap();
        fs_err::write(namespaces.join("strict.json"), accept).unwrap();
        let turned = strict.reload(&files).unwrap();
        assert!(accepts(&turned, "strict") && !accepts(&turned, "other"));

        fs_err::remove_dir_all(&namespaces).unwrap();
        let kept = turned.reload(&files).unwrap().reload(&files).unwrap();
        assert!(accepts(&kept, "strict") && !accepts(&kept, "other"), "it may be half replaced");
        let asked = kept.without_namespaces().reload(&files).unwrap();
        assert!(!accepts(&asked, "strict"), "it is meant to be gone");
        assert!(asked.has_policy());

        fs_err::create_dir(&namespaces).unwrap();
        fs_err::remove_file(&policy).unwrap();
        assert!(turned.without_namespaces().reload(&files).is_err(), "so does a policy");
        assert!(turned.reload(&files).is_err(), "a policy that vanishes stays");
        fs_err::write(&policy, accept).unwrap();
        fs_err::write(namespaces.join("strict.json"), "{}").unwrap();
        assert!(turned.reload(&files).is_err(), "one mistake is enough");
    }
}
