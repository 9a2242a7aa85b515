//! The client of the CNI: attaches pods to the network and detaches them, by running the plugins
//! that the network's configuration names.
//!
//! The caller keeps an [`Attachment`] in its record from before [`Cni::add`] until [`Cni::del`]
//! has succeeded, and calls `del` also after an `add` that failed. At most one of the two runs for
//! a sandbox at a time.

mod attachment;
mod bandwidth;
mod config;
mod former;
mod plugin;
mod readiness;
mod result;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) use self::attachment::Attachment;
use self::attachment::base_config;
pub(crate) use self::config::{BrokenFile, ConfigDir, NetworkConfig, read_dir};
use self::config::{Object, plugin_type};
use self::former::Former;
pub(crate) use self::plugin::{Command, PluginFailure};
use self::plugin::{Plugins, Run, excerpt};
use self::readiness::Readiness;
pub(crate) use self::result::AddResult;
use crate::id::SandboxId;
use crate::live::Live;
use crate::orphans;

/// The pod's interface, as Kubernetes knows it.
pub(crate) const INTERFACE: &str = "eth0";

#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    #[error("no CNI network configuration in {}{}", dir.display(), list(broken))]
    NoNetwork { dir: PathBuf, broken: Vec<BrokenFile> },
    #[error("CNI network configurations are broken{}", list(.0))]
    Broken(Vec<BrokenFile>),
    #[error("cannot read the CNI network configurations in {}", dir.display())]
    ConfigDir { dir: PathBuf, source: std::io::Error },
    #[error("pod annotation {0}")]
    Annotation(String),
    #[error("{what} {value:?} cannot be told to a CNI plugin")]
    Argument { what: &'static str, value: String },
    #[error("CNI {command} in network {network}: plugin {plugin}")]
    Plugin { network: String, plugin: String, command: Command, source: PluginFailure },
    #[error("CNI STATUS of network {network} has no answer yet")]
    StatusPending { network: String },
}

#[derive(Clone, Debug)]
pub(crate) struct CniSettings {
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// For each run of a plugin.
    pub(crate) deadline: Duration,
}

impl CniSettings {
    /// The network that they name; none is no mistake, a file that cannot be understood is. Blocks.
    pub(crate) fn look_up(&self) -> Result<Option<NetworkConfig>, CniError> {
        let dir = self.conf_dir.clone();
        let found = read_dir(&dir).map_err(|source| CniError::ConfigDir { dir, source })?;
        match found.broken.is_empty() {
            true => Ok(found.network),
            false => Err(CniError::Broken(found.broken)),
        }
    }
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Added {
    pub(crate) result: AddResult,
    /// Bare, the primary one first; never empty.
    pub(crate) ips: Vec<IpAddr>,
}

#[derive(Debug)]
pub(crate) struct Cni {
    places: Live<Places>,
    mark: String,
    readiness: Readiness,
    former: Former,
}

/// Where configurations and plugins are.
#[derive(Debug)]
struct Places {
    conf_dir: PathBuf,
    plugins: Plugins,
}

impl Places {
    fn of(settings: CniSettings) -> Self {
        let CniSettings { conf_dir, bin_dirs, deadline } = settings;
        Self { conf_dir, plugins: Plugins { dirs: bin_dirs, deadline } }
    }
}

impl Cni {
    /// The marks of this daemon's plugins start with `mark` (see `orphans`).
    pub(crate) fn new(settings: CniSettings, mark: String) -> Arc<Self> {
        Arc::new(Self {
            places: Live::new(Places::of(settings)),
            former: Former::new(self::mark(&mark, Command::Del)),
            mark,
            readiness: Readiness::default(),
        })
    }

    /// From now on; plugins that run go on as they began.
    pub(crate) fn use_settings(&self, settings: CniSettings) {
        self.places.replace(Places::of(settings));
    }

    /// Ends the plugins that a former daemon left running, but for those that change something:
    /// they are awaited before we do anything for the same sandbox. Blocks; before anything else is
    /// asked. Answers how many there were.
    pub(crate) fn take_over(&self, deadline: Duration) -> std::io::Result<usize> {
        let ended = orphans::end_orphans(&mark(&self.mark, Command::Status), deadline)?;
        Ok(ended + self.former.find()?)
    }

    /// The network that new pods are attached to, as its file has it now.
    pub(crate) async fn network(&self) -> Result<NetworkConfig, CniError> {
        let dir = self.places.get().conf_dir.clone();
        let looked_in = dir.clone();
        let read = tokio::task::spawn_blocking(move || read_dir(&looked_in)).await;
        let read = read.map_err(std::io::Error::other).and_then(|read| read);
        match read {
            Err(source) => Err(CniError::ConfigDir { dir, source }),
            Ok(ConfigDir { network: Some(network), .. }) => Ok(network),
            Ok(ConfigDir { network: None, broken }) => Err(CniError::NoNetwork { dir, broken }),
        }
    }

    /// Runs the plugins in order. What they did before one failed is undone by `del`.
    pub(crate) async fn add(&self, attachment: &Attachment) -> Result<Added, CniError> {
        let mut last: Option<(&Object, AddResult)> = None;
        for plugin in &attachment.network.plugins {
            let previous = last.as_ref().map(|(_, result)| result);
            let call = Call::of(attachment, Command::Add, plugin, previous, &attachment.netns);
            let answer = self.call(call).await?;
            let object = serde_json::from_slice(&answer).map_err(|error| {
                garbage(&attachment.network, Command::Add, plugin, error.to_string(), &answer)
            })?;
            last = Some((plugin, AddResult(object)));
        }
        let (plugin, result) = last.expect("a network has a plugin");
        let ips = result.ips(INTERFACE).map_err(|reason| {
            let answer = Value::Object(result.0.clone()).to_string();
            garbage(&attachment.network, Command::Add, plugin, reason, answer.as_bytes())
        })?;
        Ok(Added { result, ips })
    }

