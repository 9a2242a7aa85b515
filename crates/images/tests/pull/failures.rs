//! What a registry may do wrong, and what a pull makes of it.

use std::time::{Duration, Instant};

use cria_images::{Credentials, Error};
use serde_json::json;

use crate::scripted::{Fault, Scripted};
use crate::support::{Blob, OCI_GZIP, TestImage, TestStore, free_port, gzip, tar_of};

/// Big enough that it does not fit one network packet, and incompressible.
fn noise() -> Vec<u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(300_000)
    .collect()
}

fn noisy_image() -> TestImage {
    TestImage::of(&[tar_of(&[("noise", &noise())])])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_or_stalled_download_goes_on_where_it_ended() {
    let image = noisy_image();
    let layer = image.layers[0].digest();
    for faults in [
        vec![Fault::Cut(100_000), Fault::Cut(50_000)],
        vec![Fault::Stall(200_000)],
        vec![Fault::Cut(0), Fault::Status(503), Fault::Status(429)],
        vec![
            Fault::NoRange(Box::new(Fault::Cut(100_000))),
            Fault::NoRange(Box::new(Fault::Cut(150_000))),
        ],
    ] {
        let registry = Scripted::start().await;
        registry.put("noisy:1", &image);
        let count = faults.len();
        for fault in faults {
            registry.fail(layer, 1, fault);
        }
        let test = TestStore::new(&[&registry.host]);
        let pulled = test.pull(&format!("{}/noisy:1", registry.host)).await.unwrap();
        assert_eq!(test.read(&pulled, "noise"), noise());

        let requests = registry.requests(layer);
        assert_eq!(requests.len(), count + 1);
        let offsets: Vec<_> = requests.iter().map(|request| request.offset.unwrap_or(0)).collect();
        assert!(offsets.is_sorted(), "no byte is asked for twice: {offsets:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_was_not_asked_for_is_not_taken_for_the_one_that_was() {
    let image = noisy_image();
    let layer = image.layers[0].digest();
    for (fault, offsets) in [
        (Fault::Range(Some(50_000)), &[None, Some(100_000)][..]),
        (Fault::Range(Some(150_000)), &[None, Some(100_000), None]),
        (Fault::Range(None), &[None, Some(100_000), None]),
    ] {
        let registry = Scripted::start().await;
        registry.put("noisy:1", &image);
        registry.fail(layer, 1, Fault::Cut(100_000));
        registry.fail(layer, 1, fault);
        let test = TestStore::new(&[&registry.host]);
        let pulled = test.pull(&format!("{}/noisy:1", registry.host)).await.unwrap();
        assert_eq!(test.read(&pulled, "noise"), noise());
        let requests = registry.requests(layer);
        let asked: Vec<_> = requests.iter().map(|request| request.offset).collect();
        assert_eq!(asked, offsets);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_trickle_give_up_their_slots_in_the_end() {
    let (slow, good) = (Scripted::start().await, Scripted::start().await);
    let image = noisy_image();
    good.put("noisy:1", &image);
    slow.put("noisy:1", &image);
    slow.put("copy:1", &image);
    let layer = image.layers[0].digest();
    slow.fail(layer, 99, Fault::Trickle);
    let test = TestStore::with(&[&slow.host, &good.host], "", |options| {
        options.parallel_layers = 1.try_into().unwrap();
        options.stall_timeout = Duration::from_millis(300);
    });
    // The one slot, and the one beyond it for a pull that has none.
    let names = [format!("{}/noisy:1", slow.host), format!("{}/copy:1", slow.host)];
    let [first, second] = names.each_ref().map(|name| test.pull(name));
    let third = async {
        crate::support::until("they are at it", || slow.requests(layer).len() == 2).await;
        test.pull(&format!("{}/noisy:1", good.host)).await
    };
    let (first, second, third) = tokio::join!(first, second, third);
    for error in [first.unwrap_err(), second.unwrap_err()] {
        let Error::RegistryUnavailable { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.to_string(), "its bytes come too slowly");
    }
    assert_eq!(test.read(&third.unwrap(), "noise"), noise());
    assert_eq!(slow.requests(layer).len(), 2, "the same again would be no better");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_mid_pull_a_registry_is_asked_for_longer_and_giving_up_still_ends_at_once() {
    let registry = Scripted::start().await;
    let image = noisy_image();
    let layer = image.layers[0].digest();
    registry.put("noisy:1", &image);
    registry.fail(layer, 1, Fault::Cut(100_000));
    registry.fail(layer, 99, Fault::Status(503));
    let test = TestStore::with(&[&registry.host], "", |options| {
        options.stall_timeout = Duration::from_secs(5);
    });
    let name = format!("{}/noisy:1", registry.host);
    let requests = || registry.requests(layer).len();
    let waiting = crate::support::until("more tries than before a first byte", || requests() > 4);
    tokio::select! {
        pulled = test.pull(&name) => panic!("it is over: {pulled:?}"),
        () = waiting => {}
    }
    // It was given up, ten seconds before its next try.
    crate::support::until("nothing is being made", || test.incoming().is_empty()).await;
    assert_eq!(requests(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_differ_from_their_digest_are_refused_and_leave_nothing() {
    let image = noisy_image();
    let layer = &image.layers[0];
    let mut flipped = layer.bytes.clone();
    flipped[1000] ^= 1;
    let another = gzip(&tar_of(&[("noise", b"other")]));
    let mut longer = layer.bytes.clone();
    longer.push(0);
    let mut config = image.config.bytes.clone();
    *config.last_mut().unwrap() = b' ';
    for (path, body) in [
        (layer.digest().to_string(), flipped),
        (
            layer.digest().to_string(),
            [another, vec![0; layer.bytes.len()]].concat()[..layer.bytes.len()].to_vec(),
        ),
        (image.config.digest().to_string(), config),
        (image.manifest.digest().to_string(), b"{}".to_vec()),
    ] {
        let registry = Scripted::start().await;
        registry.put("noisy:1", &image);
        registry.fail(&path, 9, Fault::Body(body));
        let test = TestStore::new(&[&registry.host]);
        let name = format!("{}/noisy@{}", registry.host, image.manifest.digest());
        let error = test.pull(&name).await.unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{path}: {error:?}");
        assert!(error.to_string().contains(&name), "{error}");
        assert!(test.store.list().is_empty() && test.layers().is_empty(), "{path}");
        assert!(test.incoming().is_empty(), "{path}: {:?}", test.incoming());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_not_the_promised_one_is_refused() {
    let archive = tar_of(&[("a", b"a")]);
    let blob = Blob { media_type: OCI_GZIP, bytes: gzip(&archive) };
    let image = TestImage::of_blobs(vec![(tar_of(&[("a", b"promised")]), blob)]);
    let registry = Scripted::start().await;
    registry.put("liar:1", &image);
    let test = TestStore::new(&[&registry.host]);
    let error = test.pull(&format!("{}/liar:1", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { what: "a layer's archive", .. }), "{error:?}");
    assert!(test.layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_outside_the_layer_is_refused_by_name() {
    let mut archive = tar_of(&[("aa/evil", b"x")]);
    archive[..7].copy_from_slice(b"../evil");
    // The checksum: spaces in its own place, then octal.
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let registry = Scripted::start().await;
    registry.put("evil:1", &TestImage::of(&[archive]));
    let test = TestStore::new(&[&registry.host]);
    let error = test.pull(&format!("{}/evil:1", registry.host)).await.unwrap_err();
    assert!(matches!(&error, Error::Escapes { entry, .. } if entry.ends_with("evil")), "{error:?}");
    assert!(test.layers().is_empty() && test.incoming().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_answers_decides_the_error() {
    let image = noisy_image();
    let unauthorized: fn(&Error) -> bool = |error| matches!(error, Error::Unauthorized { .. });
    let not_found: fn(&Error) -> bool = |error| matches!(error, Error::NotFound { .. });
    let unavailable: fn(&Error) -> bool = |error| {
        matches!(error, Error::RegistryUnavailable { .. })
            && error.to_string().starts_with("RegistryUnavailable: ")
    };
    for (status, is_right) in [
        (401, unauthorized),
        (403, unauthorized),
        (404, not_found),
        (429, unavailable),
        (500, unavailable),
        (503, unavailable),
    ] {
        let registry = Scripted::start().await;
        registry.put("noisy:1", &image);
        registry.fail("/manifests/", 99, Fault::Status(status));
        let test = TestStore::new(&[&registry.host]);
        let error = test.pull(&format!("{}/noisy:1", registry.host)).await.unwrap_err();
        assert!(is_right(&error), "{status}: {error:?}");
    }
    let nobody = format!("127.0.0.1:{}", free_port());
    for test in [TestStore::new(&[&nobody]), TestStore::new(&[])] {
        let began = Instant::now();
        let error = test.pull(&format!("{nobody}/noisy:1")).await.unwrap_err();
        assert!(unavailable(&error), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "a closed port is known at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_failure_of_the_manifest_is_outlived() {
    let registry = Scripted::start().await;
    registry.put("noisy:1", &noisy_image());
    registry.fail("/manifests/", 2, Fault::Status(503));
    let test = TestStore::new(&[&registry.host]);
    test.pull(&format!("{}/noisy:1", registry.host)).await.unwrap();
    assert_eq!(registry.requests("/manifests/").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_spoken_only_to_registries_marked_insecure() {
    let registry = Scripted::start().await;
    registry.put("noisy:1", &noisy_image());
    let test = TestStore::new(&[]);
    let error = test.pull(&format!("{}/noisy:1", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::RegistryUnavailable { .. }), "{error:?}");
    assert!(registry.requests("noisy").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_bought_with_the_callers_credentials_and_renewed_in_mid_pull() {
    let image = noisy_image();
    let registry = Scripted::start().await;
    registry.put("noisy:1", &image);
    registry.guard("user", "secret");
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/noisy:1", registry.host);
    let user = |password: &str| Credentials::Basic {
        username: "user".to_owned(),
        password: password.to_owned(),
    };
    for credentials in [Credentials::Anonymous, user("wrong")] {
        let error = test.pull_as(&name, credentials).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    }
    let layer = image.layers[0].digest();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    registry.fail(layer, 1, Fault::Pause(1000, std::sync::Arc::clone(&gate)));
    registry.fail(layer, 1, Fault::Cut(0));
    let revoking = async {
        crate::support::until("layer asked for", || !registry.requests(layer).is_empty()).await;
        registry.revoke_tokens();
        // The paused answer stalls; the next one is refused.
    };
    let (pulled, ()) = tokio::join!(test.pull_as(&name, user("secret")), revoking);
    assert_eq!(test.read(&pulled.unwrap(), "noise"), noise());
    let tokens: Vec<_> =
        registry.requests(layer).into_iter().map(|request| request.authorization).collect();
    assert_eq!(tokens.first().unwrap().as_deref(), Some("Bearer token-0"));
    assert_eq!(tokens.last().unwrap().as_deref(), Some("Bearer token-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_learn_no_credentials() {
    let image = noisy_image();
    let (first, second, own) =
        (Scripted::start().await, Scripted::start().await, Scripted::start().await);
    second.put("copy/noisy:1", &image);
    own.put("noisy:1", &image);
    let mirrors = |own: &str| {
        format!(
            "[[registry]]\nlocation = \"{own}\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"{}/copy\"\ninsecure = true\n",
            first.host, second.host
        )
    };
    let user = Credentials::Basic { username: "user".to_owned(), password: "secret".to_owned() };
    let name = format!("{}/noisy:1", own.host);

    let test = TestStore::with(&[], &mirrors(&own.host), |_| {});
    let pulled = test.pull_as(&name, user.clone()).await.unwrap();
    assert_eq!(pulled.tags, [name.as_str()], "it is called as it was asked for");
    assert!(own.requests("").is_empty());
    for mirror in [&first, &second] {
        let requests = mirror.requests("manifests");
        assert_eq!(requests.len(), 1);
        assert!(mirror.requests("").iter().all(|request| request.authorization.is_none()));
    }

    // A mirror that loses a layer in the middle: the next place is asked.
    second.fail(image.layers[0].digest(), 9, Fault::Status(404));
    let test = TestStore::with(&[], &mirrors(&own.host), |_| {});
    test.pull_as(&name, user).await.unwrap();
    assert_eq!(own.requests("manifests").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_keeps_a_pull_waiting_is_asked_once_and_then_after_others() {
    let image = noisy_image();
    let (mirror, own) = (Scripted::start().await, Scripted::start().await);
    for place in [&mirror, &own] {
        place.put("noisy:1", &image);
    }
    mirror.fail("manifests", 9, Fault::Stall(0));
    let conf = format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        own.host, mirror.host
    );
    let test = TestStore::with(&[], &conf, |options| {
        options.stall_timeout = Duration::from_secs(2);
    });
    let name = format!("{}/noisy:1", own.host);
    let asked = || [&mirror, &own].map(|place| place.requests("manifests").len());
    test.pull(&name).await.unwrap();
    assert_eq!(asked(), [1, 1]);
    test.pull(&name).await.unwrap();
    assert_eq!(asked(), [1, 2]);
    // It is asked for what the others have not.
    mirror.heal();
    own.fail("manifests", 9, Fault::Status(404));
    test.pull(&name).await.unwrap();
    assert_eq!(asked(), [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_and_oversized_images_are_refused_before_a_layer_is_fetched() {
    let registry = Scripted::start().await;
    let mut foreign = noisy_image();
    foreign.layers[0].media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    foreign.seal();
    registry.put("foreign:1", &foreign);
    let old = json!({"schemaVersion": 1, "name": "old", "fsLayers": [{"blobSum": "x"}]});
    let old = Blob {
        media_type: "application/vnd.docker.distribution.manifest.v1+json",
        bytes: old.to_string().into_bytes(),
    };
    registry.put_at("/v2/old/manifests/1".to_owned(), &old);
    let archives: Vec<_> =
        (0..501).map(|number| tar_of(&[("n", format!("{number}").as_bytes())])).collect();
    registry.put("high:1", &TestImage::of(&archives));

    let test = TestStore::new(&[&registry.host]);
    for name in ["foreign:1", "old:1"] {
        let error = test.pull(&format!("{}/{name}", registry.host)).await.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{name}: {error:?}");
    }
    let error = test.pull(&format!("{}/high:1", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::TooManyLayers { layers: 501, .. }), "{error:?}");
    assert_eq!(registry.requests("blobs").len(), 1, "one config, no layer");
}
