//! The configuration: one TOML file and its drop-ins, under the flags of the command line.
//!
//! Each table is a struct with its defaults; each key says what it means and what follows from it.
//! A value that makes no sense cannot be held by its type (`values`), so a wrong one stops the
//! start (`load`); an unknown key is a warning, because fleets roll configuration and binary
//! separately. `packaging/cria.toml` explains the same keys to administrators, and a test holds it
//! to the defaults here.

mod choices;
mod load;
mod unknown;
mod values;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};

use serde::{Deserialize, Serialize};

pub(crate) use choices::{CgroupDriver, LogFormat, LogLevel};
pub(crate) use load::{ConfigError, Sources};
pub(crate) use unknown::Warning;
pub(crate) use values::{
    AbsolutePath, Capability, ImagePattern, PidsLimit, Program, Rlimit, SocketPath, Timeout, Unfit,
};

use crate::args::Args;

/// Everything an administrator can set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// What outlives a reboot: images, root filesystems, records. Overlay must be able to have its
    /// upper directories here.
    pub(crate) root: AbsolutePath,
    /// What dies with a boot: sockets, pinned namespaces, exit records. A tmpfs, usually.
    pub(crate) run_dir: AbsolutePath,
    /// The unix socket that serves the CRI, mode 0660.
    pub(crate) listen: SocketPath,
    pub(crate) log_level: LogLevel,
    pub(crate) log_format: LogFormat,
    pub(crate) runtime: RuntimeConfig,
    pub(crate) network: NetworkConfig,
    pub(crate) images: ImagesConfig,
    pub(crate) streaming: StreamingConfig,
    pub(crate) metrics: MetricsConfig,
}

/// How containers are run: the `[runtime]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case", expecting = "a table")]
pub(crate) struct RuntimeConfig {
    /// The OCI runtime. None: crun if it works on this node, else runc.
    #[serde(with = "values::optional")]
    pub(crate) oci_runtime: Option<Program>,
    /// The monitor's executable. None: beside the daemon's own, then in `$PATH`, then
    /// `/usr/libexec/cria/cria-monitor`.
    #[serde(with = "values::optional")]
    pub(crate) monitor: Option<AbsolutePath>,
    /// Who owns the cgroup tree. The kubelet learns it from the RuntimeConfig call.
    pub(crate) cgroup_driver: CgroupDriver,
    /// Most processes a container may have. The kubelet has a limit of its own per pod, so this
    /// is for nodes where one container must not use up its pod's.
    pub(crate) pids_limit: PidsLimit,
    /// What a container may do before its pod adds or drops capabilities.
    pub(crate) default_capabilities: BTreeSet<Capability>,
    /// The seccomp profile behind `RuntimeDefault`, in the JSON of the OCI or of Docker. None: the
    /// one built in.
    #[serde(with = "values::optional")]
    pub(crate) seccomp_profile: Option<AbsolutePath>,
    /// After this a call of the OCI runtime is killed and has failed.
    pub(crate) create_timeout: Timeout,
    pub(crate) rlimits: RlimitsConfig,
}

/// The resource limits of every container: the `[runtime.rlimits]` table. The CRI has no field
/// for them, and a container must not inherit the daemon's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case", expecting = "a table")]
pub(crate) struct RlimitsConfig {
    /// Open file descriptors. The soft limit stays low because programs that use select(2), or
    /// that close every possible descriptor, break or crawl under a high one.
    pub(crate) nofile: Rlimit,
}

/// How pods reach the network: the `[network]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case", expecting = "a table")]
pub(crate) struct NetworkConfig {
    /// CNI network configurations; the first in the order of their names is the pods' network.
    pub(crate) cni_conf_dir: AbsolutePath,
    /// CNI plugins; the first directory that has one wins.
    #[serde(deserialize_with = "values::at_least_one")]
    pub(crate) cni_bin_dirs: Vec<AbsolutePath>,
    /// Where network namespaces are pinned. Multus and OVN-Kubernetes look in the default.
    pub(crate) netns_dir: AbsolutePath,
    /// After this a CNI plugin is killed and has failed.
    pub(crate) cni_timeout: Timeout,
}

