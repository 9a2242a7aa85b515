//! What pulls at the same time get of the node, and how they say that they get on.

use std::sync::Arc;
use std::time::Duration;

use cria_images::{Credentials, PullCounts, PullRequest};
use tokio::sync::Semaphore;

use crate::scripted::{Fault, Scripted};
use crate::support::{Blob, OCI_ZSTD, TestImage, TestStore, tar_of, until};

fn start(test: &TestStore, name: String) -> tokio::task::JoinHandle<bool> {
    let store = test.store.clone();
    tokio::spawn(async move {
        let credentials = Credentials::Anonymous;
        store.pull(PullRequest { reference: &name, credentials, namespace: "" }).await.is_ok()
    })
}

/// A layer whose stream wants half of the memory that a pull has for windows.
fn wide(content: u8) -> (Vec<u8>, Blob) {
    let archive = tar_of(&[("file", &vec![content; 1 << 20])]);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(23).unwrap();
    std::io::Write::write_all(&mut encoder, &archive).unwrap();
    (archive, Blob { media_type: OCI_ZSTD, bytes: encoder.finish().unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_pull_does_not_keep_others_waiting() {
    let registry = Scripted::start().await;
    let huge = TestImage::of_blobs((0..6).map(wide).collect());
    registry.put("huge:1", &huge);
    let gate = Arc::new(Semaphore::new(0));
    for layer in &huge.layers {
        registry.fail(layer.digest(), 1, Fault::Pause(30, Arc::clone(&gate)));
    }
    let test = TestStore::with(&[&registry.host], "", |options| {
        options.parallel_layers = 2.try_into().unwrap();
        options.stall_timeout = Duration::from_secs(20);
    });
    let first = start(&test, format!("{}/huge:1", registry.host));
    let count = |layer: &Blob| registry.requests(layer.digest()).len();
    let asked = || huge.layers.iter().map(count).sum::<usize>();
    until("it has every slot", || asked() == 2).await;

    for number in 0..2 {
        let small = TestImage::of_blobs(vec![wide(100 + number), wide(200 + number)]);
        registry.put(&format!("small{number}:1"), &small);
        test.pull(&format!("{}/small{number}:1", registry.host)).await.unwrap();
    }
    assert_eq!(asked(), 2, "it still has its own share and no more");
    assert!(!first.is_finished());
    gate.add_permits(100);
    assert!(first.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_tells_how_far_it_is_and_all_of_them_what_they_came_to() {
    let registry = Scripted::start().await;
    let image = TestImage::of(&[tar_of(&[("a", &[7; 50_000])]), tar_of(&[("b", b"b")])]);
    registry.put("app:1", &image);
    let [big, small] = [0, 1].map(|number| image.layers[number].bytes.len() as u64);
    let gate = Arc::new(Semaphore::new(0));
    registry.fail(image.layers[0].digest(), 1, Fault::Cut(50));
    registry.fail(image.layers[0].digest(), 1, Fault::Pause(20, Arc::clone(&gate)));
    let test = TestStore::with(&[&registry.host], "", |options| {
        options.stall_timeout = Duration::from_secs(20);
    });
    let name = format!("{}/app:1", registry.host);
    let pull = start(&test, name.clone());
    until("it is under way", || {
        let pulls = test.store.pulls();
        pulls.first().is_some_and(|pull| {
            (pull.layers, pull.layers_here) == (2, 1) && pull.bytes_here == small + 70
        })
    })
    .await;
    let told = test.store.pulls();
    assert_eq!(
        (told.len(), told[0].image.as_str(), told[0].bytes),
        (1, name.as_str(), big + small)
    );
    gate.add_permits(1);
    assert!(pull.await.unwrap());
    assert!(test.store.pulls().is_empty());

    test.pull(&name).await.unwrap();
    assert!(test.pull("no image").await.is_err(), "it never was a pull");
    test.pull(&format!("{}/none:1", registry.host)).await.unwrap_err();
    registry.fail("manifests", 1, Fault::Hold(Arc::new(Semaphore::new(0))));
    let given_up = start(&test, name);
    until("it is known", || !test.store.pulls().is_empty()).await;
    given_up.abort();
    until("it is over", || test.store.pull_counts().given_up == 1).await;
    let expected = PullCounts {
        succeeded: 2,
        failed: 1,
        given_up: 1,
        layers_fetched: 2,
        layers_held: 2,
        bytes_received: big + small + 2 * image.config.bytes.len() as u64,
        downloads_resumed: 1,
    };
    assert_eq!(test.store.pull_counts(), expected);
}
