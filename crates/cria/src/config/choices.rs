//! The keys whose value is one of a few names.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Who owns the cgroup tree.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CgroupDriver {
    /// systemd makes a slice per pod and a scope per container, over D-Bus.
    Systemd,
    /// cria and the OCI runtime make the directories themselves.
    Cgroupfs,
    /// Systemd where it is PID 1, else cgroupfs.
    #[default]
    Auto,
}

/// The least important messages that are logged.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogLevel {
    /// Someone must act.
    Error,
    /// And what goes on, degraded.
    Warn,
    /// And every operation that changed something.
    #[default]
    Info,
    /// And every query.
    Debug,
    /// And what crosses the boundaries to other processes.
    Trace,
}

/// How messages are written to stderr.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The flags and the files spell these the same: by clap's names, which are serde's too.
macro_rules! displayed_by_name {
    ($($type:ty),+) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value().expect("no variant is skipped");
                formatter.write_str(value.get_name())
            }
        }
    )+};
}

displayed_by_name!(CgroupDriver, LogLevel, LogFormat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_alike_by_flags_and_files() {
        fn check<
            T: ValueEnum + fmt::Display + for<'de> Deserialize<'de> + PartialEq + fmt::Debug,
        >() {
            for value in T::value_variants() {
                let read: T = toml::Value::String(value.to_string()).try_into().unwrap();
                assert_eq!(read, *value);
            }
        }
        check::<CgroupDriver>();
        check::<LogLevel>();
        check::<LogFormat>();
    }
}