/// Where images come from, and where they are kept: the `[images]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case", expecting = "a table")]
pub(crate) struct ImagesConfig {
    /// Where images are kept. None: below `root`. A filesystem of its own may be mounted there,
    /// which then is the one that the kubelet watches for images.
    #[serde(with = "values::optional")]
    pub(crate) directory: Option<AbsolutePath>,
    /// Directories with images that come with the node's system, `images` and `layers` copied from
    /// such a directory: read, never written to. Read at the start; none need exist.
    pub(crate) additional_stores: Vec<AbsolutePath>,
    /// Registries, their mirrors and their trust, as all container tools share them. May be
    /// missing.
    pub(crate) registries_conf: AbsolutePath,
    /// Whether names without a registry are refused. Otherwise they are the first search
    /// registry's, or Docker Hub's.
    pub(crate) refuse_unqualified: bool,
    /// Credentials for pulls that bring none, in the format of `auth.json`. None: such pulls are
    /// anonymous.
    #[serde(with = "values::optional")]
    pub(crate) auth_file: Option<AbsolutePath>,
    /// Folders of certificates by registry: whom to trust there besides the system's
    /// authorities, and who to be. The first that knows a registry counts; none need exist.
    pub(crate) certs_dirs: Vec<AbsolutePath>,
    /// Which images may be pulled and used: containers-policy.json(5). Missing: all.
    pub(crate) policy_file: AbsolutePath,
    /// Policies of namespaces, `<namespace>.json`, each in place of the node's. May be missing.
    pub(crate) namespace_policies_dir: AbsolutePath,
    /// Where signatures of images are: containers-registries.d(5). May be missing.
    pub(crate) registries_d: AbsolutePath,
    /// Layers of one image that are downloaded and unpacked at once.
    pub(crate) parallel_layers: NonZeroU8,
    /// Images that the kubelet is never to collect: it is told that they are pinned.
    pub(crate) pinned: Vec<ImagePattern>,
    /// The largest layer, uncompressed, in GiB. A larger one is refused before it fills the disk.
    pub(crate) max_layer_gib: NonZeroU32,
}

/// Where counters are served: the `[metrics]` table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case", expecting = "a table")]
pub(crate) struct MetricsConfig {
    /// `ADDRESS:PORT`. None: nowhere.
    #[serde(with = "values::optional")]
    pub(crate) listen: Option<SocketAddr>,
}

/// Where exec, attach and port-forward are served: the `[streaming]` table. The kubelet is told the
/// address with each session, and connects to it from the node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case", expecting = "a table")]
pub(crate) struct StreamingConfig {
    pub(crate) address: IpAddr,
    /// 0: one that is free.
    pub(crate) port: u16,
    /// The server's certificate and those between it and an authority, in PEM. None: plain HTTP.
    #[serde(with = "values::optional")]
    pub(crate) tls_cert_file: Option<AbsolutePath>,
    /// The certificate's key. None: it is in the same file.
    #[serde(with = "values::optional")]
    pub(crate) tls_key_file: Option<AbsolutePath>,
    /// A session in which nothing is said for so long is ended.
    pub(crate) idle_timeout: Timeout,
    /// What a client gets to open its streams.
    pub(crate) creation_timeout: Timeout,
}

impl Config {
    /// Reads the files that `args` names and puts its flags over them. The warnings are for the
    /// log, which does not exist before the configuration is read.
    pub(crate) fn load(args: &Args) -> Result<(Self, Vec<Warning>), ConfigError> {
        let sources = Sources::read(args)?;
        Ok((sources.config(), sources.warnings))
    }

