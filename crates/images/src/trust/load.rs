//! `policy.json` as a file. Read strictly: a policy that is not understood in every word is no
//! policy, for what was meant could be the opposite.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::identity::{IdentityEntry, SignedIdentity};
use super::openpgp::KeyRing;
use super::policy::{Policy, Requirement};
use super::sigstore::SigstoreKey;
use crate::error::Error;

/// Where images are pulled from, as policies call it.
const REGISTRIES: &str = "docker";

/// What other tools' policies may have besides: nothing of that comes here, and any other word is
/// a mistake.
const OTHER_TRANSPORTS: [&str; 9] = [
    "atomic",
    "containers-storage",
    "dir",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "sif",
    "tarball",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Entry>,
    #[serde(default)]
    transports: Unique<Unique<Vec<Entry>>>,
}

/// A requirement as it is written.
#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Entry {
    // With braces: serde lets unknown keys pass in variants without.
    #[serde(rename = "insecureAcceptAnything")]
    AcceptAnything {},
    #[serde(rename = "reject")]
    Reject {},
    #[serde(rename = "signedBy", rename_all = "camelCase")]
    SignedBy {
        key_type: String,
        key_path: Option<PathBuf>,
        key_paths: Option<Vec<PathBuf>>,
        key_data: Option<String>,
        signed_identity: Option<IdentityEntry>,
    },
    #[serde(rename = "sigstoreSigned", rename_all = "camelCase")]
    SigstoreSigned {
        key_path: Option<PathBuf>,
        key_paths: Option<Vec<PathBuf>>,
        key_data: Option<String>,
        key_datas: Option<Vec<String>>,
        signed_identity: Option<IdentityEntry>,
        // Known, and refused by name.
        fulcio: Option<IgnoredAny>,
        pki: Option<IgnoredAny>,
        rekor_public_key_path: Option<IgnoredAny>,
        rekor_public_key_paths: Option<IgnoredAny>,
        rekor_public_key_data: Option<IgnoredAny>,
        rekor_public_key_datas: Option<IgnoredAny>,
    },
}

/// How files are read: tests and fuzzing have none.
pub(super) type Read<'a> = &'a dyn Fn(&Path) -> std::io::Result<Vec<u8>>;

/// Reads the policy in `text`, and the keys that it names.
pub(super) fn parse(path: &Path, text: &str, read: Read<'_>) -> Result<Policy, Error> {
    let wrong = |line: usize, key: &str, reason: String| {
        let key = key.to_owned();
        Error::Config { file: path.to_owned(), line, key, reason }
    };
    let file: File = serde_json::from_str(text)
        .map_err(|error| wrong(error.line(), "policy", without_place(&error)))?;
    let requirements = |scope: &str, entries: Vec<Entry>| {
        if entries.is_empty() {
            return Err(wrong(line_of(text, scope), scope, "must not be empty".to_owned()));
        }
        let requirements = entries.into_iter().map(|entry| requirement(entry, read));
        let requirements = requirements.collect::<Result<Vec<_>, _>>();
        requirements.map_err(|reason| wrong(line_of(text, scope), scope, reason))
    };
    let mut policy =
        Policy { default: requirements("default", file.default)?, scopes: BTreeMap::new() };
    for (transport, scopes) in file.transports.0 {
        if transport == REGISTRIES {
            for (scope, entries) in scopes.0 {
                let requirements = requirements(&scope, entries)?;
                policy.scopes.insert(scope, requirements);
            }
        } else if !OTHER_TRANSPORTS.contains(&transport.as_str()) {
            let line = line_of(text, &transport);
            return Err(wrong(line, &transport, "is no transport".to_owned()));
        }
    }
    Ok(policy)
}

fn requirement(entry: Entry, read: Read<'_>) -> Result<Requirement, String> {
    match entry {
        Entry::AcceptAnything {} => Ok(Requirement::AcceptAnything),
        Entry::Reject {} => Ok(Requirement::Reject),
        Entry::SignedBy { key_type, key_path, key_paths, key_data, signed_identity } => {
            if key_type != "GPGKeys" {
                return Err(format!("keyType {key_type:?} is not served, only \"GPGKeys\""));
            }
            let mut keys = KeyRing::default();
            let files = one_source([one(key_path), key_paths], [one(key_data), None])?;
            files.each(read, |content| keys.add(content).map_err(|error| error.to_string()))?;
            Ok(Requirement::SignedBy { keys: Arc::new(keys), identity: identity(signed_identity)? })
        }
        Entry::SigstoreSigned {
            key_path,
            key_paths,
            key_data,
            key_datas,
            signed_identity,
            fulcio,
            pki,
            rekor_public_key_path,
            rekor_public_key_paths,
            rekor_public_key_data,
            rekor_public_key_datas,
        } => {
            for (key, given) in [
                ("fulcio", fulcio),
                ("pki", pki),
                ("rekorPublicKeyPath", rekor_public_key_path),
                ("rekorPublicKeyPaths", rekor_public_key_paths),
                ("rekorPublicKeyData", rekor_public_key_data),
                ("rekorPublicKeyDatas", rekor_public_key_datas),
            ] {
                if given.is_some() {
                    return Err(format!("{key} is not served: sigstoreSigned takes keys alone"));
                }
            }
            let mut keys = Vec::new();
            let files = one_source([one(key_path), key_paths], [one(key_data), key_datas])?;
            files.each(read, |content| {
                keys.extend(SigstoreKey::parse_all(content)?);
                Ok(())
            })?;
            let identity = identity(signed_identity)?;
            Ok(Requirement::SigstoreSigned { keys: keys.into(), identity })
        }
    }
}