    /// Runs the plugins in reverse. Idempotent, as the specification demands of plugins; `result`
    /// is what `add` answered, if it did. The namespace may be gone.
    pub(crate) async fn del(
        &self,
        attachment: &Attachment,
        result: Option<&AddResult>,
    ) -> Result<(), CniError> {
        let deadline = self.places.get().plugins.deadline;
        self.former.finish(attachment.sandbox.as_str(), deadline).await;
        let result = result.filter(|_| attachment.network.version.del_takes_result());
        let netns = attachment.netns_if_alive();
        for plugin in attachment.network.plugins.iter().rev() {
            self.call(Call::of(attachment, Command::Del, plugin, result, netns)).await?;
        }
        Ok(())
    }

    /// Tells the plugins which sandboxes are attached, so that they free what belongs to no other.
    /// Only while nothing is attached or detached: at start. Every plugin is told, also after
    /// one failed; the first failure is returned.
    pub(crate) async fn gc<'a>(
        &self,
        network: &NetworkConfig,
        attached: impl IntoIterator<Item = &'a SandboxId>,
    ) -> Result<(), CniError> {
        if !network.version.has_status_and_gc() || network.disable_gc {
            return Ok(());
        }
        let valid: Value = attached
            .into_iter()
            .map(|sandbox| json!({"containerID": sandbox.as_str(), "ifname": INTERFACE}))
            .collect();
        let mut outcome = Ok(());
        for plugin in &network.plugins {
            let mut call = Call::of_network(network, Command::Gc, plugin);
            call.config.insert("cni.dev/valid-attachments".into(), valid.clone());
            // What implementations before the specification's final text looked for.
            call.config.insert("cni.dev/attachments".into(), valid.clone());
            outcome = outcome.and(self.call(call).await.map(drop));
        }
        outcome
    }

    /// Whether a pod could be attached now: there is a network, its plugins are there, and they
    /// say so if they speak 1.1. Answers from a check a few seconds old, except the first time.
    pub(crate) async fn readiness(self: &Arc<Self>) -> Result<(), Arc<CniError>> {
        let network = self.network().await?;
        let places = self.places.get();
        for plugin in network.plugin_types() {
            places.plugins.find(plugin).map_err(|source| CniError::Plugin {
                network: network.name.clone(),
                plugin: plugin.to_owned(),
                command: Command::Status,
                source,
            })?;
        }
        if !network.version.has_status_and_gc() {
            return Ok(());
        }
        self.cached_status(network).await
    }

    async fn status(&self, network: &NetworkConfig) -> Result<(), CniError> {
        for plugin in &network.plugins {
            self.call(Call::of_network(network, Command::Status, plugin)).await?;
        }
        Ok(())
    }

    async fn call(&self, call: Call<'_>) -> Result<Vec<u8>, CniError> {
        let plugin = plugin_type(call.plugin);
        let run = Run {
            plugin,
            command: call.command,
            environment: call.environment,
            mark: mark(&self.mark, call.command) + call.subject,
            input: Value::Object(call.config).to_string().into_bytes(),
        };
        self.places.get().plugins.run(run).await.map_err(|source| CniError::Plugin {
            network: call.network.name.clone(),
            plugin: plugin.to_owned(),
            command: call.command,
            source,
        })
    }
}

/// How the mark of a plugin begins; what it is about follows.
fn mark(prefix: &str, command: Command) -> String {
    let fate = if command.dies_with_daemon() { "ends" } else { "finishes" };
    format!("{prefix}{fate}:")
}

/// One plugin's turn.
struct Call<'a> {
    network: &'a NetworkConfig,
    plugin: &'a Object,
    command: Command,
    environment: Vec<(&'static str, OsString)>,
    config: Object,
    /// What the mark ends with.
    subject: &'a str,
}

impl<'a> Call<'a> {
    fn of(
        attachment: &'a Attachment,
        command: Command,
        plugin: &'a Object,
        previous: Option<&AddResult>,
        netns: &Path,
    ) -> Self {
        Self {
            network: &attachment.network,
            plugin,
            command,
            environment: attachment.environment(netns),
            config: attachment.plugin_config(plugin, previous),
            subject: attachment.sandbox.as_str(),
        }
    }

    fn of_network(network: &'a NetworkConfig, command: Command, plugin: &'a Object) -> Self {
        Self {
            network,
            plugin,
            command,
            environment: Vec::new(),
            config: base_config(network, plugin),
            subject: &network.name,
        }
    }
}

fn garbage(
    network: &NetworkConfig,
    command: Command,
    plugin: &Object,
    reason: String,
    answer: &[u8],
) -> CniError {
    CniError::Plugin {
        network: network.name.clone(),
        plugin: plugin_type(plugin).to_owned(),
        command,
        source: PluginFailure::Garbage { reason, output: excerpt(answer) },
    }
}

fn list(broken: &[BrokenFile]) -> String {
    broken.iter().map(|file| format!("; {file}")).collect()
}
