//! What is kept of a pull so that a policy can be asked again, without a network, when the image is
//! used: by another namespace, by another policy, after years.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Trust;
use super::policy::{Claim, Policy, Rejection, Signature, Wanted};
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use crate::store::Image;

/// Evidence of an image comes from each repository and each index that it is pulled by, which is for
/// registries to say and not for us. Beyond this the oldest is forgotten.
const MOST_EVIDENCE: usize = 32;

/// Of all of an image's signatures: its record is read and written whole.
const LARGEST_EVIDENCE: usize = 2 << 20;

/// Of one kind. Nobody signs an image more often; whoever attaches more is not listened to.
pub(super) const MOST_SIGNATURES: usize = 128;

/// Of the signatures of one kind that one pull brings: those of hundreds of usual ones.
const LARGEST_KIND: usize = 512 << 10;

/// What signatures there were when an image was pulled. Part of the image's record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Evidence {
    /// `registry/repository`, by name: not a mirror's.
    pub(crate) repository: String,
    /// What the name led to, and what that led to, down to the image's manifest.
    pub(crate) manifests: Vec<Digest>,
    /// Of any of those; as found, for each check verifies them anew.
    pub(crate) signatures: Vec<Signature>,
}

/// What a pull knows of an image's signatures.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(super) evidence: Evidence,
    /// Of which kinds the pull has seen all that there are. Of the others it knows nothing.
    pub(super) fetched: Wanted,
}

impl Evidence {
    fn size(&self) -> usize {
        self.signatures.iter().map(Signature::size).sum()
    }

    /// Whether there is something of each kind.
    pub(super) fn has(&self, wanted: Wanted) -> bool {
        let simple = self.signatures.iter().any(is_simple);
        let sigstore = self.signatures.iter().any(|signature| !is_simple(signature));
        (simple || !wanted.simple) && (sigstore || !wanted.sigstore)
    }

    /// Whether it is of the same manifest of the same repository.
    fn is_of_same(&self, other: &Self) -> bool {
        self.repository == other.repository && self.manifests == other.manifests
    }
}

impl Found {
    /// What is kept already, which was not fetched again.
    pub(super) fn kept(evidence: &Evidence) -> Self {
        Self { evidence: evidence.clone(), fetched: Wanted::default() }
    }

    /// Adds this to what is kept of the image. What was fetched takes the place of what there was;
    /// signatures of a kind that could not be fetched, or was not asked for, stay: others may need
    /// them, and their store may be down.
    pub(crate) fn add_to(&self, kept: &mut Vec<Arc<Evidence>>) {
        let old = kept.iter().position(|old| old.is_of_same(&self.evidence));
        let old = old.map(|position| kept.remove(position));
        let new = match &old {
            Some(old) => self.over(old),
            None => self.evidence.clone(),
        };
        kept.push(match old {
            Some(old) if *old == new => old,
            Some(_) | None => Arc::new(new),
        });
        forget_oldest(kept);
    }

    fn over(&self, old: &Evidence) -> Evidence {
        let is_unknown = |signature: &&Signature| match signature {
            Signature::Simple { .. } => !self.fetched.simple,
            Signature::Sigstore { .. } => !self.fetched.sigstore,
        };
        let mut signatures: Vec<_> = old.signatures.iter().filter(is_unknown).cloned().collect();
        for new in &self.evidence.signatures {
            if !signatures.contains(new) {
                signatures.push(new.clone());
            }
        }
        bound(&mut signatures);
        Evidence { signatures, ..self.evidence.clone() }
    }
}

/// Those without signatures go first, for a pull could tell as much again. The newest stays.
fn forget_oldest(kept: &mut Vec<Arc<Evidence>>) {
    let is_too_much = |kept: &[Arc<Evidence>]| {
        let bytes: usize = kept.iter().map(|evidence| evidence.size()).sum();
        kept.len() > 1 && (kept.len() > MOST_EVIDENCE || bytes > LARGEST_EVIDENCE)
    };
    while is_too_much(kept) {
        let older = &kept[..kept.len() - 1];
        let empty = older.iter().position(|evidence| evidence.signatures.is_empty());
        kept.remove(empty.unwrap_or(0));
    }
}

