//! What systemd is told of a container's scope. Pure.
//!
//! By annotations of the OCI runtime's spec that crun and runc both read: the key names a property
//! of the unit, the value is in GVariant's text form.
//!
//! At the node's shutdown systemd stops the kubelet first, then the scopes, and only then what they are
//! ordered after: nobody makes anew what ends, and the daemon is there to record how it did.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The kubelet's, on each container, in seconds.
const GRACE_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";

/// What Kubernetes gives to pods that name none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// How a container's scope is ended when nobody but systemd ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) signal: i32,
    /// Then it is killed.
    pub(crate) grace: Duration,
}

impl Stop {
    /// With the pod's own grace, if the client told it.
    pub(crate) fn new(signal: i32, annotations: &BTreeMap<String, String>) -> Self {
        let told = annotations.get(GRACE_ANNOTATION).and_then(|seconds| seconds.parse().ok());
        Self { signal, grace: told.map_or(DEFAULT_GRACE, Duration::from_secs) }
    }
}

/// The annotations, for a daemon that is the service `unit`.
pub(crate) fn annotations(stop: Stop, unit: Option<&str>) -> BTreeMap<String, String> {
    // systemd takes all ones for "never".
    let grace = u64::try_from(stop.grace.as_micros()).unwrap_or(u64::MAX);
    let mut properties = vec![
        // The OCI runtimes switch them off: such a scope is not stopped at a shutdown, and its
        // processes are killed with the last of the system.
        ("DefaultDependencies", "true".to_owned()),
        ("KillSignal", format!("int32 {}", stop.signal)),
        ("TimeoutStopUSec", format!("uint64 {grace}")),
        // A container that was killed for memory leaves no failed unit.
        ("CollectMode", "'inactive-or-failed'".to_owned()),
    ];
    properties.extend(unit.map(|unit| ("After", format!("['{unit}']"))));
    properties.extend(unit.map(|_| ("Before", "['kubelet.service']".to_owned())));
    let properties =
        properties.into_iter().map(|(name, value)| (format!("org.systemd.property.{name}"), value));
    // crun would make a cgroup within the scope, where it and runc would have to be told apart.
    properties.chain([("run.oci.systemd.subgroup".to_owned(), String::new())]).collect()
}

/// The service that a process is in, from its `/proc/PID/cgroup`.
pub(crate) fn unit_of(cgroups: &str) -> Option<String> {
    let paths = cgroups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        // systemd's own tree: v2's, or the named one of v1.
        matches!(controllers, "" | "name=systemd").then_some(path)
    });
    let mut names = paths.flat_map(|path| Path::new(path).iter()).filter_map(|name| name.to_str());
    names.rfind(|name| name.ends_with(".service")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_the_containers_signal_and_grace_and_ends_after_the_kubelet_and_before_the_daemon()
     {
        let told = BTreeMap::from([(GRACE_ANNOTATION.to_owned(), "7".to_owned())]);
        let all = annotations(Stop::new(12, &told), Some("cria.service"));
        for (key, value) in [
            ("org.systemd.property.DefaultDependencies", "true"),
            ("org.systemd.property.KillSignal", "int32 12"),
            ("org.systemd.property.TimeoutStopUSec", "uint64 7000000"),
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.property.After", "['cria.service']"),
            ("org.systemd.property.Before", "['kubelet.service']"),
            ("run.oci.systemd.subgroup", ""),
        ] {
            assert_eq!(all.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn a_client_that_tells_no_grace_gets_that_of_kubernetes() {
        for text in ["", "-1", "soon"] {
            let told = BTreeMap::from([(GRACE_ANNOTATION.to_owned(), text.to_owned())]);
            assert_eq!(Stop::new(15, &told).grace, DEFAULT_GRACE, "{text}");
        }
        let stop = Stop::new(15, &BTreeMap::new());
        for order in ["After", "Before"] {
            let key = format!("org.systemd.property.{order}");
            assert!(!annotations(stop, None).contains_key(&key), "{key}");
        }
        let endless = Stop { grace: Duration::MAX, ..stop };
        let all = annotations(endless, None);
        assert_eq!(all["org.systemd.property.TimeoutStopUSec"], format!("uint64 {}", u64::MAX));
    }

    #[test]
    fn the_daemons_service_is_found_in_either_layout() {
        for (cgroups, unit) in [
            ("0::/system.slice/cria.service\n", Some("cria.service")),
            ("0::/system.slice/cria.service/daemon\n", Some("cria.service")),
            (
                "4:memory:/x.service\n1:name=systemd:/system.slice/my.service\n0::/\n",
                Some("my.service"),
            ),
            ("0::/user.slice/user-0.slice/user@0.service/app.slice/a.service\n", Some("a.service")),
            ("0::/user.slice/user-0.slice/session-1.scope\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(unit_of(cgroups).as_deref(), unit, "{cgroups}");
        }
    }
}
