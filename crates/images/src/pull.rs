//! Pulling an image: ask, see what is missing, fetch just that.
//!
//! Every caller asks the registry for the manifest itself, with its own credentials: that is what
//! decides whether it may have the image. So it does for the config, whether or not that is held:
//! an id is no secret, and a manifest that names it may be anybody's. Only what these lead to is
//! shared: each layer under way is one job, whoever needs it from that registry (a config: from that
//! repository); a job that nobody waits for any more is stopped. Layers that are complete stay, for
//! everybody.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tracing::warn;

use crate::auth::{self, Credentials};
use crate::blob::{Descriptor, LayerBlob, Refusal};
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::jobs::{Job, JobKey};
use crate::layer::{self, Windows};
use crate::manifest::{
    ArtifactManifest, ImageManifest, MOST_LAYERS, Manifest, mounted, parse_config,
};
use crate::progress::Pull;
use crate::reference::Reference;
use crate::registries::Endpoint;
use crate::registry::Session;
use crate::store::{Image, NewImage, Sources, Store};
use crate::trust::Arrival;

/// Indexes within indexes are legal; this deep they are an attack.
const DEEPEST_INDEX: usize = 3;

/// What to pull, and who asks.
#[derive(Clone, Debug)]
pub struct PullRequest<'a> {
    pub reference: &'a str,
    pub credentials: Credentials,
    /// Of the pod that the image is for: its policy decides. Empty: the node's does.
    pub namespace: &'a str,
}

/// One place to pull from, by the rules of this pull.
#[derive(Clone, Copy)]
struct Place<'a> {
    sources: &'a Sources,
    endpoint: &'a Endpoint,
    /// There is no other to be asked after it.
    is_last: bool,
}

/// What one caller wants.
#[derive(Clone, Copy)]
struct Asked<'a> {
    name: &'a Reference,
    namespace: &'a str,
    pull: &'a Arc<Pull>,
}

/// An image as its registry describes it.
struct Described {
    /// What the reference led to, and what that led to.
    manifests: Vec<Digest>,
    /// The manifest itself, its bytes as text.
    text: String,
    kind: Kind,
}

/// What a manifest is of.
enum Kind {
    Image(ImageManifest),
    Artifact(ArtifactManifest),
}

/// What an image consists of.
struct Contents {
    id: ImageId,
    /// None for an artifact.
    config: Option<Arc<[u8]>>,
    /// Bottom first.
    layers: Vec<LayerBlob>,
    /// Kept until the image is stored: others who ask find its config there.
    _job: Option<Arc<Job<Arc<[u8]>>>>,
}

impl Store {
    /// Pulls an image, asking each of its endpoints in turn, and returns it as it is listed.
    ///
    /// Dropping the future gives the pull up: no image appears, downloads that nobody else waits
    /// for stop, layers that are complete stay for the next try.
    pub async fn pull(&self, request: PullRequest<'_>) -> Result<Arc<Image>, Error> {
        let sources = self.sources();
        let reference = sources.registries.reference(request.reference)?;
        sources.trust.check_name(&reference, request.namespace)?;
        let pull = self.shared.progress.begin(&reference);
        let asked = Asked { name: &reference, namespace: request.namespace, pull: &pull };
        let answer = self.pull_in_turn(asked, &request.credentials, &sources).await;
        pull.end(&answer);
        answer
    }

    /// Asks each endpoint, until one has the image or fails in a way that all would: in their order, but
    /// last of all those that have just kept somebody waiting in vain.
    async fn pull_in_turn(
        &self,
        asked: Asked<'_>,
        credentials: &Credentials,
        sources: &Sources,
    ) -> Result<Arc<Image>, Error> {
        let reference = asked.name;
        let mut endpoints = sources.registries.endpoints(reference)?;
        endpoints.sort_by_key(|endpoint| sources.connections.is_avoided(endpoint));
        let mut endpoints = endpoints.into_iter().peekable();
        let mut answer = Err(Error::NoSuchImage { image: reference.to_string() });
        while let Some(endpoint) = endpoints.next() {
            let credentials = auth::for_endpoint(
                credentials,
                &sources.node_credentials,
                reference,
                &endpoint.host,
                &endpoint.repository,
            );
            let is_last = endpoints.peek().is_none();
            let place = Place { sources, endpoint: &endpoint, is_last };
            answer = match credentials.await {
                Ok(credentials) => self.pull_from(place, credentials, asked).await,
                Err(error) => Err(error),
            };
            if let Err(Error::RegistryUnavailable { .. }) = &answer {
                sources.connections.forget_scheme(&endpoint);
            }
            match &answer {
                Err(error) if error.may_differ_elsewhere() && !is_last => {
                    warn!(image = %reference, mirror = endpoint.host, %error, "mirror failed");
                }
                Ok(_) | Err(_) => break,
            }
        }
        answer
    }

