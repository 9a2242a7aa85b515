//! Network configurations: which one of a directory counts, and what is in it.
//!
//! The directory is read at each use: a few small files, against plugins that take tens of
//! milliseconds, and nothing that could be stale (a directory's own time does not change when a
//! file in it is written in place).

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A JSON object.
pub(crate) type Object = Map<String, Value>;

/// A version of the CNI specification that we speak, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum SpecVersion {
    #[serde(rename = "0.3.0")]
    V0_3_0,
    #[serde(rename = "0.3.1")]
    V0_3_1,
    #[serde(rename = "0.4.0")]
    V0_4_0,
    #[serde(rename = "1.0.0")]
    V1_0_0,
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

/// A network: a chain of plugins. Kept in the record of every sandbox that is attached to it, so
/// that it is left the way it was entered, whatever has become of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkConfig {
    pub(crate) name: String,
    pub(crate) version: SpecVersion,
    #[serde(default)]
    pub(crate) disable_gc: bool,
    /// In the order of ADD; each as its file has it. Never empty, and each has a plain `type`.
    pub(crate) plugins: Vec<Object>,
}

/// A file that is not a network configuration, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokenFile {
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

/// What a directory of network configurations holds.
#[derive(Debug, PartialEq)]
pub(crate) struct ConfigDir {
    /// The lexically first valid one.
    pub(crate) network: Option<NetworkConfig>,
    /// Those before it that are not valid.
    pub(crate) broken: Vec<BrokenFile>,
}

impl SpecVersion {
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// STATUS and GC came with 1.1.
    pub(crate) fn has_status_and_gc(self) -> bool {
        self >= Self::V1_1_0
    }

    /// DEL is told the result of ADD since 0.4.
    pub(crate) fn del_takes_result(self) -> bool {
        self >= Self::V0_4_0
    }
}

impl NetworkConfig {
    /// A `.conflist`, or a single plugin's configuration, which is a list of one.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let file: Object = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let plugins = match file.get("plugins") {
            Some(plugins) => plugin_list(plugins)?,
            None => vec![file.clone()],
        };
        for plugin in &plugins {
            check_type(plugin)?;
        }
        Ok(Self {
            name: network_name(&file)?,
            version: highest_version(&file)?,
            disable_gc: flag(&file, "disableGC")?,
            plugins,
        })
    }

    /// The plugins' names, in the order of ADD.
    pub(crate) fn plugin_types(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.plugins.iter().map(plugin_type)
    }
}

impl fmt::Display for BrokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

/// The lexically first valid configuration of `dir`. A directory that does not exist is an empty
/// one: it comes with the network's installation.
pub(crate) fn read_dir(dir: &Path) -> std::io::Result<ConfigDir> {
    let mut broken = Vec::new();
    for path in config_files(dir)? {
        match fs_err::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| NetworkConfig::parse(&text))
        {
            Ok(network) => return Ok(ConfigDir { network: Some(network), broken }),
            Err(reason) => broken.push(BrokenFile { path, reason }),
        }
    }
    Ok(ConfigDir { network: None, broken })
}

/// A checked plugin's `type`.
pub(crate) fn plugin_type(plugin: &Object) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn config_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn plugin_list(plugins: &Value) -> Result<Vec<Object>, String> {
    let plugins = plugins.as_array().ok_or("plugins is not a list")?;
    if plugins.is_empty() {
        return Err("plugins is empty".into());
    }
    let object = |plugin: &Value| plugin.as_object().cloned().ok_or("a plugin is not an object");
    plugins.iter().map(object).collect::<Result<_, _>>().map_err(Into::into)
}

/// The type is a file name in the plugin directories, and must not lead out of them.
fn check_type(plugin: &Object) -> Result<(), String> {
    match plugin_type(plugin) {
        "" => Err("a plugin has no type".into()),
        "." | ".." => Err("a plugin's type is not a file name".into()),
        name if name.contains(['/', '\0']) => Err(format!("type {name:?} is not a file name")),
        _ => Ok(()),
    }
}

fn network_name(file: &Object) -> Result<String, String> {
    let name = file.get("name").and_then(Value::as_str).ok_or("there is no name")?;
    if is_name(name) { Ok(name.to_owned()) } else { Err(format!("name {name:?} is not valid")) }
}

/// The specification's rule for network names: plugins make file names of them.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// "Runtimes MUST select the highest supported version from the set of network configuration
/// versions given by the cniVersion and cniVersions fields."
fn highest_version(file: &Object) -> Result<SpecVersion, String> {
    let one = file.get("cniVersion").and_then(Value::as_str);
    let many = file.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let given: Vec<&str> = one.into_iter().chain(many.filter_map(Value::as_str)).collect();
    match given.iter().filter_map(|text| SpecVersion::parse(text)).max() {
        Some(version) => Ok(version),
        None if given.is_empty() => Err("there is no cniVersion".into()),
        None => Err(format!("cniVersion {} is none of 0.3.0 to 1.1.0", given.join(", "))),
    }
}

