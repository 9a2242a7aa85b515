//! A real registry: Debian's docker-registry on a port of its own on loopback.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use tempfile::TempDir;

use crate::artifact::Artifact;
use crate::blocking::block_on;
use crate::daemon::Daemon;
use crate::image::{Image, Index, Packed};
use crate::layer::digest;

/// Name and password of the users of a private registry.
pub const ALICE: (&str, &str) = ("alice", "wonderland");
pub const BOB: (&str, &str) = ("bob", "builder");

/// The same two as bcrypt hashes, the only ones docker-registry reads.
const HTPASSWD: &str = "\
alice:$2b$05$abcdefghijklmnopqrstuuA0vov2GDneHB3.8.cv9UF9g.RdvScIW
bob:$2b$05$abcdefghijklmnopqrstuu3wiKDIdUrAhSFkvcAcWHGTjN7vc525q
";

const READY: Duration = Duration::from_secs(20);

pub struct Registry {
    daemon: Daemon,
    folder: TempDir,
    address: String,
    http: Client,
    private: bool,
}

/// An image as it was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// `address/repository:tag`.
    pub reference: String,
    /// `address/repository@digest`.
    pub by_digest: String,
    /// Of the manifest or index.
    pub digest: String,
    /// The image's id: the digest of its configuration; of the first image of an index.
    pub id: String,
}

impl Registry {
    /// A registry that lets everybody in.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// A registry that asks for basic authentication: [`ALICE`] or [`BOB`], who see the same.
    pub fn start_private() -> Self {
        Self::start_with(true)
    }

    fn start_with(private: bool) -> Self {
        // Another crate of the workspace builds reqwest with TLS and leaves this to its users; when
        // it is done already it need not be done again.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::Builder::new().prefix("cria-registry-").tempdir();
        let folder = folder.expect("the temporary folder is writable");
        let mut registry = Self {
            daemon: Daemon::new("docker-registry", folder.path().join("log")),
            folder,
            address: "127.0.0.1:0".to_owned(),
            http: Client::new(),
            private,
        };
        registry.resume();
        registry
    }

    /// `127.0.0.1:PORT`, the same over all its starts.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `address/repository:tag` of this registry.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Takes the registry down; connections are refused until [`Registry::resume`].
    pub fn stop(&mut self) {
        self.daemon.kill9();
    }

    /// Starts it again, at the same address and with what it held.
    pub fn resume(&mut self) {
        let config = self.folder.path().join("config.yml");
        fs_err::write(&config, self.config()).expect("own folder");
        let heard = self.daemon.log().len();
        self.daemon.start(Command::new("docker-registry").arg("serve").arg(&config));
        let log = self.daemon.log_file().to_owned();
        self.address = self.daemon.await_ready(READY, || listening(&log, heard));
    }

    /// Every request so far, as `METHOD PATH STATUS`, in order.
    pub fn requests(&self) -> Vec<String> {
        self.daemon.log().lines().filter_map(request).collect()
    }

    /// Pushes `image` as `repository:tag`.
    pub fn push(&self, name: &str, image: &Image) -> Pushed {
        let packed = image.pack();
        let (repository, tag) = split(name);
        self.push_packed(repository, &packed, tag)
    }

    /// Pushes `artifact` as `repository:tag`.
    pub fn push_artifact(&self, name: &str, artifact: &Artifact) -> Pushed {
        let (repository, tag) = split(name);
        self.push_packed(repository, &artifact.pack(), tag)
    }

    /// Pushes all images of `index` by digest, and the index as `repository:tag`.
    pub fn push_index(&self, name: &str, index: &Index) -> Pushed {
        let (repository, tag) = split(name);
        let (images, manifest, media_type) = index.pack();
        for packed in &images {
            self.push_packed(repository, packed, &digest(&packed.manifest));
        }
        self.put_manifest(repository, tag, &media_type, manifest.clone());
        let id = images.first().map(|packed| packed.id.clone()).unwrap_or_default();
        self.pushed(repository, tag, &manifest, id)
    }

    /// Pushes what was packed before, and maybe spoilt since: manifests that name what is not
    /// there are refused by the registry, others are taken as they are.
    pub fn push_packed(&self, repository: &str, packed: &Packed, tag: &str) -> Pushed {
        for blob in &packed.blobs {
            self.put_blob(repository, blob);
        }
        self.put_manifest(repository, tag, &packed.media_type, packed.manifest.clone());
        self.pushed(repository, tag, &packed.manifest, packed.id.clone())
    }

    /// What it holds, which another one may serve, too.
    pub fn storage(&self) -> std::path::PathBuf {
        self.folder.path().join("storage")
    }