/// Drops what is beyond the limits of each kind: whoever attaches more is not listened to.
pub(super) fn bound(signatures: &mut Vec<Signature>) {
    let (mut simple, mut sigstore) = ((0, 0), (0, 0));
    signatures.retain(|signature| {
        let (count, bytes) = if is_simple(signature) { &mut simple } else { &mut sigstore };
        *count += 1;
        *bytes += signature.size();
        *count <= MOST_SIGNATURES && *bytes <= LARGEST_KIND
    });
}

fn is_simple(signature: &Signature) -> bool {
    matches!(signature, Signature::Simple { .. })
}

impl Trust {
    /// Whether a pod of `namespace` may use an image that it calls `asked`. `now` is in seconds
    /// since 1970.
    ///
    /// The name counts if it is the image's, with its tag or digest: each may have a scope of its
    /// own. One that is not, or an id, says nothing: then one of the image's own names must be
    /// accepted.
    pub(crate) fn check_use(
        &self,
        image: &Image,
        asked: Option<&Reference>,
        namespace: &str,
        now: u64,
    ) -> Result<(), Error> {
        let policy = self.policy(namespace);
        if *policy == Policy::accept_anything() {
            return Ok(());
        }
        let own = image.tags.iter().chain(&image.digests);
        let names: Vec<_> = match asked.filter(|name| image.has_name(name)) {
            Some(name) => vec![name.clone()],
            None => own.filter_map(|name| Reference::parse(name, None).ok()).collect(),
        };
        let mut rejection = Rejection::Nameless;
        for name in &names {
            match check_name(policy, name, &image.evidence, now) {
                Ok(()) => return Ok(()),
                Err(reason) => rejection = reason,
            }
        }
        let image = asked.map_or_else(|| image.id.to_string(), ToString::to_string);
        Err(Error::SignatureRejected { image, source: Arc::new(rejection) })
    }
}

