//! Images that a policy asks signatures of: signed by GnuPG and skopeo, or as cosign does; pulled,
//! refused, and asked about again when a container is made.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use cria_proto::*;
use harness::cri::{container_config, image_spec};
use harness::daemon::Daemon;
use harness::registry::Pushed;
use harness::scene::{OBEDIENT, SOON, push_busybox, refused};
use harness::signing::{GpgKey, SigstoreKey, lookaside, signed_by, sigstore_signed};
use harness::{Index, Node, Pod, Registry, until};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

/// Pulls as the kubelet does for a pod of `namespace`.
fn pull(node: &Node, image: &str, namespace: &str) -> Result<String, tonic::Status> {
    let metadata = PodSandboxMetadata { namespace: namespace.to_owned(), ..Default::default() };
    let sandbox_config = PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
    let request = PullImageRequest {
        image: Some(image_spec(image)),
        sandbox_config: Some(sandbox_config),
        ..Default::default()
    };
    node.cri().pull_image(request).map(|answer| answer.image_ref)
}

/// The message of a refusal by the policy.
#[track_caller]
fn rejected<T>(answer: Result<T, tonic::Status>) -> String {
    let message = refused(answer, Code::Unknown);
    assert!(message.starts_with("SignatureValidationFailed: "), "{message}");
    message
}

/// Everything else is rejected.
fn policy(scopes: &Value) -> String {
    json!({"default": [{"type": "reject"}], "transports": {"docker": scopes}}).to_string()
}

fn anything() -> Value {
    json!([{"type": "insecureAcceptAnything"}])
}

fn blobs_fetched(registry: &Registry) -> usize {
    registry.requests().iter().filter(|r| r.starts_with("GET") && r.contains("/blobs/")).count()
}

fn pod_in(node: &Node, name: &str, namespace: &str) -> Pod {
    let mut config = node.host_pod(name);
    config.metadata.get_or_insert_default().namespace = namespace.to_owned();
    node.run_pod(config)
}

/// What CreateContainer answers for an image that the pod calls `written`.
fn create(pod: &Pod, image: &Pushed, name: &str) -> Result<harness::cri::Container, tonic::Status> {
    let mut config = container_config(name, &image.id, &OBEDIENT);
    config.image.get_or_insert_default().user_specified_image.clone_from(&image.reference);
    pod.create(config)
}

/// A registry, and a folder for simple signatures.
struct Site {
    registry: Registry,
    store: TempDir,
}

impl Site {
    fn new() -> Self {
        Self { registry: Registry::start(), store: TempDir::new().expect("a folder") }
    }

    fn node(&self, policy: &str) -> Node {
        let signatures = format!(
            "docker:\n  {}: # loopback\n    lookaside: file://{}\n    use-sigstore-attachments: true\n",
            self.registry.address(),
            self.store.path().display()
        );
        Node::setup().registry(&self.registry).policy(policy).signatures(&signatures).start()
    }

    /// Another image under each name: they differ in an environment variable.
    fn push(&self, name: &str) -> Pushed {
        self.registry.push(name, &harness::busybox::busybox().env(&[&format!("NAME={name}")]))
    }
}

#[test]
fn simple_signatures_decide_before_any_layer_is_fetched() {
    let site = Site::new();
    let (ours, others) = (GpgKey::new("rsa2048"), GpgKey::new("ed25519"));
    let node = site.node(&policy(&json!({site.registry.address(): signed_by(&ours)})));
    let store = site.store.path();
    let [good, unsigned, foreign, renamed, tampered] =
        ["good:1", "unsigned:1", "foreign:1", "renamed:1", "tampered:1"]
            .map(|name| site.push(name));
    ours.sign(&good.reference, &good.reference, store);
    others.sign(&foreign.reference, &foreign.reference, store);
    ours.sign(&renamed.reference, &good.reference, store);
    // The signature is good, the manifest another one.
    ours.sign(&tampered.reference, &tampered.reference, store);
    let changed =
        site.registry.push("tampered:1", &harness::busybox::busybox().env(&["NAME=changed"]));
    let kept = lookaside(store, &site.registry, &tampered);
    fs_err::rename(kept, lookaside(store, &site.registry, &changed)).expect("it was signed");

    let fetched = blobs_fetched(&site.registry);
    for (image, reason) in [
        (&unsigned, "there is none"),
        (&foreign, "not by a trusted key"),
        (&renamed, "it is for the name"),
        (&changed, "it is for sha256:"),
    ] {
        let message = rejected(pull(&node, &image.reference, "default"));
        assert!(message.contains(reason), "{message}");
    }
    assert_eq!(blobs_fetched(&site.registry), fetched, "nothing of them is fetched");
    assert_eq!(pull(&node, &good.reference, "default").expect("it is signed"), good.id);
    assert_eq!(pull(&node, &good.by_digest, "default").expect("it is signed"), good.id);
    let pod = node.run_pod(node.host_pod("signed"));
    pod.run(container_config("signed", &good.id, &OBEDIENT)).await_log("ready", SOON);
}

