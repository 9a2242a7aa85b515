//! Fetches an image's signatures: simple ones from a lookaside store (or a directory), sigstore's
//! from where they are attached in the image's own repository.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tracing::debug;

use super::evidence::{MOST_SIGNATURES, bound};
use super::payload::LARGEST_PAYLOAD;
use super::places::SignaturePlaces;
use super::policy::{Signature, Wanted};
use crate::blob::Descriptor;
use crate::digest::Digest;
use crate::error::Error;
use crate::layer;
use crate::progress::Meter;
use crate::reference::Reference;
use crate::registry::{Connections, Session};

/// In base64; that of the largest key is shorter.
const LONGEST_SIGNATURE: usize = 4 << 10;

/// What marks a blob as the payload of a signature, and where the signature is.
const ATTACHED_PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ATTACHED_SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Whose signatures, and where to look.
pub(crate) struct Source<'a> {
    pub(crate) connections: &'a Connections,
    pub(crate) session: &'a Session,
    pub(crate) places: &'a SignaturePlaces,
    /// Where the image is read from: a mirror has its own signatures.
    pub(crate) repository: &'a Reference,
    pub(crate) manifests: &'a [Digest],
    /// Counts what comes from the registry.
    pub(crate) meter: Meter,
}

/// What there is of the wanted kinds.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) signatures: Vec<Signature>,
    /// Of which kinds these are all.
    pub(crate) fetched: Wanted,
}

/// All signatures of the wanted kinds. That some cannot be had is an error only if their kind is
/// required: they may be wanted for the sake of others.
pub(crate) async fn gather(
    source: &Source<'_>,
    wanted: Wanted,
    required: Wanted,
) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    if wanted.simple {
        gathered.fetched.simple = gathered.take(source.simple().await, required.simple)?;
    }
    if wanted.sigstore && source.places.has_attachments(source.repository) {
        gathered.fetched.sigstore = gathered.take(source.attached().await, required.sigstore)?;
    }
    bound(&mut gathered.signatures);
    Ok(gathered)
}

impl Gathered {
    /// Tells whether there was an answer.
    fn take(
        &mut self,
        answer: Result<Vec<Signature>, Error>,
        is_required: bool,
    ) -> Result<bool, Error> {
        match answer {
            Ok(found) => {
                self.signatures.extend(found);
                Ok(true)
            }
            Err(error) if is_required => Err(error),
            Err(error) => {
                debug!(%error, "cannot fetch signatures that this pull does not need");
                Ok(false)
            }
        }
    }
}