    async fn pull_from(
        &self,
        Place { sources, endpoint, is_last }: Place<'_>,
        credentials: Credentials,
        Asked { name: reference, namespace, pull }: Asked<'_>,
    ) -> Result<Arc<Image>, Error> {
        let image = reference.to_string();
        let session = Session::open(&sources.connections, endpoint, credentials, &image).await?;
        let session = Arc::new(if is_last { session.into_last_resort() } else { session });
        let described = self.describe(&session, reference).await?;
        let evidence = self
            .admit(Arrival {
                sources,
                session: &session,
                endpoint,
                name: reference,
                manifests: &described.manifests,
                namespace,
            })
            .await?;
        let Contents { id, config, layers, _job } = self.contents(&session, &described).await?;
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        self.verify(id, mounted(diff_ids.iter().copied())).await?;
        let pins = self.pin(mounted(diff_ids.iter().copied()));
        pull.plan(layers.clone());
        if let Err(error) = self.fetch_layers(&session, layers, pull).await {
            drop(pins);
            self.shared.fail_pull(&error);
            return Err(error);
        }
        let store = self.clone();
        let reference = reference.clone();
        // Dropped with this future: a pull that was given up adds no image.
        let wanted = Arc::new(());
        let still_wanted = Arc::downgrade(&wanted);
        let committing = tokio::task::spawn_blocking(move || {
            let config = config
                .as_ref()
                .map(|config| std::str::from_utf8(config).expect("JSON that was parsed is UTF-8"));
            let stored = store.shared.commit_image(&NewImage {
                id,
                reference: &reference,
                pulled: described.manifests[0],
                manifest: &described.text,
                config,
                layers: diff_ids,
                evidence,
                wanted: still_wanted,
            });
            drop(pins);
            stored.inspect_err(|error| store.shared.fail_pull(error))
        });
        committing
            .await
            .map_err(|panic| Error::io("store an image", std::io::Error::other(panic)))?
    }

    /// Asks for the manifest; through an index, for that of this platform.
    async fn describe(&self, session: &Session, name: &Reference) -> Result<Described, Error> {
        let image = session.image();
        let (mut bytes, pulled) = session.manifest(name.tag(), name.digest()).await?;
        let mut manifests = vec![pulled];
        for _ in 0..DEEPEST_INDEX {
            let parsed = Manifest::parse(&bytes, &self.shared.options.platform);
            match parsed.map_err(|refusal| refused(image, "manifest", refusal))? {
                Manifest::Image(manifest) => {
                    let kind = Kind::Image(manifest);
                    return Ok(Described { manifests, text: text(&bytes), kind });
                }
                Manifest::Artifact(manifest) => {
                    let kind = Kind::Artifact(manifest);
                    return Ok(Described { manifests, text: text(&bytes), kind });
                }
                Manifest::Index(entry) => {
                    (bytes, _) = session.manifest(None, Some(entry.digest)).await?;
                    manifests.push(entry.digest);
                }
            }
        }
        Err(Error::Unsupported { image: image.to_owned(), what: "nested indexes".to_owned() })
    }

    /// An image's config says what its layers must be; an artifact's is not asked for.
    async fn contents(
        &self,
        session: &Arc<Session>,
        described: &Described,
    ) -> Result<Contents, Error> {
        match &described.kind {
            Kind::Image(manifest) => {
                let (config, job) = self.config_of(session, &manifest.config).await?;
                let refuse = |refusal| refused(session.image(), "config", refusal);
                let parsed = parse_config(&config).map_err(refuse)?;
                let layers = manifest.layers(&parsed).map_err(refuse)?;
                let id = manifest.config.digest.into();
                Ok(Contents { id, config: Some(config), layers, _job: Some(job) })
            }
            Kind::Artifact(manifest) => {
                let refuse = |refusal| refused(session.image(), "manifest", refusal);
                let layers = manifest.layers().map_err(refuse)?;
                let id = Digest::of(described.text.as_bytes()).into();
                Ok(Contents { id, config: None, layers, _job: None })
            }
        }
    }