#[test]
fn keys_of_every_kind_that_gpg_makes_are_understood() {
    let site = Site::new();
    let node = site.node(&policy(&json!({})));
    let keys = ["rsa3072", "ed25519", "nistp256", "nistp384"]
        .map(|kind| (kind.to_owned(), GpgKey::new(kind)));
    let subkeys =
        ["rsa2048", "ed25519"].map(|kind| (format!("sub-{kind}"), GpgKey::with_subkey(kind)));
    for (name, ours) in keys.into_iter().chain(subkeys) {
        let image = site.push(&format!("{name}:1"));
        ours.sign(&image.reference, &image.reference, site.store.path());
        let scope = image.reference.clone();
        node.replace_policy(None, &policy(&json!({scope: signed_by(&ours)})));
        until(&name, SOON, || pull(&node, &image.reference, "default").ok());
    }
}

#[test]
fn attached_signatures_decide_too_and_one_over_an_index_covers_its_images() {
    let site = Site::new();
    let (ours, others) = (SigstoreKey::new(), SigstoreKey::new());
    let node = site.node(&policy(&json!({site.registry.address(): sigstore_signed(&ours)})));
    let [good, unsigned, foreign, renamed, tampered] =
        ["good:1", "unsigned:1", "foreign:1", "renamed:1", "tampered:1"]
            .map(|name| site.push(name));
    ours.sign(&site.registry, &good, &good.reference);
    others.sign(&site.registry, &foreign, &foreign.reference);
    ours.sign(&site.registry, &renamed, &good.reference);
    let of_other = json!({"critical": {
        "identity": {"docker-reference": tampered.reference},
        "image": {"docker-manifest-digest": good.digest},
        "type": "cosign container image signature",
    }});
    ours.attach(&site.registry, &tampered, of_other.to_string().into_bytes());
    for (image, reason) in [
        (&unsigned, "there is none"),
        (&foreign, "not by a trusted key"),
        (&renamed, "it is for the name"),
        (&tampered, "it is for sha256:"),
    ] {
        let message = rejected(pull(&node, &image.reference, "default"));
        assert!(message.contains(reason), "{message}");
    }
    assert_eq!(pull(&node, &good.reference, "default").expect("it is signed"), good.id);

    let image = harness::busybox::busybox();
    let index = Index::new().entry(image.clone(), harness::image::this_platform());
    let index = site.registry.push_index("index:1", &index);
    rejected(pull(&node, &index.reference, "default"));
    ours.sign(&site.registry, &index, &index.reference);
    assert_eq!(pull(&node, &index.reference, "default").expect("it is signed"), image.pack().id);
}

#[test]
fn what_is_rejected_by_name_is_not_even_asked_for() {
    let site = Site::new();
    let image = push_busybox(&site.registry, "rejected:1");
    let allowed = push_busybox(&site.registry, "allowed/one:1");
    let scope = site.registry.reference("allowed");
    let node = site.node(&policy(&json!({scope: anything()})));
    let asked = site.registry.requests().len();
    let message = rejected(pull(&node, &image.reference, "default"));
    assert!(message.contains("the policy rejects"), "{message}");
    assert_eq!(site.registry.requests().len(), asked);
    pull(&node, &allowed.reference, "default").expect("its scope takes anything");
}

#[test]
fn a_namespace_has_its_own_policy_for_pulls_and_for_containers() {
    let site = Site::new();
    let key = GpgKey::new("ed25519");
    let node = site.node(&policy(&json!({"": anything()})));
    let strict = policy(&json!({"": signed_by(&key)}));
    node.replace_policy(Some("strict"), &strict);
    let [signed, unsigned] = ["signed:1", "unsigned:1"].map(|name| site.push(name));
    key.sign(&signed.reference, &signed.reference, site.store.path());
    until("the namespace has its policy", SOON, || {
        pull(&node, &unsigned.reference, "strict").err()
    });
    rejected(pull(&node, &unsigned.reference, "strict"));
    for image in [&signed, &unsigned] {
        pull(&node, &image.reference, "lax").expect("the node takes anything");
    }
    // Both are here, pulled for somebody else; no registry is needed to tell them apart.
    let (strict, lax) = (pod_in(&node, "strict", "strict"), pod_in(&node, "lax", "lax"));
    let message = rejected(create(&strict, &unsigned, "unsigned"));
    assert!(message.contains("there is none") || message.contains("none was kept"), "{message}");
    create(&strict, &signed, "signed").expect("its signature was kept");
    create(&lax, &unsigned, "unsigned").expect("the node takes anything");
    // By the id alone one of the image's own names must do.
    rejected(strict.create(container_config("by-id", &unsigned.id, &OBEDIENT)));
    strict.create(container_config("by-id", &signed.id, &OBEDIENT)).expect("it is signed");
}