/// A boolean; the reference implementation also takes it as a string.
fn flag(file: &Object, key: &str) -> Result<bool, String> {
    match file.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) => {
            text.to_ascii_lowercase().parse().map_err(|_| format!("{key} is not a boolean"))
        }
        Some(_) => Err(format!("{key} is not a boolean")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_and_a_single_plugin_are_networks() {
        let list = json!({"name": "pods", "cniVersion": "1.0.0", "disableGC": "True",
            "plugins": [{"type": "bridge"}, {"type": "portmap", "capabilities": {"x": true}}]});
        let network = NetworkConfig::parse(list.to_string().as_bytes()).unwrap();
        assert_eq!(network.plugin_types().collect::<Vec<_>>(), ["bridge", "portmap"]);
        assert_eq!((network.version, network.disable_gc), (SpecVersion::V1_0_0, true));

        let single = json!({"name": "pods", "cniVersion": "0.3.1", "type": "bridge", "mtu": 1400});
        let network = NetworkConfig::parse(single.to_string().as_bytes()).unwrap();
        assert_eq!(network.plugins, [single.as_object().unwrap().clone()]);
        assert_eq!(network.version, SpecVersion::V0_3_1);
    }

    #[test]
    fn the_highest_version_that_we_speak_is_taken() {
        for (one, many, expected) in [
            (json!("0.3.0"), json!([]), Ok("0.3.0")),
            (json!("0.4.0"), json!(["1.0.0", "1.1.0", "2.0.0"]), Ok("1.1.0")),
            (json!("1.1.0"), json!(["0.4.0"]), Ok("1.1.0")),
            (json!(null), json!(["1.0.0", "0.4.0"]), Ok("1.0.0")),
            (json!("0.2.0"), json!([]), Err("cniVersion 0.2.0 is none of 0.3.0 to 1.1.0")),
            (json!(null), json!([]), Err("there is no cniVersion")),
        ] {
            let file = json!({"cniVersion": one, "cniVersions": many});
            let version = highest_version(file.as_object().unwrap());
            assert_eq!(version.as_ref().map(|v| v.as_str()).map_err(String::as_str), expected);
        }
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_said() {
        for (file, reason) in [
            (r#"{"name": "#, "EOF"),
            ("[]", "invalid type"),
            (r#"{"cniVersion": "1.0.0", "type": "bridge"}"#, "there is no name"),
            (r#"{"name": "../x", "cniVersion": "1.0.0", "type": "b"}"#, "name \"../x\""),
            (r#"{"name": "x", "type": "b"}"#, "no cniVersion"),
            (r#"{"name": "x", "cniVersion": "1.0.0"}"#, "no type"),
            (r#"{"name": "x", "cniVersion": "1.0.0", "type": "../b"}"#, "not a file name"),
            (r#"{"name": "x", "cniVersion": "1.0.0", "plugins": []}"#, "empty"),
            (r#"{"name": "x", "cniVersion": "1.0.0", "plugins": {}}"#, "not a list"),
            (r#"{"name": "x", "cniVersion": "1.0.0", "plugins": [1]}"#, "not an object"),
            (r#"{"name": "x", "cniVersion": "1.0.0", "plugins": [{}]}"#, "no type"),
            (
                r#"{"name": "x", "cniVersion": "1.1.0", "type": "b", "disableGC": 3}"#,
                "disableGC is not a boolean",
            ),
        ] {
            let error = NetworkConfig::parse(file.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{file}: {error}");
        }
    }

    #[test]
    fn the_first_valid_file_counts_and_the_broken_ones_before_it_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let good = r#"{"name": "NAME", "cniVersion": "1.0.0", "type": "bridge"}"#;
        let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
        assert_eq!(
            read_dir(&dir.path().join("absent")).unwrap(),
            ConfigDir { network: None, broken: vec![] }
        );

        write("00-note.txt", "not looked at");
        write("10-broken.conf", "{");
        write("20-second.json", &good.replace("NAME", "second"));
        write("30-third.conflist", &good.replace("NAME", "third"));
        let read = read_dir(dir.path()).unwrap();
        assert_eq!(read.network.unwrap().name, "second");
        assert_eq!(read.broken.len(), 1);
        assert!(read.broken[0].to_string().contains("10-broken.conf: EOF"));

        // Written in place: the directory's own time does not change.
        write("10-broken.conf", &good.replace("NAME", "repaired"));
        let read = read_dir(dir.path()).unwrap();
        assert_eq!((read.network.unwrap().name.as_str(), read.broken.len()), ("repaired", 0));
    }

    #[test]
    fn a_network_survives_its_record() {
        let text = br#"{"name": "x", "cniVersion": "1.1.0", "type": "b", "ipam": {"a": [1]}}"#;
        let network = NetworkConfig::parse(text).unwrap();
        let record = serde_json::to_string(&network).unwrap();
        assert_eq!(serde_json::from_str::<NetworkConfig>(&record).unwrap(), network);
    }
}