fn check_name(
    policy: &Policy,
    name: &Reference,
    evidence: &[Arc<Evidence>],
    now: u64,
) -> Result<(), Rejection> {
    let fits = |evidence: &&Arc<Evidence>| {
        evidence.repository == name.repository()
            && name.digest().is_none_or(|digest| evidence.manifests.contains(&digest))
    };
    let nothing = Claim { name, manifests: &[], signatures: &[], now };
    let mut answer = policy.check(nothing).map_err(Rejection::none_kept);
    for evidence in evidence.iter().filter(fits) {
        if answer.is_ok() {
            break;
        }
        let (manifests, signatures) = (&evidence.manifests, &evidence.signatures);
        answer = policy.check(Claim { manifests, signatures, ..nothing });
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::super::Policies;
    use super::super::load;
    use super::super::openpgp::tests::TestKey;
    use super::super::payload::{Format, tests::payload};
    use super::super::places::SignaturePlaces;
    use super::*;

    const NOW: u64 = 2_000_000;

    fn policy(scopes: serde_json::Value) -> Policy {
        let text = json!({"default": [{"type": "reject"}], "transports": {"docker": scopes}});
        let none = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        load::parse(Path::new("p"), &text.to_string(), &none).unwrap()
    }

    fn signed_by(seed: u8) -> serde_json::Value {
        let key = STANDARD.encode(TestKey::new(seed).public());
        json!([{"type": "signedBy", "keyType": "GPGKeys", "keyData": key}])
    }

    fn signature(seed: u8, manifest: &[u8], name: &str) -> Signature {
        let payload = payload(Format::Simple, Digest::of(manifest), name);
        Signature::Simple { message: TestKey::new(seed).sign(&payload) }
    }

    fn evidence(repository: &str, signatures: &[Signature]) -> Arc<Evidence> {
        Arc::new(Evidence {
            repository: repository.to_owned(),
            manifests: vec![Digest::of(b"index"), Digest::of(b"manifest")],
            signatures: signatures.to_vec(),
        })
    }

    fn parsed(name: &str) -> Reference {
        Reference::parse(name, None).unwrap()
    }

    fn image(names: &[&str], evidence: &[Arc<Evidence>]) -> Image {
        let names = names.iter().map(|name| (*name).to_owned());
        let (digests, tags) = names.partition(|name: &String| name.contains('@'));
        Image {
            id: Digest::of(b"config").into(),
            tags,
            digests,
            size_bytes: 1,
            config: None,
            layers: vec![],
            pinned: false,
            mounted: vec![],
            evidence: evidence.to_vec(),
        }
    }

    #[test]
    fn an_image_is_used_by_the_name_it_was_asked_for() {
        let digest = Digest::of(b"index");
        let by_digest = format!("s.example/i@{digest}");
        let other_digest = format!("s.example/i@{}", Digest::of(b"other"));
        let anything = json!([{"type": "insecureAcceptAnything"}]);
        let node = policy(json!({
            "s.example": signed_by(1), "a.example": anything, "s.example/i:lax": anything,
            (other_digest.clone()): anything,
        }));
        let strict = policy(json!({"s.example": signed_by(2)}));
        let trust = Trust {
            policies: Arc::new(Policies {
                node,
                is_from_file: true,
                namespaces: [("strict".to_owned(), strict)].into(),
                places: SignaturePlaces::default(),
            }),
        };
        let both = [evidence("s.example/i", &[signature(1, b"manifest", "s.example/i:1")])];
        let of_index = [evidence("s.example/i", &[signature(1, b"index", "s.example/i:1")])];
        let of_other = [evidence("s.example/i", &[signature(1, b"other", "s.example/i:1")])];
        let by_both = [evidence(
            "s.example/i",
            &[signature(1, b"index", "s.example/i:1"), signature(2, b"index", "s.example/i:1")],
        )];
        let two = [
            evidence("s.example/i", &[]),
            evidence("s.example/i", &[signature(1, b"index", "s.example/i:1")]),
        ];
        let s = || vec!["s.example/i:1", &by_digest];
        let a = || vec!["a.example/i:1"];
        for (what, names, evidence, asked, namespace, accepted) in [
            ("signed manifest", s(), &both[..], Some("s.example/i:1"), "any", true),
            ("signed index", s(), &of_index, Some("s.example/i:1"), "any", true),
            ("other manifest", s(), &of_other, Some("s.example/i:1"), "any", false),
            ("other tag", s(), &of_index, Some("s.example/i:2"), "any", true),
            ("other tag, unsigned", s(), &[], Some("s.example/i:2"), "any", false),
            ("a laxer tag that it lacks", s(), &[], Some("s.example/i:lax"), "any", false),
            ("a laxer tag", vec!["s.example/i:lax"], &[], Some("s.example/i:lax"), "any", true),
            ("by digest", s(), &of_index, Some(&by_digest), "any", true),
            ("by a laxer digest that it lacks", s(), &[], Some(&other_digest), "any", false),
            ("by a laxer digest", vec![&other_digest], &[], Some(&other_digest), "any", true),
            ("by id", s(), &of_index, None, "any", true),
            ("a stranger's name", s(), &of_index, Some("a.example/i:1"), "any", true),
            ("a stranger's name, unsigned", s(), &[], Some("a.example/i:1"), "any", false),
            ("an accepted name", a(), &[], Some("a.example/i:1"), "any", true),
            ("nothing kept", s(), &[], Some("s.example/i:1"), "any", false),
            (
                "another key in the namespace",
                s(),
                &of_index,
                Some("s.example/i:1"),
                "strict",
                false,
            ),
            ("both keys", s(), &by_both, Some("s.example/i:1"), "strict", true),
            ("one of two pulls", s(), &two, Some("s.example/i:1"), "any", true),
            ("rejected by default", a(), &[], Some("a.example/i:1"), "strict", false),
            ("nameless", vec![], &[], None, "any", false),
        ] {
            let asked = asked.map(parsed);
            let answer = trust.check_use(&image(&names, evidence), asked.as_ref(), namespace, NOW);
            assert_eq!(answer.is_ok(), accepted, "{what}: {answer:?}");
        }
        assert!(Trust::default().check_use(&image(&[], &[]), None, "any", NOW).is_ok());
    }

    #[test]
    fn a_pull_that_could_not_look_leaves_what_is_kept() {
        let sigstore = |signature: &str| Signature::Sigstore {
            payload: b"payload".to_vec(),
            signature: signature.to_owned(),
        };
        let simple = |seed| signature(seed, b"m", "r.example/a:1");
        let only = |simple, sigstore| Wanted { simple, sigstore };
        let good = [simple(1), sigstore("AA==")];
        for (what, fetched, found, expected) in [
            ("nothing fetched", only(false, false), vec![], good.to_vec()),
            (
                "one store down",
                only(false, true),
                vec![sigstore("BB==")],
                vec![simple(1), sigstore("BB==")],
            ),
            ("the other", only(true, false), vec![simple(2)], vec![sigstore("AA=="), simple(2)]),
            ("both withdrawn", only(true, true), vec![], vec![]),
            ("not fetched anew", only(false, false), good.to_vec(), good.to_vec()),
            (
                "meanwhile found",
                only(false, false),
                vec![simple(2)],
                [&good[..], &[simple(2)]].concat(),
            ),
        ] {
            let other = evidence("r.example/b", &good);
            let mut kept = vec![evidence("r.example/a", &good), Arc::clone(&other)];
            let evidence = Evidence::clone(&evidence("r.example/a", &found));
            Found { evidence, fetched }.add_to(&mut kept);
            let [first, second] = &kept[..] else { panic!("{what}: {kept:?}") };
            assert_eq!((first, &second.signatures), (&other, &expected), "{what}");
        }
    }

    #[test]
    fn what_is_kept_of_an_image_has_an_end() {
        let of = |bytes: usize| Signature::Simple { message: vec![0; bytes] };
        let sigstore = Signature::Sigstore { payload: vec![1], signature: String::new() };
        let add = |kept: &mut Vec<Arc<Evidence>>, number: usize, signatures: &[Signature]| {
            let evidence = Evidence::clone(&evidence(&format!("r.example/{number}"), signatures));
            Found { evidence, fetched: Wanted::default() }.add_to(kept);
        };
        let first_and_last = |kept: &[Arc<Evidence>]| {
            [kept.first(), kept.last()].map(|evidence| evidence.unwrap().repository.clone())
        };
        let names = |numbers: [usize; 2]| numbers.map(|number| format!("r.example/{number}"));
        let mut kept = vec![];
        (0..MOST_EVIDENCE + 5).for_each(|number| add(&mut kept, number, &[of(1)]));
        assert_eq!(kept.len(), MOST_EVIDENCE);
        assert_eq!(first_and_last(&kept), names([5, MOST_EVIDENCE + 4]));
        add(&mut kept, 5, &[of(1)]);
        assert_eq!(first_and_last(&kept), names([6, 5]), "what is pulled again is not old");
        (100..150).for_each(|number| add(&mut kept, number, &[]));
        assert_eq!(first_and_last(&kept), names([7, 149]), "one gave way to what is without any");
        let large = vec![of(LARGEST_EVIDENCE / 4); 2];
        (200..203).for_each(|number| add(&mut kept, number, &large));
        assert_eq!(first_and_last(&kept), names([201, 202]));
        add(&mut kept, 300, &vec![of(LARGEST_EVIDENCE); 2]);
        assert_eq!(first_and_last(&kept), names([300, 300]), "the newest is always kept");

        for (what, each, count) in [
            ("count", 1, MOST_SIGNATURES),
            ("bytes", LARGEST_KIND / 3, 3),
            ("none", LARGEST_KIND + 1, 0),
        ] {
            let mut signatures = [vec![of(each); 200], vec![sigstore.clone()]].concat();
            bound(&mut signatures);
            assert_eq!(signatures.len(), count + 1, "{what}");
        }
    }

    #[test]
    fn evidence_is_read_back_as_it_is_written() {
        let sigstore = Signature::Sigstore { payload: vec![0, 255], signature: "AA==".to_owned() };
        let kept = evidence("r.example/a", &[signature(1, b"m", "r.example/a:1"), sigstore]);
        let text = serde_json::to_string(&*kept).unwrap();
        assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), *kept);
    }
}