#[test]
fn a_policy_that_changed_counts_for_the_next_container() {
    let mut site = Site::new();
    let (old, new) = (SigstoreKey::new(), SigstoreKey::new());
    let image = site.push("kept:1");
    old.sign(&site.registry, &image, &image.reference);
    let scope = site.registry.address().to_owned();
    let by = |key: &SigstoreKey| policy(&json!({scope.as_str(): sigstore_signed(key)}));
    let mut node = site.node(&by(&old));
    pull(&node, &image.reference, "default").expect("it is signed");
    site.registry.stop();

    let pod = node.run_pod(node.host_pod("changing"));
    let first = create(&pod, &image, "first").expect("it is signed");
    first.start().expect("it starts");
    node.replace_policy(None, &by(&new));
    let mut tried = 0;
    until("the new policy counts", SOON, || {
        tried += 1;
        create(&pod, &image, &format!("try-{tried}")).err()
    });
    rejected(create(&pod, &image, "refused"));
    first.await_log("ready", SOON);

    // What is not understood changes nothing.
    let keyless = json!([{"type": "sigstoreSigned", "fulcio": {"caPath": "/ca"}}]);
    node.replace_policy(None, &policy(&json!({"": keyless})));
    until("the mistake is logged", SOON, || {
        node.log().contains("fulcio is not served").then_some(())
    });
    rejected(create(&pod, &image, "still-refused"));

    node.replace_policy(None, &by(&old));
    until("the old policy counts again", SOON, || create(&pod, &image, "again").ok());
    // The signatures are on the disk.
    node.restart();
    create(&pod, &image, "after-restart").expect("it is signed");
}

#[test]
fn a_key_file_that_changed_is_read_again_without_a_change_of_the_policy() {
    let site = Site::new();
    let (old, new) = (SigstoreKey::new(), SigstoreKey::new());
    let image = site.push("rotated:1");
    new.sign(&site.registry, &image, &image.reference);
    let keys = TempDir::new().expect("a folder");
    let file = keys.path().join("release.pub");
    fs_err::write(&file, old.public()).expect("own folder");
    let by_file = json!([{"type": "sigstoreSigned", "keyPath": file}]);
    let node = site.node(&policy(&json!({site.registry.address(): by_file})));
    rejected(pull(&node, &image.reference, "default"));
    // As configuration is replaced: written aside, and renamed.
    fs_err::write(keys.path().join("aside"), new.public()).expect("own folder");
    fs_err::rename(keys.path().join("aside"), &file).expect("own folder");
    until("the new key counts", SOON, || pull(&node, &image.reference, "default").ok());
}

#[test]
fn a_policy_that_came_before_its_keys_counts_when_the_last_of_them_is_there() {
    let site = Site::new();
    let (first, second) = (SigstoreKey::new(), SigstoreKey::new());
    let image = site.push("keyless:1");
    second.sign(&site.registry, &image, &image.reference);
    let unsigned = site.push("unsigned:1");
    let node = site.node(&policy(&json!({"": anything()})));
    let keys = TempDir::new().expect("a folder");
    // Of one not even the directory is there.
    let files = [keys.path().join("first.pub"), keys.path().join("later/second.pub")];
    let by_files = json!([{"type": "sigstoreSigned", "keyPaths": files}]);
    node.replace_policy(None, &policy(&json!({site.registry.address(): by_files})));
    until("the missing key is logged", SOON, || node.log().contains("first.pub").then_some(()));
    pull(&node, &unsigned.reference, "default").expect("the former policy holds");
    fs_err::write(&files[0], first.public()).expect("own folder");
    until("the other missing key is logged", SOON, || {
        node.log().contains("second.pub").then_some(())
    });
    fs_err::create_dir(keys.path().join("later")).expect("own folder");
    fs_err::write(&files[1], second.public()).expect("own folder");
    until("the policy counts", SOON, || pull(&node, &unsigned.reference, "default").err());
    pull(&node, &image.reference, "default").expect("it is signed");
}