    /// Where the registry keeps the blob with this digest, for tests that spoil it.
    pub fn blob_file(&self, digest: &str) -> std::path::PathBuf {
        let hash = digest.trim_start_matches("sha256:");
        let blobs = self.storage().join("docker/registry/v2/blobs/sha256");
        blobs.join(&hash[..2]).join(hash).join("data")
    }

    fn pushed(&self, repository: &str, tag: &str, manifest: &[u8], id: String) -> Pushed {
        let digest = digest(manifest);
        Pushed {
            reference: format!("{}/{repository}:{tag}", self.address),
            by_digest: format!("{}/{repository}@{digest}", self.address),
            digest,
            id,
        }
    }

    fn put_blob(&self, repository: &str, blob: &[u8]) {
        let digest = digest(blob);
        let known = self.http.head(self.url(&format!("{repository}/blobs/{digest}")));
        if self.send(known).0 == StatusCode::OK {
            return;
        }
        let begin = self.http.post(self.url(&format!("{repository}/blobs/uploads/")));
        let (status, location) = self.send(begin);
        assert_eq!(status, StatusCode::ACCEPTED, "begin of an upload to {repository}");
        let location = location.expect("an upload has a location");
        let mut upload = Url::parse(&location).expect("the registry answers with whole URLs");
        upload.query_pairs_mut().append_pair("digest", &digest);
        let (status, _) = self.send(self.http.put(upload).body(blob.to_vec()));
        assert_eq!(status, StatusCode::CREATED, "upload of {digest} to {repository}");
    }

    fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: Vec<u8>) {
        let put = self.http.put(self.url(&format!("{repository}/manifests/{tag}")));
        let put = put.header("Content-Type", media_type).body(manifest);
        let (status, _) = self.send(put);
        assert_eq!(status, StatusCode::CREATED, "manifest of {repository}:{tag}");
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.address)
    }

    /// The answer's status and its Location.
    fn send(&self, request: RequestBuilder) -> (StatusCode, Option<String>) {
        let request =
            if self.private { request.header("Authorization", basic(ALICE)) } else { request };
        let answer = block_on(request.send()).expect("the registry answers");
        let location = answer.headers().get("Location").and_then(|value| value.to_str().ok());
        (answer.status(), location.map(str::to_owned))
    }

    fn config(&self) -> String {
        let folder = self.folder.path().display();
        let mut config = format!(
            "version: 0.1\n\
             log: {{ level: info, accesslog: {{ disabled: false }} }}\n\
             storage:\n  filesystem: {{ rootdirectory: {folder}/storage }}\n  delete: {{ enabled: true }}\n\
             http: {{ addr: '{}' }}\n",
            self.address
        );
        if self.private {
            let passwords = self.folder.path().join("htpasswd");
            fs_err::write(&passwords, HTPASSWD).expect("own folder");
            config +=
                &format!("auth: {{ htpasswd: {{ realm: tests, path: {folder}/htpasswd }} }}\n");
        }
        config
    }
}

/// The header that says who asks.
pub fn basic((name, password): (&str, &str)) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

/// `repository:tag` in two; `latest` if there is no tag.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once(':').unwrap_or((name, "latest"))
}

/// The address in the log's line "listening on ADDRESS", after what was `heard` before.
fn listening(log: &Path, heard: usize) -> Option<String> {
    let log = fs_err::read_to_string(log).ok()?;
    let rest = log.get(heard..)?.split_once("listening on ")?.1;
    let address: String =
        rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    // The line may be only half written.
    rest.len().gt(&address.len()).then_some(address)
}

/// A line of the access log (the common log format) as `METHOD PATH STATUS`.
fn request(line: &str) -> Option<String> {
    let mut parts = line.split('"');
    let request = parts.nth(1)?.strip_suffix(" HTTP/1.1")?;
    let status = parts.next()?.split_whitespace().next()?;
    status.parse::<u16>().ok()?;
    Some(format!("{request} {status}"))
}

#[cfg(test)]
mod tests {
    use super::{request, split};

    #[test]
    fn the_access_log_is_told_from_the_other_lines() {
        let access = r#"127.0.0.1 - - [24/Nov/2026:00:10:20 +0000] "GET /v2/a/manifests/1 HTTP/1.1" 200 512 "" "x""#;
        assert_eq!(request(access).as_deref(), Some("GET /v2/a/manifests/1 200"));
        for other in ["", r#"time="2026" level=info msg="listening on 127.0.0.1:5""#] {
            assert_eq!(request(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_without_a_tag_means_the_latest() {
        assert_eq!(split("a/b:c"), ("a/b", "c"));
        assert_eq!(split("a/b"), ("a/b", "latest"));
    }
}
