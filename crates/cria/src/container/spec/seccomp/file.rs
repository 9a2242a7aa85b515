//! Seccomp profiles in files: the OCI's JSON, or Docker's, which adds conditions on capabilities,
//! architectures and kernels. Pure but for reading the file.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

/// Why a profile cannot be used. The kubelet shows it to whoever wrote the pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("cannot read the seccomp profile")]
    Read(#[source] io::Error),
    #[error("the seccomp profile is not in the format of the OCI or of Docker")]
    Format(#[source] serde_json::Error),
    #[error("the seccomp profile names an error (`{0}`) without its number (`errnoRet`)")]
    ErrorName(String),
    #[error("the seccomp profile asks for a kernel `{0}`, which is no version")]
    Kernel(String),
}

/// Whom a profile is for: its conditions are about this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// As the kernel spells them: `CAP_CHOWN`.
    pub(crate) capabilities: &'a BTreeSet<String>,
    pub(crate) arch: Arch,
    /// Major and minor version.
    pub(crate) kernel: (u32, u32),
}

/// The profile in `path`, as it applies to `subject`.
pub(crate) fn from_file(path: &Path, subject: Subject) -> Result<LinuxSeccomp, ProfileError> {
    let text = fs_err::read(path).map_err(ProfileError::Read)?;
    from_json(&text, subject)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<std::path::PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// Docker's older form of `names`.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conditions {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

fn from_json(text: &[u8], subject: Subject) -> Result<LinuxSeccomp, ProfileError> {
    let profile: Profile = serde_json::from_slice(text).map_err(ProfileError::Format)?;
    let mut syscalls = vec![];
    for rule in profile.syscalls {
        if applies(&rule, subject)? {
            syscalls.push(syscall(rule)?);
        }
    }
    let architectures = architectures(profile.architectures, profile.arch_map, subject.arch);
    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(profile.default_action)
        .set_default_errno_ret(number(profile.default_errno_ret, profile.default_errno)?)
        .set_architectures(Some(architectures))
        .set_flags(profile.flags)
        .set_listener_path(profile.listener_path)
        .set_listener_metadata(profile.listener_metadata)
        .set_syscalls(Some(syscalls));
    Ok(seccomp)
}

/// The listed ones, or else what the map has for `native`. Without either the OCI runtime takes
/// the native one alone.
fn architectures(listed: Vec<Arch>, map: Vec<ArchMap>, native: Arch) -> Vec<Arch> {
    if !listed.is_empty() {
        return listed;
    }
    let entry = map.into_iter().find(|entry| entry.architecture == native);
    entry.map_or(vec![native], |entry| {
        [vec![native], entry.sub_architectures.unwrap_or_default()].concat()
    })
}

fn syscall(rule: Rule) -> Result<LinuxSyscall, ProfileError> {
    let mut syscall = LinuxSyscall::default();
    syscall
        .set_names(rule.names.into_iter().chain(rule.name).collect())
        .set_action(rule.action)
        .set_errno_ret(number(rule.errno_ret, rule.errno)?)
        .set_args(rule.args);
    Ok(syscall)
}

/// Some writers give the error's name beside its number; the number is what the OCI knows.
fn number(number: Option<u32>, name: Option<String>) -> Result<Option<u32>, ProfileError> {
    match (number, name) {
        (None, Some(name)) if !name.is_empty() => Err(ProfileError::ErrorName(name)),
        (number, _) => Ok(number),
    }
}

/// A rule applies if all it includes is there and nothing of what it excludes.
fn applies(rule: &Rule, subject: Subject) -> Result<bool, ProfileError> {
    let (none, all) = (Conditions::default(), Conditions::default());
    let includes = rule.includes.as_ref().unwrap_or(&all);
    let excludes = rule.excludes.as_ref().unwrap_or(&none);
    let has = |name: &String| subject.capabilities.contains(name);
    let is = |name: &String| go_name(subject.arch) == name;

    let included = includes.caps.iter().flatten().all(has)
        && includes.arches.as_ref().is_none_or(|arches| arches.is_empty() || arches.iter().any(is))
        && new_enough(includes, subject)?.unwrap_or(true);
    let excluded = excludes.caps.iter().flatten().any(has)
        || excludes.arches.iter().flatten().any(is)
        || new_enough(excludes, subject)?.unwrap_or(false);
    Ok(included && !excluded)
}

fn new_enough(conditions: &Conditions, subject: Subject) -> Result<Option<bool>, ProfileError> {
    let Some(text) = conditions.min_kernel.as_ref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let version = text.split_once('.').and_then(|(major, minor)| {
        let minor = minor.split('.').next()?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let wanted = version.ok_or_else(|| ProfileError::Kernel(text.clone()))?;
    Ok(Some(subject.kernel >= wanted))
}

/// Docker's conditions name architectures as Go does.
fn go_name(arch: Arch) -> &'static str {
    match arch {
        Arch::ScmpArchX86_64 => "amd64",
        Arch::ScmpArchX86 => "x86",
        Arch::ScmpArchX32 => "x32",
        Arch::ScmpArchArm => "arm",
        Arch::ScmpArchAarch64 => "arm64",
        Arch::ScmpArchPpc64le => "ppc64le",
        Arch::ScmpArchS390 => "s390",
        Arch::ScmpArchS390x => "s390x",
        Arch::ScmpArchRiscv64 => "riscv64",
        Arch::ScmpArchLoongarch64 => "loong64",
        // cria is not built for the others, so they are never the node's.
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject<'a>(capabilities: &'a BTreeSet<String>) -> Subject<'a> {
        Subject { capabilities, arch: Arch::ScmpArchX86_64, kernel: (6, 1) }
    }

    fn names(json: &str, capabilities: &[&str]) -> Vec<String> {
        let capabilities = capabilities.iter().map(ToString::to_string).collect();
        let text = format!("{{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"syscalls\": [{json}]}}");
        let seccomp = from_json(text.as_bytes(), subject(&capabilities)).unwrap();
        let calls = seccomp.syscalls().clone().unwrap();
        calls.iter().flat_map(|call| call.names().clone()).collect()
    }

    #[test]
    fn a_rule_applies_by_its_conditions() {
        for (conditions, capabilities, applies) in [
            ("", &[][..], true),
            (r#", "includes": {}, "excludes": {}"#, &[], true),
            (r#", "includes": {"caps": ["CAP_A"]}"#, &[], false),
            (r#", "includes": {"caps": ["CAP_A"]}"#, &["CAP_A"], true),
            (r#", "includes": {"caps": ["CAP_A", "CAP_B"]}"#, &["CAP_A"], false),
            (r#", "excludes": {"caps": ["CAP_A", "CAP_B"]}"#, &["CAP_B"], false),
            (r#", "excludes": {"caps": ["CAP_A"]}"#, &[], true),
            (r#", "includes": {"arches": ["amd64", "x86"]}"#, &[], true),
            (r#", "includes": {"arches": ["arm64"]}"#, &[], false),
            (r#", "includes": {"arches": []}"#, &[], true),
            (r#", "excludes": {"arches": ["amd64"]}"#, &[], false),
            (r#", "excludes": {"arches": ["s390x"]}"#, &[], true),
            (r#", "includes": {"minKernel": "6.1"}"#, &[], true),
            (r#", "includes": {"minKernel": "6.2"}"#, &[], false),
            (r#", "includes": {"minKernel": "5.20"}"#, &[], true),
            (r#", "excludes": {"minKernel": "4.8"}"#, &[], false),
            (r#", "includes": {"minKernel": ""}"#, &[], true),
            (r#", "includes": null, "excludes": null"#, &[], true),
        ] {
            let rule = format!(r#"{{"names": ["x"], "action": "SCMP_ACT_ALLOW"{conditions}}}"#);
            assert_eq!(names(&rule, capabilities) == ["x"], applies, "{conditions}");
        }
    }

    #[test]
    fn an_oci_profile_is_taken_as_it_is() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": ["a", "b"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
            "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
        let read = from_json(text.as_bytes(), subject(&BTreeSet::new())).unwrap();
        let expected: LinuxSeccomp = serde_json::from_str(text).unwrap();
        assert_eq!(read, expected);
    }

    #[test]
    fn the_architectures_are_those_of_the_node() {
        let profile = |body: &str| {
            let text = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW"{body}}}"#);
            let capabilities = BTreeSet::new();
            let seccomp = from_json(text.as_bytes(), subject(&capabilities)).unwrap();
            seccomp.architectures().clone().unwrap()
        };
        let map = r#", "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]"#;
        assert_eq!(profile(map), [Arch::ScmpArchX86_64, Arch::ScmpArchX86]);
        assert_eq!(profile(""), [Arch::ScmpArchX86_64]);
        let listed = r#", "architectures": ["SCMP_ARCH_X32"]"#;
        assert_eq!(profile(listed), [Arch::ScmpArchX32]);
    }

    #[test]
    fn the_older_single_name_is_read_too() {
        assert_eq!(names(r#"{"name": "x", "action": "SCMP_ACT_ALLOW"}"#, &[]), ["x"]);
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let refused = |text: &str| {
            let capabilities = BTreeSet::new();
            from_json(text.as_bytes(), subject(&capabilities)).unwrap_err().to_string()
        };
        for text in ["", "[]", "{}", r#"{"defaultAction": "SCMP_ACT_NONE"}"#] {
            assert!(refused(text).contains("not in the format"), "{text}");
        }
        let named = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "EPERM"}"#;
        assert!(refused(named).contains("EPERM"));
        let kernel = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"],
            "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "six"}}]}"#;
        assert!(refused(kernel).contains("`six`"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let capabilities = BTreeSet::new();
        let path = Path::new("/nonexistent/profile.json");
        let error = from_file(path, subject(&capabilities)).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("/nonexistent/profile.json"), "{source}");
    }
}