#[test]
fn a_key_beside_the_policies_of_namespaces_does_not_hide_their_changes() {
    let site = Site::new();
    let key = SigstoreKey::new();
    let image = site.push("beside:1");
    key.sign(&site.registry, &image, &image.reference);
    let node = site.node(&policy(&json!({"": anything()})));
    let policies = node.root().with_file_name("policies");
    let file = policies.join("release.pub");
    fs_err::write(&file, key.public()).expect("own folder");
    let by_file = json!([{"type": "sigstoreSigned", "keyPath": file}]);
    let scope = site.registry.address();
    node.replace_policy(Some("first"), &policy(&json!({scope: by_file})));
    let unsigned = site.push("unsigned:1");
    until("the first policy counts", SOON, || pull(&node, &unsigned.reference, "first").err());
    node.replace_policy(Some("second"), &policy(&json!({scope: [{"type": "reject"}]})));
    until("the second policy counts", SOON, || pull(&node, &image.reference, "second").err());
    pull(&node, &image.reference, "first").expect("it is signed");
}

#[test]
fn an_image_volume_is_asked_about_again_as_the_pods_namespace_has_it() {
    let site = Site::new();
    let key = GpgKey::new("ed25519");
    let node = site.node(&policy(&json!({"": anything()})));
    let [signed, unsigned] = ["signed:1", "unsigned:1"].map(|name| site.push(name));
    key.sign(&signed.reference, &signed.reference, site.store.path());
    node.replace_policy(Some("strict"), &policy(&json!({"": signed_by(&key)})));
    until("the namespace has its policy", SOON, || {
        pull(&node, &unsigned.reference, "strict").err()
    });
    for image in [&signed, &unsigned] {
        pull(&node, &image.reference, "lax").expect("the node takes anything");
    }
    let with_volume = |pod: &Pod, image: &Pushed| {
        let mut config = container_config("volume", &signed.id, &OBEDIENT);
        config.image.get_or_insert_default().user_specified_image.clone_from(&signed.reference);
        let mut asked = image_spec(&image.id);
        asked.user_specified_image.clone_from(&image.reference);
        config.mounts.push(Mount {
            container_path: "/volume".to_owned(),
            readonly: true,
            image: Some(asked),
            ..Default::default()
        });
        pod.create(config)
    };
    let (strict, lax) = (pod_in(&node, "strict", "strict"), pod_in(&node, "lax", "lax"));
    let message = refused(with_volume(&strict, &unsigned).map(drop), Code::Unknown);
    assert!(message.starts_with("ImageVolumeMountFailed: "), "{message}");
    assert!(message.contains("SignatureValidationFailed: "), "{message}");
    with_volume(&strict, &signed).expect("its signature was kept");
    with_volume(&lax, &unsigned).expect("the node takes anything");
}

#[test]
fn a_policy_that_is_not_understood_stops_the_start() {
    let keyless = json!([{"type": "sigstoreSigned", "fulcio": {"caPath": "/ca"}}]);
    let node = Node::setup().policy(&policy(&json!({"r.example": keyless}))).prepare();
    let output = node.command().output().expect("cria runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("policy.json:1: r.example: fulcio is not served"), "{said}");
}

/// A web server for signatures.
struct Server {
    daemon: Daemon,
    address: String,
    folder: TempDir,
}

impl Server {
    fn start(folder: TempDir) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("there is a free port").to_string();
        let daemon = Daemon::new("httpd", folder.path().join("log"));
        let mut server = Self { daemon, address, folder };
        server.resume();
        server
    }

    fn resume(&mut self) {
        let mut httpd = Command::new("busybox");
        httpd.args(["httpd", "-f", "-p", &self.address, "-h"]).arg(self.folder.path());
        self.daemon.start(&mut httpd);
        let address = self.address.clone();
        self.daemon.await_ready(SOON, || std::net::TcpStream::connect(&address).ok());
    }

    fn store(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.daemon.kill9();
    }
}

#[test]
fn a_signature_store_that_is_down_is_unavailable_and_no_refusal() {
    let site = Site::new();
    let mut server = Server::start(TempDir::new().expect("a folder"));
    let key = GpgKey::new("ed25519");
    let signatures = format!("default-docker:\n  lookaside: http://{}\n", server.address);
    let node = Node::setup()
        .registry(&site.registry)
        .policy(&policy(&json!({site.registry.address(): signed_by(&key)})))
        .signatures(&signatures)
        .start();
    let [image, unsigned] = ["stored:1", "unsigned:1"].map(|name| site.push(name));
    key.sign(&image.reference, &image.reference, server.store());

    server.daemon.kill9();
    let message = refused(pull(&node, &image.reference, "default"), Code::Unknown);
    assert!(message.starts_with("RegistryUnavailable: "), "{message}");
    assert!(message.contains("signature store at 127.0.0.1"), "{message}");
    server.resume();
    rejected(pull(&node, &unsigned.reference, "default"));
    assert_eq!(pull(&node, &image.reference, "default").expect("it is signed"), image.id);
    // What is known already is not asked for again.
    server.daemon.kill9();
    let again = pull(&node, &image.reference, "default");
    assert_eq!(again.expect("its signature was kept"), image.id);
}
