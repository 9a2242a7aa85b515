//! Credentials: the caller's, and the node's own from `auth.json`.

mod helper;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::Error;
use crate::reference::Reference;

/// Who asks. Never printed: `Debug` shows the kind alone.
#[derive(Clone, Default, Eq, PartialEq)]
pub enum Credentials {
    /// The caller brought none.
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// A token for the registry itself, sent as it is.
    Bearer {
        token: String,
    },
    /// A token that buys others, by the OAuth2 flow.
    Identity {
        token: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(..)",
            Self::Bearer { .. } => "Bearer(..)",
            Self::Identity { .. } => "Identity(..)",
        })
    }
}

/// The fields of the CRI's `AuthConfig`; empty means not given.
#[derive(Clone, Copy, Default)]
pub struct AuthFields<'a> {
    pub username: &'a str,
    pub password: &'a str,
    /// Base64 of `username:password`.
    pub auth: &'a str,
    pub identity_token: &'a str,
    pub registry_token: &'a str,
}

impl Credentials {
    /// Chooses as the kubelet's other runtimes do: a registry token, then an identity token, then
    /// user and password, then `auth`.
    pub fn from_fields(fields: AuthFields<'_>) -> Result<Self, Error> {
        if !fields.registry_token.is_empty() {
            return Ok(Self::Bearer { token: fields.registry_token.to_owned() });
        }
        if !fields.identity_token.is_empty() {
            return Ok(Self::Identity { token: fields.identity_token.to_owned() });
        }
        if !fields.username.is_empty() {
            let (username, password) = (fields.username.to_owned(), fields.password.to_owned());
            return Ok(Self::Basic { username, password });
        }
        if !fields.auth.is_empty() {
            return decode(fields.auth).map_err(|reason| Error::Credentials { reason });
        }
        Ok(Self::Anonymous)
    }
}

fn decode(auth: &str) -> Result<Credentials, &'static str> {
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| "auth is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "auth is not UTF-8")?;
    let (username, password) = text.split_once(':').ok_or("auth is not user:password")?;
    // Docker pads with NUL; no password ends in one.
    let password = password.trim_end_matches('\0');
    Ok(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
}

/// The node's `auth.json` (containers-auth.json(5)): by registry or repository, or the names of
/// programs that know.
#[derive(Clone, Default)]
pub struct NodeCredentials {
    entries: Arc<BTreeMap<String, Credentials>>,
    /// By registry.
    helpers: Arc<BTreeMap<String, String>>,
    /// Knows all the others.
    store: Option<Arc<str>>,
    /// What `registries.conf` has asked in turn; empty: the file alone.
    order: Arc<[String]>,
}

/// The file among the helpers of `registries.conf`.
const AUTH_FILE: &str = "containers-auth.json";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

