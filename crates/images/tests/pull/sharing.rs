//! What several pulls share, and what they must not.

use std::sync::Arc;

use cria_images::{Error, PullRequest};
use tokio::sync::Semaphore;

use crate::scripted::{Fault, Scripted};
use crate::support::{TestImage, TestStore, tar_of, until};

fn image() -> TestImage {
    TestImage::of(&[tar_of(&[("a", &[7; 50_000])]), tar_of(&[("b", b"b")])])
}

/// Starts a pull that can be given up.
fn start(
    test: &TestStore,
    name: &str,
) -> tokio::task::JoinHandle<Result<Arc<cria_images::Image>, Error>> {
    let (store, name) = (test.store.clone(), name.to_owned());
    tokio::spawn(async move {
        let credentials = cria_images::Credentials::Anonymous;
        store.pull(PullRequest { reference: &name, credentials, namespace: "" }).await
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_one_image_are_one_download_and_as_many_manifest_requests() {
    let registry = Scripted::start().await;
    let image = image();
    registry.put("app:1", &image);
    let gate = Arc::new(Semaphore::new(0));
    registry.fail(image.layers[0].digest(), 1, Fault::Hold(Arc::clone(&gate)));
    let test = TestStore::with(&[&registry.host], "", |options| {
        options.stall_timeout = std::time::Duration::from_secs(20);
    });
    let name = format!("{}/app:1", registry.host);
    let mut pulls: Vec<_> = (0..5).map(|_| start(&test, &name)).collect();
    until("all have asked", || registry.requests("manifests").len() == 5).await;

    // One whose own manifest request fails gets nothing of what the others fetch.
    registry.fail("manifests", 1, Fault::Status(401));
    let error = test.pull(&name).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");

    // One that goes away takes nothing from the others.
    pulls.pop().unwrap().abort();
    gate.add_permits(1);
    for pull in pulls {
        assert_eq!(pull.await.unwrap().unwrap().id.to_string(), image.id());
    }
    for blob in image.blobs() {
        assert_eq!(registry.requests(blob.digest()).len(), 1);
    }

    // Held now: manifest and config are asked for, nothing else is.
    let before = registry.requests("blobs").len();
    test.pull(&name).await.unwrap();
    assert_eq!(registry.requests("manifests").len(), 7);
    assert_eq!(registry.requests(image.config.digest()).len(), 2);
    assert_eq!(registry.requests("blobs").len(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_images_id_alone_opens_it_to_nobody() {
    let (registry, theirs) = (Scripted::start().await, Scripted::start().await);
    let private = image();
    registry.put("private:1", &private);
    let test = TestStore::new(&[&registry.host, &theirs.host]);
    let held = test.pull(&format!("{}/private:1", registry.host)).await.unwrap();

    // A manifest that names the image's config, and as many layers of whatever kind.
    let mut bait = TestImage::of(&[tar_of(&[("x", b"x")]), tar_of(&[("y", b"y")])]);
    bait.config = private.config.clone();
    bait.seal();
    theirs.put("bait:1", &bait);
    theirs.fail(private.config.digest(), 99, Fault::Status(404));
    let name = format!("{}/bait:1", theirs.host);
    let error = test.pull(&name).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let left = test.store.list();
    assert_eq!((left.len(), left[0].id), (1, held.id));
    assert_eq!((&left[0].tags, &left[0].digests), (&held.tags, &held.digests));
    assert!(test.store.find(&name).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_last_caller_has_gone_the_download_stops_and_finished_layers_stay() {
    let registry = Scripted::start().await;
    let image = image();
    registry.put("app:1", &image);
    let big = image.layers[0].digest();
    let gate = Arc::new(Semaphore::new(0));
    registry.fail(big, 1, Fault::Pause(10, Arc::clone(&gate)));
    let test = TestStore::with(&[&registry.host], "", |options| {
        options.stall_timeout = std::time::Duration::from_secs(20);
    });
    let name = format!("{}/app:1", registry.host);
    let pulls = [start(&test, &name), start(&test, &name)];
    until("small layer is here", || test.layers().len() == 1).await;
    until("big layer is under way", || registry.requests(big).len() == 1).await;
    for pull in pulls {
        pull.abort();
    }
    until("nothing is being made", || test.incoming().is_empty()).await;
    gate.add_permits(1);
    test.store.collect();
    assert!(test.store.list().is_empty());
    assert_eq!(test.layers().len(), 1, "a finished layer waits for the next try");

    test.pull(&name).await.unwrap();
    assert_eq!(registry.requests(image.layers[1].digest()).len(), 1);
    assert_eq!(test.layers().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_registry_share_the_layers_they_have_in_common_even_while_those_come() {
    let registry = Scripted::start().await;
    let common = tar_of(&[("common", &[1; 9000])]);
    let one = TestImage::of(&[common.clone(), tar_of(&[("x", b"1")])]);
    let two = TestImage::of(&[common, tar_of(&[("x", b"2")])]);
    registry.put("app:1", &one);
    registry.put("other:2", &two);
    let gate = Arc::new(Semaphore::new(0));
    registry.fail(one.layers[0].digest(), 1, Fault::Hold(Arc::clone(&gate)));
    let test = TestStore::with(&[&registry.host], "", |options| {
        options.stall_timeout = std::time::Duration::from_secs(20);
    });
    let pulls = ["app:1", "other:2"].map(|name| start(&test, &format!("{}/{name}", registry.host)));
    until("both are at it", || test.layers().len() == 2).await;
    gate.add_permits(1);
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.requests(one.layers[0].digest()).len(), 1);
    assert_eq!(test.layers().len(), 3);

    // The one goes, what the other needs stays.
    test.store.remove(&format!("{}/app:1", registry.host)).unwrap();
    assert_eq!(test.layers().len(), 2);
    let left = test.store.list();
    assert_eq!(left[0].id.to_string(), two.id());
    assert_eq!(test.read(&left[0], "common"), [1; 9000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_failed_download_is_not_this_callers_failure() {
    let (broken, good) = (Scripted::start().await, Scripted::start().await);
    let image = image();
    broken.put("app:1", &image);
    good.put("app:1", &image);
    let gate = Arc::new(Semaphore::new(0));
    let big = image.layers[0].digest();
    broken.fail(big, 1, Fault::Hold(Arc::clone(&gate)));
    broken.fail(big, 9, Fault::Status(404));
    let test = TestStore::with(&[&broken.host, &good.host], "", |options| {
        options.stall_timeout = std::time::Duration::from_millis(800);
    });
    let first = start(&test, &format!("{}/app:1", broken.host));
    until("the first is at it", || broken.requests(big).len() == 1).await;
    let second = start(&test, &format!("{}/app:1", good.host));
    until("the second has asked", || good.requests("manifests").len() == 1).await;
    // The first's answer never comes; its next try is refused.
    assert!(first.await.unwrap().is_err());
    second.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_registry_keeps_nobody_waiting_who_has_another() {
    let [slow, slower, good] =
        [Scripted::start().await, Scripted::start().await, Scripted::start().await];
    let image = image();
    for registry in [&slow, &slower, &good] {
        registry.put("app:1", &image);
    }
    let gate = Arc::new(Semaphore::new(0));
    let [config, layer] = [image.config.digest(), image.layers[0].digest()];
    slow.fail(config, 1, Fault::Hold(Arc::clone(&gate)));
    slower.fail(layer, 1, Fault::Pause(10, Arc::clone(&gate)));
    let test = TestStore::with(&[&slow.host, &slower.host, &good.host], "", |options| {
        options.stall_timeout = std::time::Duration::from_secs(20);
    });
    let others = [&slow, &slower].map(|registry| start(&test, &format!("{}/app:1", registry.host)));
    until("the one waits for its config", || slow.requests(config).len() == 1).await;
    until("the other for a layer", || slower.requests(layer).len() == 1).await;

    test.pull(&format!("{}/app:1", good.host)).await.unwrap();
    let layers = test.layers();
    assert!(others.iter().all(|pull| !pull.is_finished()));
    // Whoever comes second finds the layer here, and leaves nothing behind.
    gate.add_permits(2);
    for pull in others {
        assert_eq!(pull.await.unwrap().unwrap().id.to_string(), image.id());
    }
    assert_eq!(test.layers(), layers);
    assert!(test.incoming().is_empty());
}