    async fn config_of(
        &self,
        session: &Arc<Session>,
        blob: &Descriptor,
    ) -> Result<(Arc<[u8]>, Arc<Job<Arc<[u8]>>>), Error> {
        let fetch = || {
            let (session, blob) = (Arc::clone(session), blob.clone());
            let meter = self.shared.progress.meter();
            async move { Ok(layer::fetch_small(&session, &blob, "the config", meter).await?.into()) }
        };
        let source = session.repository();
        let key = JobKey { source, blob: blob.digest, makes: blob.digest };
        self.shared.config_jobs.run(key, fetch).await
    }

    /// Sees to it that every layer is here. The largest begins first: it takes longest.
    async fn fetch_layers(
        &self,
        session: &Arc<Session>,
        mut layers: Vec<LayerBlob>,
        pull: &Arc<Pull>,
    ) -> Result<(), Error> {
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.blob.size));
        let parallel = self.shared.options.parallel_layers.get();
        futures_util::stream::iter(layers)
            .map(|layer| self.clone().fetch_layer(Arc::clone(session), layer, Arc::clone(pull)))
            .buffer_unordered(parallel)
            .try_collect()
            .await
    }

    async fn fetch_layer(
        self,
        session: Arc<Session>,
        layer: LayerBlob,
        pull: Arc<Pull>,
    ) -> Result<(), Error> {
        if self.has_layer(layer.diff_id) {
            self.shared.progress.layer_was_held();
            return Ok(());
        }
        let fetch = || {
            let (store, session, layer) = (self.clone(), Arc::clone(&session), layer.clone());
            // The pull itself may end before the job does, which others wait for, too.
            let (id, windows) = (pull.id, pull.windows.clone());
            async move {
                let _slot = store.shared.shares.acquire(id).await;
                store.make_layer(&session, &layer, windows).await
            }
        };
        let source = session.registry();
        let key = JobKey { source, blob: layer.blob.digest, makes: layer.diff_id };
        self.shared.layer_jobs.run(key, fetch).await.map(drop)
    }

    async fn make_layer(
        &self,
        session: &Session,
        layer: &LayerBlob,
        windows: Windows,
    ) -> Result<(), Error> {
        let image = session.image().to_owned();
        let failed = |error| Error::writing(&image, "store a layer", error);
        // It may have come while this waited for its turn.
        if self.has_layer(layer.diff_id) {
            return Ok(());
        }
        layer::check_size(&image, layer, &self.shared.options.limits)?;
        let directory = self.shared.incoming_layer().map_err(failed)?;
        let root: Arc<std::path::Path> = directory.join("fs").into();
        let (shared, diff_id) = (Arc::clone(&self.shared), layer.diff_id);
        let committed_image = image.clone();
        let bounds = layer::Bounds {
            limits: self.shared.options.limits,
            windows,
            meter: self.shared.progress.layer_meter(layer.diff_id),
        };
        let fetched = layer::fetch(session, layer, root, bounds, move |unpacked| {
            let committed = unpacked.and_then(|unpacked| {
                let committed = shared.commit_layer(diff_id, &directory, &unpacked);
                committed.map_err(|error| Error::writing(&committed_image, "store a layer", error))
            });
            committed.inspect_err(|_| shared.abandon(&directory))
        });
        fetched.await.inspect(|()| self.shared.progress.layer_was_fetched())
    }
}

fn text(bytes: &Bytes) -> String {
    // It was parsed as JSON, so it is UTF-8.
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(image: &str, what: &str, refusal: Refusal) -> Error {
    let image = image.to_owned();
    match refusal {
        Refusal::Unsupported(what) => Error::Unsupported { image, what },
        Refusal::TooManyLayers(layers) => Error::TooManyLayers { image, layers, most: MOST_LAYERS },
        Refusal::Malformed(_) | Refusal::Inconsistent(_) => {
            Error::Corrupt { image, what: what.to_owned(), source: Arc::new(refusal) }
        }
    }
}
