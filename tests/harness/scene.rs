//! What nearly every test begins with: a registry with busybox, a node that knows it, the image
//! pulled; and what a test says of an answer that is a refusal.

use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;
use std::time::Duration;

use cria_proto::ContainerConfig;
use tonic::Code;

use crate::busybox::busybox;
use crate::cri::{Answer, Container, Pod, container_config};
use crate::image::Packed;
use crate::node::Setup;
use crate::registry::Pushed;
use crate::{Node, Registry};

/// For what takes a moment at most, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(30);

/// A shell that ends at SIGTERM with code 0.
pub const OBEDIENT: [&str; 3] =
    ["sh", "-c", r#"trap "exit 0" TERM; echo ready; while :; do sleep 1000 & wait $!; done"#];

/// A shell that hears SIGTERM and stays.
pub const STUBBORN: [&str; 3] =
    ["sh", "-c", r#"trap "echo heard" TERM; echo ready; while :; do sleep 1000 & wait $!; done"#];

static BUSYBOX: LazyLock<Packed> = LazyLock::new(|| busybox().pack());

/// A node and its registry; it stands for its node.
pub struct Scene {
    pub node: Node,
    pub registry: Registry,
    pub busybox: Pushed,
}

impl Scene {
    /// A node of defaults.
    #[track_caller]
    pub fn new() -> Self {
        Self::with(|setup| setup)
    }

    #[track_caller]
    pub fn with(setup: impl FnOnce(Setup) -> Setup) -> Self {
        let registry = Registry::start();
        let busybox = push_busybox(&registry, "busybox:1");
        let node = setup(Node::setup().registry(&registry)).start();
        node.cri().pull(&busybox.reference);
        Self { node, registry, busybox }
    }

    /// A container of busybox, named by the image's id as the kubelet does.
    pub fn container(&self, name: &str, command: &[&str]) -> ContainerConfig {
        container_config(name, &self.busybox.id, command)
    }

    /// A container of busybox that runs `script`.
    pub fn script(&self, name: &str, script: &str) -> ContainerConfig {
        self.container(name, &["sh", "-c", script])
    }

    /// A pod on the host's network: it needs no CNI.
    #[track_caller]
    pub fn host(&self, name: &str) -> Pod {
        self.node.run_pod(self.node.host_pod(name))
    }

    /// A container of [`OBEDIENT`] in `pod`, running and ready.
    #[track_caller]
    pub fn obedient(&self, pod: &Pod, name: &str) -> Container {
        ready(pod, self.container(name, &OBEDIENT))
    }

    /// A container of [`STUBBORN`] in `pod`, running and ready.
    #[track_caller]
    pub fn stubborn(&self, pod: &Pod, name: &str) -> Container {
        ready(pod, self.container(name, &STUBBORN))
    }

    /// Removes every pod, and asserts that this leaves nothing.
    #[track_caller]
    pub fn assert_nothing_left(&mut self) {
        self.remove_all_pods();
        self.node.assert_clean();
    }

    /// The same where a daemon has just been started: it undoes in the background what the former
    /// one left half-made.
    #[track_caller]
    pub fn assert_nothing_is_left_soon(&mut self) {
        self.remove_all_pods();
        self.node.assert_nothing_left(SOON);
    }

    #[track_caller]
    fn remove_all_pods(&self) {
        let failures = self.node.cri().remove_all_pods().expect("pods are listed");
        assert!(failures.is_empty(), "pods are not removed: {failures:#?}");
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Scene {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

/// Pushes busybox, which is packed once for all tests of a program.
pub fn push_busybox(registry: &Registry, name: &str) -> Pushed {
    let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    registry.push_packed(repository, &BUSYBOX, tag)
}

/// The message of a refusal; panics if `answer` is none, or has another code.
#[track_caller]
pub fn refused<T>(answer: Answer<T>, code: Code) -> String {
    match answer {
        Err(status) if status.code() == code => status.message().to_owned(),
        Err(status) => panic!("refused with {:?}, not {code:?}: {status}", status.code()),
        Ok(_) => panic!("not refused, where {code:?} was due"),
    }
}

#[track_caller]
fn ready(pod: &Pod, config: ContainerConfig) -> Container {
    let container = pod.run(config);
    container.await_log("ready", SOON);
    container
}
