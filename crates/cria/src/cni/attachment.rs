//! A pod's attachment to a network: all that ADD is told, and that DEL must be told again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bandwidth::Bandwidth;
use super::config::{NetworkConfig, Object};
use super::result::AddResult;
use super::{CniError, INTERFACE};
use crate::id::SandboxId;
use crate::sandbox::config::{Dns, PortMapping, Protocol, SandboxConfig};

/// Made before the ADD and kept in the sandbox's record from before the ADD until after the DEL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) network: NetworkConfig,
    pub(crate) sandbox: SandboxId,
    /// Where the network namespace is pinned.
    pub(crate) netns: PathBuf,
    /// None: nobody knows any more (see [`Attachment::forgotten`]).
    pod: Option<Pod>,
    capabilities: Capabilities,
}

/// Who the pod is, as plugins learn it from `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
}

/// What a plugin that declares the capability of the same name gets in its `runtimeConfig`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Capabilities {
    port_mappings: Vec<PortMapping>,
    bandwidth: Option<Bandwidth>,
    dns: Option<Dns>,
    cgroup_path: String,
    pod_annotations: BTreeMap<String, String>,
}

impl Attachment {
    /// Refuses what no plugin could be told: annotations and names that are not valid.
    pub(crate) fn new(
        network: NetworkConfig,
        sandbox: SandboxId,
        netns: PathBuf,
        config: &SandboxConfig,
    ) -> Result<Self, CniError> {
        let pod = Pod {
            namespace: argument("pod namespace", &config.namespace)?,
            name: argument("pod name", &config.name)?,
            uid: argument("pod uid", &config.uid)?,
        };
        let bandwidth =
            Bandwidth::from_annotations(&config.annotations).map_err(CniError::Annotation)?;
        let capabilities = Capabilities {
            port_mappings: config.port_mappings.clone(),
            bandwidth,
            dns: config.dns.clone(),
            cgroup_path: config.cgroup_parent.clone(),
            pod_annotations: config.annotations.clone(),
        };
        Ok(Self { network, sandbox, netns, pod: Some(pod), capabilities })
    }

    /// What is left to say of a sandbox whose record is lost, for its DEL.
    pub(crate) fn forgotten(network: NetworkConfig, sandbox: SandboxId, netns: PathBuf) -> Self {
        Self { network, sandbox, netns, pod: None, capabilities: Capabilities::default() }
    }

    /// The plugins' environment that says which attachment is meant.
    pub(super) fn environment(&self, netns: &Path) -> Vec<(&'static str, OsString)> {
        let sandbox = &self.sandbox;
        let arguments = match &self.pod {
            Some(Pod { namespace, name, uid }) => format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                 K8S_POD_INFRA_CONTAINER_ID={sandbox};K8S_POD_UID={uid}"
            ),
            None => format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={sandbox}"),
        };
        vec![
            ("CNI_CONTAINERID", self.sandbox.as_str().into()),
            ("CNI_NETNS", netns.into()),
            ("CNI_IFNAME", INTERFACE.into()),
            ("CNI_ARGS", arguments.into()),
        ]
    }

    /// The namespace for a DEL: empty, as the specification has it, if it is gone.
    pub(super) fn netns_if_alive(&self) -> &Path {
        let alive = statfs(&self.netns).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC);
        if alive { &self.netns } else { Path::new("") }
    }

    /// What `plugin` gets on its standard input.
    pub(super) fn plugin_config(&self, plugin: &Object, previous: Option<&AddResult>) -> Object {
        let mut config = base_config(&self.network, plugin);
        let runtime_config = self.capabilities.wanted_by(plugin);
        if !runtime_config.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(runtime_config));
        }
        if let Some(AddResult(previous)) = previous {
            config.insert("prevResult".into(), Value::Object(previous.clone()));
        }
        config
    }
}

/// The plugin's configuration with what the specification derives from the network's.
pub(super) fn base_config(network: &NetworkConfig, plugin: &Object) -> Object {
    let mut config = plugin.clone();
    config.remove("capabilities");
    config.insert("name".into(), network.name.clone().into());
    config.insert("cniVersion".into(), network.version.as_str().into());
    config
}

impl Capabilities {
    fn wanted_by(&self, plugin: &Object) -> Object {
        let declared = plugin.get("capabilities").and_then(Value::as_object);
        let names = declared.into_iter().flatten().filter(|(_, wanted)| **wanted == true);
        names.filter_map(|(name, _)| Some((name.clone(), self.value(name)?))).collect()
    }

    /// `None` for a capability that this pod has nothing to say about, or that we do not know.
    fn value(&self, name: &str) -> Option<Value> {
        match name {
            "portMappings" => {
                let hosted = self.port_mappings.iter().filter(|port| port.host_port > 0);
                let ports: Vec<Value> = hosted.map(port_mapping).collect();
                (!ports.is_empty()).then_some(Value::Array(ports))
            }
            "bandwidth" => self.bandwidth.map(|bandwidth| json!(bandwidth)),
            "dns" => self.dns.as_ref().map(|dns| json!(dns)),
            "cgroupPath" => (!self.cgroup_path.is_empty()).then(|| json!(self.cgroup_path)),
            "io.kubernetes.cri.pod-annotations" => {
                (!self.pod_annotations.is_empty()).then(|| json!(self.pod_annotations))
            }
            _ => None,
        }
    }
}

fn port_mapping(port: &PortMapping) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": protocol,
        "hostIP": port.host_ip,
    })
}

