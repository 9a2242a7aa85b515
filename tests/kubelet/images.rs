//! The images of the pods, in a registry that lets everybody in and one that does not.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use harness::busybox::{busybox, busybox_layer};
use harness::registry::{ALICE, Pushed};
use harness::{Artifact, Image, Layer, Registry};
use serde_json::{Value, json};

use crate::process::free_port;

/// One that lets everybody in, and one that asks for a password.
pub(crate) struct Registries {
    pub(crate) open: Registry,
    pub(crate) private: Registry,
}

#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// What nearly every pod runs.
    pub(crate) busybox: String,
    pub(crate) pushed: Pushed,
    /// Its user is a name.
    pub(crate) named_user: String,
    /// Its user is 1000:1000.
    pub(crate) numbered_user: String,
    /// Its stop signal is SIGUSR1.
    pub stops_by_usr1: String,
    /// Of a pod that asks for it each time it starts.
    pub(crate) always: String,
    /// Used by one pod all the time.
    pub(crate) used: String,
    /// Used by a pod that goes, and by none at all.
    pub(crate) unused: [String; 2],
    /// Two layers, for volumes: `top` and `folder/bottom`.
    pub(crate) volume: String,
    /// An artifact: `deep/model` and `readme`.
    pub(crate) artifact: String,
    /// Nothing but a volume of one pod, all the time.
    pub(crate) used_as_volume: String,
    /// In the registry that asks for a password.
    pub(crate) private: String,
    /// Of a registry that nobody runs.
    pub(crate) unreachable: String,
    /// In no registry.
    pub(crate) missing: String,
}

impl Images {
    pub(crate) fn push(registries: &Registries) -> Self {
        let Registries { open: registry, private } = registries;
        let pushed = registry.push("busybox:1", &busybox());
        let marked = |name: &str| {
            let image = busybox().layer(Layer::new().file("mark", 0o644, name));
            registry.push(&format!("{name}:1"), &image).reference
        };
        let of_user = |name: &str, user: &str| {
            let image = Image::new().layer(busybox_layer()).user(user);
            registry.push(&format!("{name}:1"), &image).reference
        };
        Self {
            busybox: pushed.reference.clone(),
            pushed,
            named_user: of_user("named-user", "default-user"),
            numbered_user: of_user("numbered-user", "1000:1000"),
            stops_by_usr1: registry
                .push("stops-by-usr1:1", &busybox().stop_signal("SIGUSR1"))
                .reference,
            always: marked("always"),
            used: marked("used"),
            unused: [marked("used-once"), marked("used-never")],
            volume: registry.push("volume:1", &two_layers()).reference,
            artifact: registry.push_artifact("artifact:1", &model()).reference,
            used_as_volume: marked("used-as-volume"),
            private: private
                .push("secret:1", &busybox().layer(Layer::new().file("mark", 0o644, "secret")))
                .reference,
            unreachable: format!("127.0.0.1:{}/nothing:1", free_port()),
            missing: registry.reference("missing:1"),
        }
    }
}

fn two_layers() -> Image {
    let bottom = Layer::new().dir("folder", 0o755).file("folder/bottom", 0o644, "bottom\n");
    Image::new().layer(bottom).layer(Layer::new().file("top", 0o644, "top\n"))
}

fn model() -> Artifact {
    Artifact::new().file("deep/model", "weights\n").file("readme", "read me\n")
}

/// The `config.json` that gives the kubelet the password of `private`.
pub(crate) fn node_credentials(private: &Registry) -> Value {
    let (name, password) = ALICE;
    let auth = BASE64_STANDARD.encode(format!("{name}:{password}"));
    json!({ "auths": { private.address(): { "auth": auth } } })
}