impl Source<'_> {
    /// They are numbered from one, without a gap.
    async fn simple(&self) -> Result<Vec<Signature>, Error> {
        let mut signatures = Vec::new();
        for manifest in self.manifests {
            let base = self.places.lookaside(self.repository, *manifest);
            for number in 1..=MOST_SIGNATURES {
                let name = format!("signature-{number}");
                let url = base.join(&name).expect("a name is a relative URL");
                let Some(message) = self.file(&url).await? else { break };
                signatures.push(Signature::Simple { message });
            }
        }
        Ok(signatures)
    }

    async fn file(&self, url: &Url) -> Result<Option<Vec<u8>>, Error> {
        let image = self.session.image();
        if url.scheme() != "file" {
            return self.connections.file(url, LARGEST_PAYLOAD as u64, image).await;
        }
        let path = url.to_file_path().unwrap_or_else(|()| PathBuf::from(url.path()));
        let read = read_bounded(&path).await.map_err(|error| Error::RegistryUnavailable {
            image: image.to_owned(),
            retry_after: None,
            source: Arc::new(io::Error::other(format!("{}: {error}", path.display()))),
        })?;
        match read {
            Some(message) if message.len() > LARGEST_PAYLOAD => Err(Error::Unsupported {
                image: image.to_owned(),
                what: format!("a signature of more than {LARGEST_PAYLOAD} bytes"),
            }),
            read => Ok(read),
        }
    }

    async fn attached(&self) -> Result<Vec<Signature>, Error> {
        let mut signatures = Vec::new();
        for manifest in self.manifests {
            let tag = format!("sha256-{}.sig", manifest.hex());
            let attached = match self.session.manifest(Some(&tag), None).await {
                Ok((bytes, _)) => attached(&bytes).map_err(|error| Error::Corrupt {
                    image: self.session.image().to_owned(),
                    what: "the list of its signatures".to_owned(),
                    source: Arc::new(error),
                })?,
                Err(Error::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            for (blob, signature) in attached {
                let payload =
                    layer::fetch_small(self.session, &blob, "a signature", self.meter.clone())
                        .await?;
                signatures.push(Signature::Sigstore { payload, signature });
            }
        }
        Ok(signatures)
    }
}

/// None if there is no such file; one byte more than a signature may have if it has more.
async fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match tokio::fs::File::open(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut content = Vec::new();
    file.take(LARGEST_PAYLOAD as u64 + 1).read_to_end(&mut content).await?;
    Ok(Some(content))
}

#[derive(Deserialize)]
struct AttachmentManifest {
    #[serde(default)]
    layers: Vec<Attachment>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(flatten)]
    blob: Descriptor,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The payloads in a manifest of attachments, each with its signature; other things may be attached
/// too. Pure.
pub(super) fn attached(bytes: &[u8]) -> Result<Vec<(Descriptor, String)>, serde_json::Error> {
    let AttachmentManifest { layers } = serde_json::from_slice(bytes)?;
    let attached = layers.into_iter().filter_map(|Attachment { blob, mut annotations }| {
        let is_payload = blob.media_type == ATTACHED_PAYLOAD && blob.size <= LARGEST_PAYLOAD as u64;
        let signature = annotations.remove(ATTACHED_SIGNATURE)?;
        (is_payload && signature.len() <= LONGEST_SIGNATURE).then_some((blob, signature))
    });
    Ok(attached.take(MOST_SIGNATURES).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn no_more_of_a_file_is_read_than_a_signature_may_have() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signature-1");
        assert_eq!(read_bounded(&path).await.unwrap(), None);
        for (size, expected) in
            [(9, 9), (LARGEST_PAYLOAD, LARGEST_PAYLOAD), (1 << 20, LARGEST_PAYLOAD + 1)]
        {
            fs_err::write(&path, vec![0; size]).unwrap();
            let read = read_bounded(&path).await.unwrap();
            assert_eq!(read.map(|content| content.len()), Some(expected), "{size}");
        }
        read_bounded(folder.path()).await.unwrap_err();
    }

    #[test]
    fn only_payloads_with_a_signature_are_taken_from_attachments() {
        let digest = Digest::of(b"p");
        let layer = |media_type: &str, size: u64, key: &str| {
            json!({"mediaType": media_type, "digest": digest, "size": size,
                   "annotations": {key: "c2ln", "other": "x"}})
        };
        let good = layer(ATTACHED_PAYLOAD, 200, ATTACHED_SIGNATURE);
        let attachments = json!({"schemaVersion": 2, "layers": [
            layer("text/plain", 200, ATTACHED_SIGNATURE),
            good,
            layer(ATTACHED_PAYLOAD, 1 << 20, ATTACHED_SIGNATURE),
            layer(ATTACHED_PAYLOAD, 200, "unsigned"),
            {"mediaType": ATTACHED_PAYLOAD, "digest": digest, "size": 1},
        ]});
        let found = attached(&serde_json::to_vec(&attachments).unwrap()).unwrap();
        let [(blob, signature)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((blob.digest, blob.size, signature.as_str()), (digest, 200, "c2ln"));
        let many = json!({"layers": vec![good; 1000]});
        assert_eq!(attached(&serde_json::to_vec(&many).unwrap()).unwrap().len(), MOST_SIGNATURES);
        for wrong in ["", "1", r#"{"layers": [{}]}"#] {
            assert!(attached(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