/// `CNI_ARGS` has no quoting: these characters would make another argument of the rest.
fn argument(what: &'static str, value: &str) -> Result<String, CniError> {
    if value.contains([';', '=', '\0']) {
        return Err(CniError::Argument { what, value: value.to_owned() });
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox_config() -> SandboxConfig {
        SandboxConfig {
            name: "web".into(),
            namespace: "shop".into(),
            uid: "1-2".into(),
            cgroup_parent: "/kubepods/pod1".into(),
            annotations: [("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned())].into(),
            port_mappings: vec![
                PortMapping { container_port: 80, host_port: 8080, ..Default::default() },
                PortMapping { container_port: 81, ..Default::default() },
            ],
            dns: Some(Dns { servers: vec!["10.0.0.10".into()], ..Default::default() }),
            ..Default::default()
        }
    }

    fn attachment(config: &SandboxConfig) -> Result<Attachment, CniError> {
        let network = br#"{"name": "pods", "cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#;
        let sandbox = SandboxId::parse(&"ab".repeat(32)).unwrap();
        Attachment::new(
            NetworkConfig::parse(network).unwrap(),
            sandbox,
            "/proc/self/ns/net".into(),
            config,
        )
    }

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_plugin_gets_the_capabilities_that_it_declares_and_no_others() {
        let attachment = attachment(&sandbox_config()).unwrap();
        let ports =
            json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]);
        let bandwidth = json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 10_000_000, "egressBurst": i32::MAX});
        for (declared, expected) in [
            (json!({}), json!({})),
            (json!({"portMappings": true}), json!({"portMappings": ports})),
            (json!({"portMappings": false, "bandwidth": true}), json!({"bandwidth": bandwidth})),
            (json!({"cgroupPath": true, "mac": true}), json!({"cgroupPath": "/kubepods/pod1"})),
            (
                json!({"dns": true}),
                json!({"dns": {"servers": ["10.0.0.10"], "searches": [], "options": []}}),
            ),
            (
                json!({"io.kubernetes.cri.pod-annotations": true}),
                json!({"io.kubernetes.cri.pod-annotations": {"kubernetes.io/egress-bandwidth": "10M"}}),
            ),
        ] {
            let plugin = object(json!({"type": "a", "capabilities": declared}));
            let config = attachment.plugin_config(&plugin, None);
            let got = config.get("runtimeConfig").cloned().unwrap_or_else(|| json!({}));
            assert_eq!(got, expected, "{declared}");
            assert_eq!(config.get("capabilities"), None);
        }
    }

    #[test]
    fn a_pod_that_says_nothing_has_no_runtime_config() {
        let attachment = attachment(&SandboxConfig::default()).unwrap();
        let capabilities = json!({"portMappings": true, "bandwidth": true, "dns": true,
            "cgroupPath": true, "io.kubernetes.cri.pod-annotations": true});
        let plugin = object(json!({"type": "a", "capabilities": capabilities}));
        assert_eq!(
            Value::Object(attachment.plugin_config(&plugin, None)),
            json!({"type": "a", "name": "pods", "cniVersion": "1.0.0"})
        );
    }

    #[test]
    fn the_previous_result_is_passed_on_as_it_was() {
        let attachment = attachment(&SandboxConfig::default()).unwrap();
        let result = json!({"ips": [], "foreign": {"kept": [1, 2]}});
        let previous = AddResult(object(result.clone()));
        let config = attachment.plugin_config(&object(json!({"type": "a"})), Some(&previous));
        assert_eq!(config["prevResult"], result);
    }

    #[test]
    fn plugins_learn_the_pod_from_the_arguments() {
        let attachment = attachment(&sandbox_config()).unwrap();
        let id = attachment.sandbox.clone();
        let environment = attachment.environment(Path::new("/ns"));
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;\
             K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=1-2"
        );
        let expected = [
            ("CNI_CONTAINERID", id.as_str()),
            ("CNI_NETNS", "/ns"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &arguments),
        ];
        assert_eq!(environment, expected.map(|(key, value)| (key, OsString::from(value))));
    }

    #[test]
    fn a_pod_that_nobody_knows_any_more_is_told_by_its_sandbox_alone() {
        let Attachment { network, sandbox, netns, .. } = attachment(&sandbox_config()).unwrap();
        let arguments = format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={sandbox}");
        let forgotten = Attachment::forgotten(network, sandbox, netns);
        let environment = forgotten.environment(Path::new("/ns"));
        assert!(environment.contains(&("CNI_ARGS", arguments.into())), "{environment:?}");
    }

    #[test]
    fn a_name_that_would_forge_an_argument_is_refused() {
        for name in ["a;K8S_POD_NAMESPACE", "a=b"] {
            let config = SandboxConfig { name: name.into(), ..Default::default() };
            assert!(matches!(attachment(&config), Err(CniError::Argument { .. })), "{name}");
        }
    }

    #[test]
    fn only_a_namespace_that_is_there_is_named_to_del() {
        let mut attachment = attachment(&SandboxConfig::default()).unwrap();
        assert_eq!(attachment.netns_if_alive(), Path::new("/proc/self/ns/net"));
        for gone in ["/proc/self/ns/absent", "/etc/passwd"] {
            attachment.netns = gone.into();
            assert_eq!(attachment.netns_if_alive(), Path::new(""));
        }
    }

    #[test]
    fn an_attachment_survives_its_record() {
        let attachment = attachment(&sandbox_config()).unwrap();
        let record = serde_json::to_string(&attachment).unwrap();
        assert_eq!(serde_json::from_str::<Attachment>(&record).unwrap(), attachment);
    }
}