    /// Takes these keys back to what they are in `current`; answers which of them differed.
    pub(crate) fn keep(&mut self, current: &Self, keys: &[&'static str]) -> Vec<&'static str> {
        let (kept, differed) = load::keep(self, current, keys);
        *self = kept;
        differed
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: known("/var/lib/cria"),
            run_dir: known("/run/cria"),
            listen: "/run/cria/cria.sock".parse().expect("the path is absolute and short"),
            log_level: LogLevel::default(),
            log_format: LogFormat::default(),
            runtime: RuntimeConfig::default(),
            network: NetworkConfig::default(),
            images: ImagesConfig::default(),
            streaming: StreamingConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

/// What images are built and tested with everywhere. (CRI-O leaves out NET_RAW, MKNOD, SYS_CHROOT,
/// SETFCAP and AUDIT_WRITE: a node that wants that sets the key.)
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

impl RuntimeConfig {
    /// The default capabilities, as the kernel spells them: `CAP_CHOWN`.
    pub(crate) fn capability_names(&self) -> BTreeSet<String> {
        self.default_capabilities.iter().map(ToString::to_string).collect()
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let capability = |name: &&str| name.parse().expect("every name is a capability's");
        Self {
            oci_runtime: None,
            monitor: None,
            cgroup_driver: CgroupDriver::default(),
            pids_limit: PidsLimit::default(),
            default_capabilities: DEFAULT_CAPABILITIES.iter().map(capability).collect(),
            seccomp_profile: None,
            // The kubelet gives up after two minutes and asks again; hooks may need longer, and
            // its second question finds the first call still under way.
            create_timeout: Timeout::minutes(const { NonZeroU32::new(4).unwrap() }),
            rlimits: RlimitsConfig::default(),
        }
    }
}

impl Default for RlimitsConfig {
    fn default() -> Self {
        // What systemd gives to its services.
        Self { nofile: Rlimit::new(1024, 524_288) }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            cni_conf_dir: known("/etc/cni/net.d"),
            cni_bin_dirs: vec![known("/opt/cni/bin"), known("/usr/lib/cni")],
            netns_dir: known("/run/netns"),
            // Above the two minutes that OVN-Kubernetes' plugin may wait, so that its own error
            // is seen; below the four that the kubelet waits for RunPodSandbox.
            cni_timeout: Timeout::minutes(const { NonZeroU32::new(3).unwrap() }),
        }
    }
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            directory: None,
            additional_stores: Vec::new(),
            registries_conf: known("/etc/containers/registries.conf"),
            refuse_unqualified: false,
            auth_file: None,
            certs_dirs: vec![known("/etc/containers/certs.d"), known("/etc/docker/certs.d")],
            policy_file: known("/etc/containers/policy.json"),
            namespace_policies_dir: known("/etc/cria/policies"),
            registries_d: known("/etc/containers/registries.d"),
            parallel_layers: const { NonZeroU8::new(6).unwrap() },
            pinned: Vec::new(),
            max_layer_gib: const { NonZeroU32::new(100).unwrap() },
        }
    }
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            tls_cert_file: None,
            tls_key_file: None,
            // The kubelet's own streamingConnectionIdleTimeout.
            idle_timeout: Timeout::minutes(const { NonZeroU32::new(240).unwrap() }),
            creation_timeout: Timeout::seconds(const { NonZeroU32::new(30).unwrap() }),
        }
    }
}

fn known(path: &str) -> AbsolutePath {
    path.parse().expect("the path is absolute")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGED: &str = include_str!("../../../packaging/cria.toml");

    /// The file with every key's line uncommented: keys are `#key = ...`, prose is `# ...`.
    fn uncommented() -> String {
        PACKAGED.lines().map(|line| uncomment(line).to_owned() + "\n").collect()
    }

    fn uncomment(line: &str) -> &str {
        match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key,
            Some(_) | None => line,
        }
    }

    #[test]
    fn the_packaged_file_as_it_is_gives_the_defaults() {
        assert_eq!(toml::from_str::<Config>(PACKAGED).unwrap(), Config::default());
        assert!(
            toml::from_str::<toml::Table>(PACKAGED)
                .unwrap()
                .values()
                .filter_map(toml::Value::as_table)
                .flat_map(toml::Table::values)
                .all(toml::Value::is_table),
            "every key is commented out"
        );
    }

    #[test]
    fn the_packaged_file_uncommented_gives_every_key_at_its_default() {
        let packaged: toml::Table = toml::from_str(&uncommented()).unwrap();
        let config: Config = packaged.clone().try_into().unwrap();
        assert_eq!(config, Config::default());
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(keys(&packaged), keys(&defaults));
    }

    #[test]
    fn the_packaged_file_explains_every_key() {
        let mut explained = false;
        for line in PACKAGED.lines() {
            if uncomment(line) != line {
                assert!(explained, "nothing above {line}");
            }
            explained = line.starts_with("# ");
        }
    }

    fn keys(table: &toml::Table) -> Vec<String> {
        let mut all = vec![];
        for (key, value) in table {
            match value.as_table() {
                Some(inner) => all.extend(keys(inner).iter().map(|inner| format!("{key}.{inner}"))),
                None => all.push(key.clone()),
            }
        }
        all
    }
}