fn identity(entry: Option<IdentityEntry>) -> Result<SignedIdentity, String> {
    entry.map_or(Ok(SignedIdentity::default()), SignedIdentity::from_entry)
}

/// Where keys are.
enum Keys {
    Files(Vec<PathBuf>),
    /// Base64.
    Data(Vec<String>),
}

fn one<T>(value: Option<T>) -> Option<Vec<T>> {
    value.map(|value| vec![value])
}

/// Exactly one way to say where keys are may be used.
fn one_source(
    files: [Option<Vec<PathBuf>>; 2],
    data: [Option<Vec<String>>; 2],
) -> Result<Keys, String> {
    let files = files.into_iter().flatten().map(Keys::Files);
    let mut given = files.chain(data.into_iter().flatten().map(Keys::Data));
    match (given.next(), given.next()) {
        (Some(Keys::Files(files)), None) if files.is_empty() => Err("no key".to_owned()),
        (Some(Keys::Data(data)), None) if data.is_empty() => Err("no key".to_owned()),
        (Some(keys), None) => Ok(keys),
        (None, _) => Err("no key: keyPath, keyPaths or keyData says which".to_owned()),
        (Some(_), Some(_)) => Err("keys in more than one way".to_owned()),
    }
}

impl Keys {
    fn each(
        self,
        read: Read<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        match self {
            Self::Files(paths) => {
                for path in paths {
                    if !path.is_absolute() {
                        return Err(format!("{} is no absolute path", path.display()));
                    }
                    // The message of `fs_err` names the file.
                    let content = read(&path).map_err(|error| error.to_string())?;
                    take(&content).map_err(|reason| format!("{}: {reason}", path.display()))?;
                }
            }
            Self::Data(texts) => {
                for text in texts {
                    let content = STANDARD.decode(text).map_err(|_| "the key is not base64")?;
                    take(&content)?;
                }
            }
        }
        Ok(())
    }
}

/// The line on which `key` is written first.
fn line_of(text: &str, key: &str) -> usize {
    let quoted = format!("\"{key}\"");
    text.lines().position(|line| line.contains(&quoted)).map_or(1, |line| line + 1)
}

/// The message of serde_json ends with a place that ours begins with.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.clone(), |(reason, _)| reason.to_owned())
}

