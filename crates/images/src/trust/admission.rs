//! The two moments at which a store asks the policy: when an image is pulled, and when it is used.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Trust;
use super::evidence::{Evidence, Found};
use super::gather::{Gathered, Source, gather};
use super::policy::{Claim, Policy, Signature};
use crate::digest::Digest;
use crate::error::{Cause, Error};
use crate::reference::Reference;
use crate::registries::Endpoint;
use crate::registry::Session;
use crate::store::{Image, Sources, Store};

/// A pull at the point where its manifests are known and nothing else.
pub(crate) struct Arrival<'a> {
    pub(crate) sources: &'a Sources,
    pub(crate) session: &'a Session,
    pub(crate) endpoint: &'a Endpoint,
    /// As it was asked for.
    pub(crate) name: &'a Reference,
    pub(crate) manifests: &'a [Digest],
    /// Of the pod that it is for; empty if it is for none.
    pub(crate) namespace: &'a str,
}

impl Trust {
    /// Refuses what no signature could help, before anybody is asked for anything.
    pub(crate) fn check_name(&self, name: &Reference, namespace: &str) -> Result<(), Error> {
        self.policy(namespace).check_name(name).map_err(|rejection| rejected(name, rejection))
    }
}

impl Store {
    /// Asks the policy about an image that is being pulled; what is to be kept of the answer's
    /// reasons. Signatures that are kept already and will do are not fetched again.
    pub(crate) async fn admit(&self, arrival: Arrival<'_>) -> Result<Option<Found>, Error> {
        let Arrival { sources, session, endpoint, name, manifests, namespace } = arrival;
        let trust = &sources.trust;
        let policy = trust.policy(namespace);
        let wanted = trust.wanted(name);
        if wanted.is_nothing() {
            check(policy, name, manifests, &[])?;
            return Ok(None);
        }
        let kept = self.evidence(&name.repository(), manifests);
        if let Some(kept) = kept.filter(|kept| kept.has(wanted))
            && check(policy, name, manifests, &kept.signatures).is_ok()
        {
            return Ok(Some(Found::kept(&kept)));
        }
        let read_from = format!("{}/{}", endpoint.host, endpoint.repository);
        let source = Source {
            connections: &sources.connections,
            session,
            places: trust.places(),
            // A location that is no image's name has no scopes of its own.
            repository: &Reference::parse(&read_from, None).unwrap_or_else(|_| name.clone()),
            manifests,
            meter: self.shared.progress.meter(),
        };
        let Gathered { signatures, fetched } = gather(&source, wanted, policy.wanted(name)).await?;
        check(policy, name, manifests, &signatures)?;
        let repository = name.repository();
        let evidence = Evidence { repository, manifests: manifests.to_vec(), signatures };
        Ok(Some(Found { evidence, fetched }))
    }

    /// Whether a pod of `namespace` may use this image, by the policy that now holds for it. To be
    /// asked before a container or a volume is made of it. `name` is what the pod calls the image:
    /// a reference, or an id, or nothing. No IO.
    pub fn check_use(&self, image: &Image, name: &str, namespace: &str) -> Result<(), Error> {
        let sources = self.sources();
        let asked = match name.parse::<Digest>() {
            Ok(_) => None,
            Err(_) => sources.registries.reference(name).ok(),
        };
        sources.trust.check_use(image, asked.as_ref(), namespace, now())
    }
}

fn check(
    policy: &Policy,
    name: &Reference,
    manifests: &[Digest],
    signatures: &[Signature],
) -> Result<(), Error> {
    let claim = Claim { name, manifests, signatures, now: now() };
    policy.check(claim).map_err(|rejection| rejected(name, rejection))
}

fn rejected(name: &Reference, rejection: impl std::error::Error + Send + Sync + 'static) -> Error {
    let source: Cause = Arc::new(rejection);
    Error::SignatureRejected { image: name.to_string(), source }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