impl NodeCredentials {
    /// Reads `path`. A wrong entry is an error that names it (and never its content). A file that is
    /// not there has no entries: who joins a node to its cluster may write it later.
    pub fn load(path: &Path) -> Result<Self, Error> {
        match fs_err::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::io("read auth.json", error)),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let wrong = |line, key: &str, reason: String| Error::Config {
            file: path.to_owned(),
            line,
            key: key.to_owned(),
            reason,
        };
        let file: File = serde_json::from_str(text).map_err(|error| {
            // The message of serde_json may quote a value, and a value may be a secret.
            wrong(error.line(), "auths", format!("malformed at column {}", error.column()))
        })?;
        let mut entries = BTreeMap::new();
        for (name, entry) in file.auths {
            let fields = AuthFields {
                username: &entry.username,
                password: &entry.password,
                auth: &entry.auth,
                identity_token: &entry.identitytoken,
                registry_token: &entry.registrytoken,
            };
            let credentials = Credentials::from_fields(fields).map_err(|error| {
                let line = text.lines().position(|line| line.contains(&format!("\"{name}\"")));
                wrong(line.map_or(1, |line| line + 1), &name, error.to_string())
            })?;
            entries.insert(key(&name).to_owned(), credentials);
        }
        let named = file.cred_helpers.values().chain([&file.creds_store]);
        if let Some(path) = named.into_iter().find(|name| !is_helper(name)) {
            let reason = format!("{path:?} is not the name of a credential helper");
            return Err(wrong(1, "credHelpers", reason));
        }
        let store = (!file.creds_store.is_empty()).then(|| file.creds_store.into());
        let helpers = file.cred_helpers.into_iter();
        let helpers = helpers.map(|(name, helper)| (key(&name).to_owned(), helper)).collect();
        let (entries, helpers) = (Arc::new(entries), Arc::new(helpers));
        Ok(Self { entries, helpers, store, order: Arc::default() })
    }

    /// Asks `helpers` in turn, among which `containers-auth.json` stands for the file; none of them:
    /// the file alone.
    #[must_use]
    pub fn with_helpers(mut self, helpers: &[String]) -> Self {
        self.order = helpers.into();
        self
    }

    /// The credentials for a repository at a host, from the first who knows some. That another has
    /// failed counts only if nobody does.
    async fn of(&self, host: &str, repository: &str) -> Result<Credentials, Error> {
        if self.order.is_empty() {
            return self.of_file(host, repository).await;
        }
        let mut answer = Ok(Credentials::Anonymous);
        for helper in &*self.order {
            let found = match helper.as_str() {
                AUTH_FILE => self.of_file(host, repository).await,
                helper => helper::ask(helper, host).await,
            };
            match found {
                Ok(Credentials::Anonymous) => {}
                Ok(found) => return Ok(found),
                Err(error) => answer = Err(error),
            }
        }
        answer
    }

    /// The credentials for a repository at a host by the file: its helper's, the longest entry's that contains
    /// it, or the store's.
    async fn of_file(&self, host: &str, repository: &str) -> Result<Credentials, Error> {
        if let Some(helper) = self.helpers.get(host) {
            return helper::ask(helper, host).await;
        }
        match (self.find(host, repository), &self.store) {
            (Credentials::Anonymous, Some(store)) => helper::ask(store, host).await,
            (found, _) => Ok(found),
        }
    }

    fn find(&self, host: &str, repository: &str) -> Credentials {
        let full = format!("{host}/{repository}");
        let mut name = full.as_str();
        loop {
            if let Some(credentials) = self.entries.get(name) {
                return credentials.clone();
            }
            match name.rsplit_once('/') {
                Some((shorter, _)) => name = shorter,
                None => return Credentials::Anonymous,
            }
        }
    }
}

/// A name, not a path: what is run is `docker-credential-NAME`.
pub(crate) fn is_helper(name: &str) -> bool {
    !name.contains(['/', '\0'])
}