/// An object in which no key is written twice: of two meanings one would be lost.
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format!("{key:?} is written twice")));
                    }
                    entries.insert(key, value);
                }
                Ok(Unique(entries))
            }
        }
        from.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::openpgp::tests::TestKey;
    use super::*;

    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAELJPI3PSYRy5REq3G0W+SaE8tCNB/\n\
        HXIk0VSJK6qa0HUuyxbmTIP7KzeHQFPPw85iaISdzIQBaqtVC4D5Gp6f6g==\n\
        -----END PUBLIC KEY-----\n";

    fn policy(text: &str) -> Result<Policy, Error> {
        let read = |path: &Path| match path.to_str() {
            Some("/keys/pem") => Ok(PEM.as_bytes().to_vec()),
            Some("/keys/gpg") => Ok(TestKey::new(1).public()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        parse(Path::new("policy.json"), text, &read)
    }

    fn with(requirement: &str) -> Result<Policy, Error> {
        policy(&format!(r#"{{"default": [{requirement}]}}"#))
    }

    #[test]
    fn every_way_to_give_keys_is_read() {
        let (pem, gpg) = (STANDARD.encode(PEM), STANDARD.encode(TestKey::new(1).public()));
        for requirement in [
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/keys/gpg"}"#.to_owned(),
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/keys/gpg", "/keys/gpg"]}"#
                .to_owned(),
            format!(r#"{{"type": "signedBy", "keyType": "GPGKeys", "keyData": "{gpg}"}}"#),
            r#"{"type": "sigstoreSigned", "keyPath": "/keys/pem",
                "signedIdentity": {"type": "matchRepository"}}"#
                .to_owned(),
            r#"{"type": "sigstoreSigned", "keyPaths": ["/keys/pem"]}"#.to_owned(),
            format!(r#"{{"type": "sigstoreSigned", "keyData": "{pem}"}}"#),
            format!(r#"{{"type": "sigstoreSigned", "keyDatas": ["{pem}", "{pem}"]}}"#),
        ] {
            let read = with(&requirement).unwrap_or_else(|error| panic!("{requirement}: {error}"));
            match &read.default[..] {
                [Requirement::SignedBy { identity, .. }] => {
                    assert_eq!(*identity, SignedIdentity::RepoDigestOrExact);
                }
                [Requirement::SigstoreSigned { keys, .. }] => assert!(!keys.is_empty()),
                other => panic!("{requirement}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_policy_that_is_not_understood_in_every_word_is_refused() {
        for (requirement, named) in [
            (r#"{"type": "unheardOf"}"#, "unheardOf"),
            (r#"{"type": "signedBaseLayer"}"#, "signedBaseLayer"),
            (r#"{"type": "insecureAcceptAnything", "if": 1}"#, "if"),
            (r#"{"type": "reject", "unless": 1}"#, "unless"),
            (r#"{"type": "reject", "type": "insecureAcceptAnything"}"#, "type"),
            (r#"{"type": "signedBy", "keyPath": "/keys/gpg"}"#, "keyType"),
            (r#"{"type": "signedBy", "keyType": "X509Certificates", "keyPath": "/k"}"#, "X509"),
            (r#"{"type": "signedBy", "keyType": "GPGKeys"}"#, "no key"),
            (r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": []}"#, "no key"),
            (r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/keys/pem"}"#, "/keys/pem"),
            (
                r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/keys/gpg", "keyData": ""}"#,
                "more than one way",
            ),
            (r#"{"type": "sigstoreSigned"}"#, "no key"),
            (r#"{"type": "sigstoreSigned", "keyPath": "/none"}"#, "not found"),
            (r#"{"type": "sigstoreSigned", "keyPath": "keys/pem"}"#, "absolute"),
            (r#"{"type": "sigstoreSigned", "keyData": "%"}"#, "base64"),
            (r#"{"type": "sigstoreSigned", "keyData": "aGk="}"#, "PEM"),
            (r#"{"type": "sigstoreSigned", "keyPath": "/keys/gpg"}"#, "/keys/gpg"),
            (r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/ca"}}"#, "fulcio"),
            (
                r#"{"type": "sigstoreSigned", "keyPath": "/keys/pem", "rekorPublicKeyPath": "/r"}"#,
                "rekorPublicKeyPath",
            ),
            (r#"{"type": "sigstoreSigned", "keyPath": "/keys/pem", "pki": {}}"#, "pki"),
            (
                r#"{"type": "sigstoreSigned", "keyPath": "/keys/pem", "signedIdentity": {"type": "x"}}"#,
                "x",
            ),
        ] {
            let error = with(requirement).expect_err(requirement).to_string();
            assert!(error.starts_with("policy.json:1: "), "{error}");
            assert!(error.contains(named), "{requirement}: {error}");
        }
        for (text, named) in [
            ("", "EOF"),
            ("{}", "default"),
            (r#"{"default": []}"#, "empty"),
            (r#"{"default": [{"type": "reject"}], "more": 1}"#, "more"),
            (r#"{"default": [{"type": "reject"}], "default": [{"type": "reject"}]}"#, "default"),
            (r#"{"default": [{"type": "reject"}], "transports": {"dokcer": {}}}"#, "dokcer"),
            (r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": []}}}"#, "empty"),
            (
                r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": [{"type": "reject"}],
                    "a": [{"type": "insecureAcceptAnything"}]}}}"#,
                "twice",
            ),
        ] {
            let error = policy(text).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_mistake_in_a_scope_is_found_on_its_line() {
        let text = "{\"default\": [{\"type\": \"reject\"}],\n\"transports\": {\"docker\": {\n\
                    \"r.example\": [{\"type\": \"sigstoreSigned\", \"keyPath\": \"/none\"}]}}}";
        let error = policy(text).unwrap_err().to_string();
        assert!(error.starts_with("policy.json:3: r.example: "), "{error}");
    }

    #[test]
    fn other_transports_are_left_alone() {
        let text = json!({
            "default": [{"type": "reject"}],
            "transports": {
                "docker-daemon": {"": [{"type": "insecureAcceptAnything"}]},
                "atomic": {"a": [{"type": "sigstoreSigned", "fulcio": {}}]},
            },
        });
        assert!(policy(&text.to_string()).unwrap().scopes.is_empty());
    }
}
