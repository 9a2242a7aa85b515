//! Signatures over images, made by the tools that people sign with: GnuPG and skopeo for simple
//! signing. For sigstore it is openssl and a push, as Debian's skopeo signs none.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Registry;
use crate::image::Packed;
use crate::layer::digest;
use crate::registry::Pushed;

/// Keys without a passphrase, and nobody to ask for one.
const UNPROTECTED: [&str; 4] = ["--pinentry-mode", "loopback", "--passphrase", ""];

/// A key of GnuPG's in a home of its own.
pub struct GpgKey {
    home: TempDir,
    fingerprint: String,
}

impl GpgKey {
    /// `algorithm` as gpg knows it: `rsa2048`, `ed25519`, `nistp256`.
    pub fn new(algorithm: &str) -> Self {
        Self::generate(algorithm, "sign")
    }

    /// One that certifies and leaves signing to a subkey.
    pub fn with_subkey(algorithm: &str) -> Self {
        let key = Self::generate(algorithm, "cert");
        let add = ["--quick-add-key", &key.fingerprint, algorithm, "sign", "never"];
        run(key.gpg().args(UNPROTECTED).args(add));
        key
    }

    fn generate(algorithm: &str, usage: &str) -> Self {
        // Short, for the agent's sockets lie in it.
        let home = tempfile::Builder::new().prefix("gpg-").tempdir_in("/tmp");
        let mut key = Self { home: home.expect("there is a /tmp"), fingerprint: String::new() };
        let generate = ["--quick-generate-key", "signer", algorithm, usage, "never"];
        run(key.gpg().args(UNPROTECTED).args(generate));
        let listed = run(key.gpg().args(["--with-colons", "--list-keys"]));
        let listed = String::from_utf8(listed).expect("gpg lists in UTF-8");
        let line = listed.lines().find(|line| line.starts_with("fpr:")).expect("a fingerprint");
        line.split(':').nth(9).expect("in its tenth field").clone_into(&mut key.fingerprint);
        key
    }

    /// The public key, armoured.
    pub fn public(&self) -> Vec<u8> {
        run(self.gpg().args(["--armor", "--export"]))
    }

    /// Signs an image of a registry as `identity`; the signature goes to the lookaside store in
    /// `folder`.
    #[track_caller]
    pub fn sign(&self, reference: &str, identity: &str, folder: &Path) {
        let config = self.home.path().join("registries.d");
        fs_err::create_dir_all(&config).expect("own folder");
        let staging =
            format!("default-docker:\n  lookaside-staging: file://{}\n", folder.display());
        fs_err::write(config.join("staging.yaml"), staging).expect("own folder");
        let image = format!("docker://{reference}");
        run(Command::new("skopeo")
            .env("GNUPGHOME", self.home.path())
            .args(["--insecure-policy", "--registries.d"])
            .arg(&config)
            .args(["copy", "--preserve-digests", "--all", "--src-tls-verify=false"])
            .args(["--dest-tls-verify=false", "--sign-by", &self.fingerprint])
            .args(["--sign-identity", identity, &image, &image]));
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", self.home.path()).args(["--batch", "--quiet"]);
        gpg
    }
}

impl Drop for GpgKey {
    fn drop(&mut self) {
        let mut stop = Command::new("gpgconf");
        let _ = stop.env("GNUPGHOME", self.home.path()).args(["--kill", "all"]).status();
    }
}

/// A key pair as cosign has it: ECDSA on P-256.
pub struct SigstoreKey {
    folder: TempDir,
}

impl Default for SigstoreKey {
    fn default() -> Self {
        Self::new()
    }
}

impl SigstoreKey {
    pub fn new() -> Self {
        let key = Self { folder: TempDir::new().expect("the temporary folder is writable") };
        let kind = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
        run(Command::new("openssl").args(kind).arg("-out").arg(key.private()));
        key
    }

    /// The public key in PEM.
    pub fn public(&self) -> Vec<u8> {
        run(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(self.private()))
    }

    /// Attaches to `image` a signature that calls it `identity`.
    pub fn sign(&self, registry: &Registry, image: &Pushed, identity: &str) {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": identity},
                "image": {"docker-manifest-digest": image.digest},
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        self.attach(registry, image, payload.to_string().into_bytes());
    }

    /// Attaches to `image` this payload, signed.
    pub fn attach(&self, registry: &Registry, image: &Pushed, payload: Vec<u8>) {
        let file = self.folder.path().join("payload");
        fs_err::write(&file, &payload).expect("own folder");
        let sign = ["dgst", "-sha256", "-sign"];
        let signature = run(Command::new("openssl").args(sign).arg(self.private()).arg(&file));
        let config = b"{}".to_vec();
        let described = |media_type: &str, blob: &[u8]| json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()});
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let mut layer = described("application/vnd.dev.cosign.simplesigning.v1+json", &payload);
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(signature)});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": [layer],
        });
        let packed = Packed {
            blobs: vec![config, payload],
            manifest: manifest.to_string().into_bytes(),
            media_type: media_type.to_owned(),
            id: String::new(),
            layers: vec![],
        };
        let (repository, _) = repository_and_tag(registry, &image.reference);
        registry.push_packed(
            repository,
            &packed,
            &format!("{}.sig", image.digest.replace(':', "-")),
        );
    }

    fn private(&self) -> PathBuf {
        self.folder.path().join("private.pem")
    }
}

/// Where simple signatures of `image` are in a lookaside store.
pub fn lookaside(store: &Path, registry: &Registry, image: &Pushed) -> PathBuf {
    let (repository, _) = repository_and_tag(registry, &image.reference);
    store.join(format!("{repository}@{}", image.digest.replace(':', "=")))
}

/// A requirement of a policy: signed by the one or the other.
pub fn signed_by(key: &GpgKey) -> Value {
    let key = BASE64_STANDARD.encode(key.public());
    json!([{"type": "signedBy", "keyType": "GPGKeys", "keyData": key}])
}

pub fn sigstore_signed(key: &SigstoreKey) -> Value {
    json!([{"type": "sigstoreSigned", "keyData": BASE64_STANDARD.encode(key.public())}])
}

fn repository_and_tag<'a>(registry: &Registry, reference: &'a str) -> (&'a str, &'a str) {
    let name = reference.strip_prefix(registry.address()).expect("of this registry");
    name.trim_start_matches('/').rsplit_once(':').expect("it has a tag")
}

/// What the command says; panics with its errors if it fails.
#[track_caller]
fn run(command: &mut Command) -> Vec<u8> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {errors}");
    done.stdout
}
