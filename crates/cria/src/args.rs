//! The command line. Every flag is a key of the configuration too (see `config`), and wins over it.

use std::path::{self, Path, PathBuf};
use std::str::FromStr;

use clap::{Parser, Subcommand};
use toml::Value;

use crate::config::{AbsolutePath, CgroupDriver, LogFormat, LogLevel, Program, SocketPath, Unfit};

/// Runs containers for the kubelet: serves the Kubernetes Container Runtime Interface on a unix
/// socket. Without a subcommand the daemon runs in the foreground.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "cria", version, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// The configuration file; may be missing unless named here [default: /etc/cria/cria.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of drop-ins (*.toml), read in the order of their names after the file; may be
    /// missing unless named here [default: /etc/cria/cria.toml.d]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,

    /// What outlives a reboot: images, root filesystems, records
    #[arg(long, global = true, value_name = "DIR", value_parser = from_here::<AbsolutePath>)]
    pub(crate) root: Option<AbsolutePath>,
    /// What dies with a boot: sockets, pinned namespaces, exit records
    #[arg(long, global = true, value_name = "DIR", value_parser = from_here::<AbsolutePath>)]
    pub(crate) run_dir: Option<AbsolutePath>,
    /// The unix socket that serves the CRI
    #[arg(long, global = true, value_name = "SOCKET", value_parser = from_here::<SocketPath>)]
    pub(crate) listen: Option<SocketPath>,
    /// Where registries, their mirrors and their trust are configured
    #[arg(long, global = true, value_name = "FILE", value_parser = from_here::<AbsolutePath>)]
    pub(crate) registries_conf: Option<AbsolutePath>,
    /// Where the pods' network namespaces are pinned
    #[arg(long, global = true, value_name = "DIR", value_parser = from_here::<AbsolutePath>)]
    pub(crate) netns_dir: Option<AbsolutePath>,
    /// CNI network configurations
    #[arg(long, global = true, value_name = "DIR", value_parser = from_here::<AbsolutePath>)]
    pub(crate) cni_conf_dir: Option<AbsolutePath>,
    /// CNI plugins; may be repeated, the first directory that has a plugin wins
    #[arg(long, global = true, value_name = "DIR", value_parser = from_here::<AbsolutePath>)]
    pub(crate) cni_bin_dir: Vec<AbsolutePath>,
    /// The OCI runtime: a path, or a name in $PATH [default: crun if it works here, else runc]
    #[arg(long, global = true, value_name = "PATH", value_parser = program)]
    pub(crate) oci_runtime: Option<Program>,
    /// The monitor's executable [default: beside cria's own]
    #[arg(long, global = true, value_name = "PATH", value_parser = from_here::<AbsolutePath>)]
    pub(crate) monitor: Option<AbsolutePath>,
    /// Who owns the cgroup tree
    #[arg(long, global = true, value_name = "DRIVER")]
    pub(crate) cgroup_driver: Option<CgroupDriver>,
    /// The least important messages to log
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// How messages are logged
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Print the version, and the Kubernetes releases it serves
    Version,
    /// Print the configuration in effect, and where each key was set
    Config,
    /// Print what this node has and lacks, what follows, and what to do. The exit code is 0 if
    /// nothing is missing, 1 if pods could not run, 2 if something is missing that some pods want
    Check {
        /// Print one JSON object: `version`, and `findings`
        #[arg(long)]
        json: bool,
    },
    /// Ask the running daemon whether it is ready, and print how its pulls get on
    Status {
        /// Print one JSON object: `version`, `conditions` and `images`
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    /// What the flags set, as keys of the configuration.
    pub(crate) fn settings(&self) -> Vec<(&'static str, Value)> {
        let text = |value: &dyn ToString| Value::String(value.to_string());
        let directories = || self.cni_bin_dir.iter().map(|dir| text(dir)).collect();
        [
            ("root", self.root.as_ref().map(|value| text(value))),
            ("run-dir", self.run_dir.as_ref().map(|value| text(value))),
            ("listen", self.listen.as_ref().map(|value| text(value))),
            ("log-level", self.log_level.as_ref().map(|value| text(value))),
            ("log-format", self.log_format.as_ref().map(|value| text(value))),
            ("runtime.oci-runtime", self.oci_runtime.as_ref().map(|value| text(value))),
            ("runtime.monitor", self.monitor.as_ref().map(|value| text(value))),
            ("runtime.cgroup-driver", self.cgroup_driver.as_ref().map(|value| text(value))),
            ("network.cni-conf-dir", self.cni_conf_dir.as_ref().map(|value| text(value))),
            (
                "network.cni-bin-dirs",
                (!self.cni_bin_dir.is_empty()).then(|| Value::Array(directories())),
            ),
            ("network.netns-dir", self.netns_dir.as_ref().map(|value| text(value))),
            ("images.registries-conf", self.registries_conf.as_ref().map(|value| text(value))),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }
}

/// A path as one types it, from the working directory. In a file it would have none to start from.
fn from_here<T: FromStr<Err = Unfit>>(text: &str) -> Result<T, Unfit> {
    let absolute = path::absolute(text).ok();
    // An empty path has no absolute form, and is refused as it is.
    absolute.as_deref().and_then(Path::to_str).unwrap_or(text).parse()
}

fn program(text: &str) -> Result<Program, Unfit> {
    if text.contains('/') { from_here(text) } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_sets_its_key_before_or_after_the_subcommand() {
        for (flag, value, key) in [
            ("--root", "/a", "root"),
            ("--run-dir", "/a", "run-dir"),
            ("--listen", "/a", "listen"),
            ("--registries-conf", "/a", "images.registries-conf"),
            ("--netns-dir", "/a", "network.netns-dir"),
            ("--cni-conf-dir", "/a", "network.cni-conf-dir"),
            ("--cni-bin-dir", "/a", "network.cni-bin-dirs"),
            ("--oci-runtime", "youki", "runtime.oci-runtime"),
            ("--monitor", "/a", "runtime.monitor"),
            ("--cgroup-driver", "cgroupfs", "runtime.cgroup-driver"),
            ("--log-level", "warn", "log-level"),
            ("--log-format", "json", "log-format"),
        ] {
            for line in [["cria", flag, value, "check"], ["cria", "check", flag, value]] {
                let args = Args::try_parse_from(line).unwrap();
                let settings = args.settings();
                assert_eq!(settings.len(), 1, "{line:?}");
                assert_eq!(settings[0].0, key);
                let set = match &settings[0].1 {
                    Value::Array(items) => items[0].as_str(),
                    other => other.as_str(),
                };
                assert_eq!(set, Some(value), "{flag}");
            }
        }
    }

    #[test]
    fn flags_refuse_what_the_keys_refuse() {
        for line in [
            ["cria", "--cgroup-driver", "sytemd"],
            ["cria", "--log-level", "loud"],
            ["cria", "--log-format", "xml"],
            ["cria", "--oci-runtime", ""],
            ["cria", "--root", ""],
        ] {
            assert!(Args::try_parse_from(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn paths_may_be_relative_to_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        let line = ["cria", "--root", "a", "--oci-runtime", "./crun", "--cni-bin-dir", "b/c"];
        let args = Args::try_parse_from(line).unwrap();
        assert_eq!(args.root.as_deref(), Some(&*here.join("a")));
        assert_eq!(args.oci_runtime.unwrap().as_ref(), here.join("crun"));
        assert_eq!(&*args.cni_bin_dir[0], here.join("b/c"));
    }
}