/// Old Docker files have URLs for keys, above all `https://index.docker.io/v1/`.
fn key(name: &str) -> &str {
    let scheme = ["https://", "http://"].iter().find_map(|scheme| name.strip_prefix(scheme));
    let key = match scheme {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => name.trim_end_matches('/'),
    };
    if matches!(key, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { key }
}

/// Which credentials go to `host` for `reference`. The caller's are for the registry that the
/// reference names: a mirror must not learn them. The node's go there only if the caller has none;
/// to any other host they are the only ones.
pub(crate) async fn for_endpoint(
    caller: &Credentials,
    node: &NodeCredentials,
    reference: &Reference,
    host: &str,
    repository: &str,
) -> Result<Credentials, Error> {
    match caller {
        Credentials::Basic { .. } | Credentials::Bearer { .. } | Credentials::Identity { .. }
            if host == reference.domain() =>
        {
            Ok(caller.clone())
        }
        Credentials::Anonymous
        | Credentials::Basic { .. }
        | Credentials::Bearer { .. }
        | Credentials::Identity { .. } => node.of(host, repository).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn the_fields_of_a_request_become_credentials() {
        let none = AuthFields::default();
        let token = Credentials::Bearer { token: "t".to_owned() };
        for (fields, expected) in [
            (none, Some(Credentials::Anonymous)),
            (AuthFields { username: "u", password: "p", ..none }, Some(basic("u", "p"))),
            (AuthFields { username: "u", ..none }, Some(basic("u", ""))),
            (AuthFields { auth: "dTpwOnc=", ..none }, Some(basic("u", "p:w"))),
            (AuthFields { auth: "dTpwAAA=", ..none }, Some(basic("u", "p"))),
            (AuthFields { registry_token: "t", username: "u", ..none }, Some(token)),
            (AuthFields { auth: "%", ..none }, None),
            (AuthFields { auth: "dXA=", ..none }, None),
            (
                AuthFields { identity_token: "i", username: "u", ..none },
                Some(Credentials::Identity { token: "i".to_owned() }),
            ),
        ] {
            assert_eq!(Credentials::from_fields(fields).ok(), expected);
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let node = NodeCredentials::parse(
            Path::new("a"),
            r#"{"auths": {"r.example": {"username": "user", "password": "hunter2"}}}"#,
        )
        .unwrap();
        let token = Credentials::Bearer { token: "hunter2".to_owned() };
        let printed = format!("{node:?} {:?} {token:?}", basic("user", "hunter2"));
        assert!(!printed.contains("hunter2") && !printed.contains("user"), "{printed}");
        for text in [r#"{"auths": {"r": {"auth": "hunter2!"}}}"#, r#"{"auths": "hunter2"}"#] {
            let error = NodeCredentials::parse(Path::new("a"), text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn the_longest_entry_of_auth_json_counts() {
        let node = NodeCredentials::parse(
            Path::new("auth.json"),
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aDpw"},
                "r.example": {"auth": "cjpw"},
                "r.example/team": {"auth": "dDpw"},
                "r.example/team/app": {"auth": "YTpw"}
            }, "credHelpers": {}}"#,
        )
        .unwrap();
        for (host, repository, expected) in [
            ("docker.io", "library/nginx", basic("h", "p")),
            ("r.example", "x", basic("r", "p")),
            ("r.example", "teams", basic("r", "p")),
            ("r.example", "team/x", basic("t", "p")),
            ("r.example", "team/app", basic("a", "p")),
            ("r.example", "team/app/deep", basic("a", "p")),
            ("r.example:5000", "team", Credentials::Anonymous),
        ] {
            assert_eq!(node.find(host, repository), expected, "{host}/{repository}");
        }
    }

    #[tokio::test]
    async fn a_callers_credentials_go_to_the_registry_that_it_named_and_nowhere_else() {
        let reference = Reference::parse("r.example/a", None).unwrap();
        let node = NodeCredentials::parse(
            Path::new("a"),
            r#"{"auths": {"m.example": {"auth": "bTpw"}, "r.example": {"auth": "cjpw"}}}"#,
        )
        .unwrap();
        for (caller, host, expected) in [
            (basic("u", "p"), "r.example", basic("u", "p")),
            (basic("u", "p"), "m.example", basic("m", "p")),
            (basic("u", "p"), "x.example", Credentials::Anonymous),
            (Credentials::Anonymous, "m.example", basic("m", "p")),
            (Credentials::Anonymous, "r.example", basic("r", "p")),
            (Credentials::Anonymous, "x.example", Credentials::Anonymous),
        ] {
            let shown = for_endpoint(&caller, &node, &reference, host, "a").await.unwrap();
            assert_eq!(shown, expected, "{host}");
        }
    }

    #[test]
    fn a_helper_is_a_name_and_never_a_path() {
        for text in
            [r#"{"credHelpers": {"r.example": "../../bin/sh"}}"#, r#"{"credsStore": "/bin/sh"}"#]
        {
            let error = NodeCredentials::parse(Path::new("a"), text).unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{error:?}");
        }
    }
}
