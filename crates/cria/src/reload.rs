//! SIGHUP: the configuration, the CNI networks, the registries, the credentials, the policies and the
//! streaming server's certificate are read again.
//!
//! All or nothing: a mistake in any of the files leaves what stands, and the log says where it is.
//! Keys on which running containers, mounts or the socket depend stay as they are until a restart,
//! and the log names each that was changed in vain.

use std::sync::Arc;

use cria_images::{Certificates, NodeCredentials, Registries, Trust, TrustFiles, Unqualified};
use cria_streaming::Identity;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::args::Args;
use crate::cni::{CniError, CniSettings};
use crate::config::{Config, ConfigError, Warning};
use crate::container::config::SeccompProfile;
use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::logging::LevelSwitch;
use crate::node::{self, Node, Settings};
use crate::streaming::{self, CertificateError};

/// What a restart is needed for.
const FIXED: [&str; 22] = [
    "root",
    "run-dir",
    "listen",
    "log-format",
    "runtime.oci-runtime",
    "runtime.monitor",
    "runtime.cgroup-driver",
    "runtime.create-timeout",
    "network.netns-dir",
    "images.directory",
    "images.additional-stores",
    "images.certs-dirs",
    "images.parallel-layers",
    "images.pinned",
    "images.max-layer-gib",
    "streaming.address",
    "streaming.port",
    "streaming.tls-cert-file",
    "streaming.tls-key-file",
    "streaming.idle-timeout",
    "streaming.creation-timeout",
    "metrics.listen",
];

pub(crate) struct Reloader {
    /// Flags win over files then as at the start.
    args: Args,
    log_level: LevelSwitch,
}

#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Images(#[from] cria_images::Error),
    #[error(transparent)]
    Cni(#[from] CniError),
    #[error(transparent)]
    Seccomp(#[from] Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot look the node up")]
    Node(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where images come from, and which may be used.
pub(crate) struct ImageSources {
    pub(crate) registries: Registries,
    pub(crate) credentials: NodeCredentials,
    pub(crate) trust: Trust,
    pub(crate) certificates: Certificates,
}

/// Everything that was read, and found to be right.
struct Reading {
    settings: Settings,
    warnings: Vec<Warning>,
    images: ImageSources,
    cni: CniSettings,
    network: Option<String>,
    identity: Option<Identity>,
    /// Changed in the files, and not here.
    waiting: Vec<&'static str>,
}

impl Reloader {
    pub(crate) fn new(args: Args, log_level: LevelSwitch) -> Self {
        Self { args, log_level }
    }

    pub(crate) async fn reload(&self, daemon: &Daemon) {
        let (args, node) = (self.args.clone(), Arc::clone(&daemon.node));
        match spawn_blocking(move || Reading::take(&args, &node)).await {
            Ok(Ok(reading)) => self.apply(daemon, reading),
            Ok(Err(error)) => warn!(error = chain(&error), "nothing is reloaded"),
            Err(error) => warn!(%error, "nothing is reloaded"),
        }
    }

    fn apply(&self, daemon: &Daemon, reading: Reading) {
        let node = &daemon.node;
        for warning in &reading.warnings {
            warning.log();
        }
        for key in &reading.waiting {
            warn!(key, "changed in the configuration; takes effect at the next restart");
        }
        self.log_level.set(reading.settings.config.log_level);
        node.cni.use_settings(reading.cni);
        reading.images.use_by(node);
        if let Some(identity) = reading.identity {
            daemon.streaming.use_identity(identity);
        }
        node.settings.replace(reading.settings);
        daemon.reloaded.notify_one();
        info!(network = reading.network, "configuration, networks and registries are read again");
    }
}

impl Reading {
    fn take(args: &Args, node: &Node) -> Result<Self, ReloadError> {
        let (mut config, warnings) = Config::load(args)?;
        let waiting = config.keep(&node.settings.get().config, &FIXED);
        let images = ImageSources::read(&config, &node.images.trust().without_namespaces())?;
        let cni = cni_settings(&config);
        let network = cni.look_up()?.map(|network| network.name);
        let facts = node::facts(&config, &node.paths, &node.cgroups, &node.oci)
            .map_err(|error| ReloadError::Node(error.into()))?;
        // Read at every container's creation, where a mistake would come too late.
        if let Some(profile) = &config.runtime.seccomp_profile {
            let asked = SeccompProfile::Localhost(profile.display().to_string());
            node.seccomp(&asked, &facts.default_capabilities)?;
        }
        let identity = streaming::identity(&config.streaming)?;
        let settings = Settings { config, facts };
        Ok(Self { settings, warnings, images, cni, network, identity, waiting })
    }
}

/// Reads anew where images come from, which may be used, and who the streaming server is, and nothing
/// else. Pulls and sessions under way keep what they began with.
pub(crate) async fn files_alone(daemon: &Daemon) {
    let node = Arc::clone(&daemon.node);
    let read = move || {
        let config = &node.settings.get().config;
        let sources = ImageSources::read(config, &node.images.trust());
        (sources, streaming::identity(&config.streaming))
    };
    let (sources, identity) = match spawn_blocking(read).await {
        Ok(read) => read,
        Err(error) => return warn!(%error, "nothing is reloaded"),
    };
    match sources {
        Ok(sources) => {
            sources.use_by(&daemon.node);
            info!("registries, credentials, certificates and policies are read again");
        }
        Err(error) => warn!(error = chain(&error), "registries and credentials stay as they are"),
    }
    match identity {
        Ok(Some(identity)) => {
            daemon.streaming.use_identity(identity);
            info!("the streaming server's certificate is read again");
        }
        Ok(None) => {}
        Err(error) => {
            warn!(error = chain(&error), "the streaming server's certificate stays as it is");
        }
    }
}

impl ImageSources {
    /// As the files have it now; `trust` is what held before.
    pub(crate) fn read(config: &Config, trust: &Trust) -> Result<Self, cria_images::Error> {
        let images = &config.images;
        let unqualified = match images.refuse_unqualified {
            true => Unqualified::Refused,
            false => Unqualified::Completed,
        };
        let registries = Registries::load(Some(&images.registries_conf))?;
        let credentials = match &images.auth_file {
            Some(file) => NodeCredentials::load(file)?,
            None => NodeCredentials::default(),
        };
        let credentials = credentials.with_helpers(registries.credential_helpers());
        let registries = registries.with_unqualified(unqualified);
        let trust = trust.reload(&trust_files(config))?;
        let folders: Vec<_> = images.certs_dirs.iter().map(|folder| folder.to_path_buf()).collect();
        let certificates = Certificates::load(&folders)?;
        Ok(Self { registries, credentials, trust, certificates })
    }

    fn use_by(self, node: &Node) {
        let Self { registries, credentials, trust, certificates } = self;
        node.images.use_sources(Arc::new(registries), credentials, trust, certificates);
    }
}

pub(crate) fn trust_files(config: &Config) -> TrustFiles<'_> {
    let images = &config.images;
    TrustFiles {
        policy: &images.policy_file,
        namespaces: &images.namespace_policies_dir,
        places: &images.registries_d,
    }
}

pub(crate) fn cni_settings(config: &Config) -> CniSettings {
    let network = &config.network;
    CniSettings {
        conf_dir: network.cni_conf_dir.to_path_buf(),
        bin_dirs: network.cni_bin_dirs.iter().map(|dir| dir.to_path_buf()).collect(),
        deadline: network.cni_timeout.get(),
    }
}
