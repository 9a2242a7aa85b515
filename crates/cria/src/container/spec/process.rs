//! The container's process: what is run, as whom, with which environment and rights. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::{Process, User as SpecUser};

use super::{SpecError, SpecRequest, capabilities, resources};
use crate::container::config::{ContainerConfig, SeccompProfile, SelinuxOptions};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const UMASK: u32 = 0o022;

pub(super) fn build(request: &SpecRequest<'_>) -> Result<Process, SpecError> {
    let config = request.config;
    let security = &config.security;
    let image = request.image.config().as_ref();
    let mut process = super::empty::<Process>(r#"{"user":{},"cwd":"/"}"#);
    process
        .set_user(user(request))
        .set_args(Some(args(config, image)?))
        .set_env(Some(env(request, image)?))
        .set_cwd(cwd(config, image))
        .set_capabilities(Some(capabilities::of(security, request.node)?.to_spec()))
        .set_rlimits(Some(request.node.rlimits.clone()))
        .set_oom_score_adj(Some(resources::oom_score_adj(&config.resources, request.node)?))
        .set_apparmor_profile(apparmor_profile(request)?)
        .set_selinux_label(selinux_label(request));
    if security.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if config.tty {
        process.set_terminal(Some(true));
    }
    Ok(process)
}

/// Whether an exec gets a terminal of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    New,
    None,
}

/// An exec in a container: its process with another command line.
pub(crate) fn for_exec(container: &Process, command: Vec<String>, terminal: Terminal) -> Process {
    let mut process = container.clone();
    process.set_args(Some(command)).set_terminal(None);
    if terminal == Terminal::New {
        process.set_terminal(Some(true));
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    process
}

fn user(request: &SpecRequest<'_>) -> SpecUser {
    let mut user = SpecUser::default();
    user.set_uid(request.user.uid)
        .set_gid(request.user.gid)
        .set_umask(Some(UMASK))
        .set_additional_gids(Some(request.user.additional_gids.clone()));
    user
}

/// A command replaces the image's entrypoint and its arguments; arguments alone replace those of
/// the image.
fn args(config: &ContainerConfig, image: Option<&ImageConfig>) -> Result<Vec<String>, SpecError> {
    let entrypoint = image.and_then(|image| image.entrypoint().as_deref()).unwrap_or_default();
    let cmd = image.and_then(|image| image.cmd().as_deref()).unwrap_or_default();
    let args = match (&config.command[..], &config.args[..]) {
        ([], []) => [entrypoint, cmd].concat(),
        ([], args) => [entrypoint, args].concat(),
        (command, args) => [command, args].concat(),
    };
    if args.is_empty() {
        let reason = "neither the request nor the image has one";
        return Err(SpecError::invalid("command", reason));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(SpecError::invalid("command", "it contains a NUL"));
    }
    Ok(args)
}

/// Made by the OCI runtime, if it is not there.
fn cwd(config: &ContainerConfig, image: Option<&ImageConfig>) -> PathBuf {
    let of_image = image.and_then(|image| image.working_dir().as_deref()).unwrap_or_default();
    let asked = if config.working_dir.is_empty() { of_image } else { &config.working_dir };
    Path::new("/").join(asked)
}

/// The defaults, the image's, the request's: a later one takes the place of an earlier one of the
/// same name. An entry of the image without a name or a value
/// sets nothing.
fn env(request: &SpecRequest<'_>, image: Option<&ImageConfig>) -> Result<Vec<String>, SpecError> {
    let config = request.config;
    let mut env = vec![("PATH", DEFAULT_PATH)];
    if config.tty {
        env.push(("TERM", "xterm"));
    }
    env.push(("HOSTNAME", request.hostname));
    let of_image = image.and_then(|image| image.env().as_deref()).unwrap_or_default();
    let of_image = of_image.iter().filter_map(|entry| entry.split_once('='));
    env.extend(of_image.filter(|(name, _)| !name.is_empty()));
    env.extend(config.envs.iter().map(|(name, value)| (&**name, &**value)));

    // By name: service links can make this tens of thousands.
    let mut unique: Vec<(&str, &str)> = Vec::with_capacity(env.len() + 1);
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(env.len());
    for (name, value) in env {
        check_env(name, value)?;
        match places.entry(name) {
            Entry::Occupied(place) => unique[*place.get()].1 = value,
            Entry::Vacant(place) => {
                place.insert(unique.len());
                unique.push((name, value));
            }
        }
    }
    if !places.contains_key("HOME") {
        unique.push(("HOME", &request.user.home));
    }
    Ok(unique.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

fn check_env(name: &str, value: &str) -> Result<(), SpecError> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(SpecError::invalid("envs", format!("{name:?} is not a name")));
    }
    if value.contains('\0') {
        return Err(SpecError::invalid("envs", format!("the value of {name:?} contains a NUL")));
    }
    Ok(())
}

/// cria brings no profile of its own: the default is none.
fn apparmor_profile(request: &SpecRequest<'_>) -> Result<Option<String>, SpecError> {
    match &request.config.security.apparmor {
        None | Some(SeccompProfile::RuntimeDefault | SeccompProfile::Unconfined) => Ok(None),
        Some(SeccompProfile::Localhost(profile)) if request.node.apparmor => {
            Ok(Some(profile.clone()))
        }
        Some(SeccompProfile::Localhost(profile)) => {
            let reason = format!("{profile:?} is asked for, and the kernel has no AppArmor");
            Err(SpecError::not_here("an AppArmor profile", reason))
        }
    }
}

/// `None` where the kernel has no SELinux: charts set options for all nodes alike, and the kubelet
/// too takes them for void there.
fn selinux_label(request: &SpecRequest<'_>) -> Option<String> {
    let options = request.config.security.selinux.as_ref();
    let options = options.filter(|options| **options != SelinuxOptions::default())?;
    let or = |asked: &str, default: &str| if asked.is_empty() { default } else { asked }.to_owned();
    request.node.selinux.then(|| {
        [
            or(&options.user, "system_u"),
            or(&options.role, "system_r"),
            or(&options.kind, "container_t"),
            or(&options.level, "s0"),
        ]
        .join(":")
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

    use super::super::tests::Parts;
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The process of the spec, with an image of `config`.
    fn process(
        config: ConfigBuilder,
        change: impl FnOnce(&mut Parts),
    ) -> Result<Process, SpecError> {
        let mut parts = Parts::new();
        let config = config.build().unwrap();
        parts.image = ImageConfigurationBuilder::default().config(config).build().unwrap();
        change(&mut parts);
        Ok(parts.build()?.process().clone().unwrap())
    }

    #[test]
    fn the_command_line_follows_the_rules_of_kubernetes() {
        for (entrypoint, cmd, command, args, expected) in [
            ("e", "c", "", "", "e c"),
            ("e", "c", "", "a", "e a"),
            ("e", "c", "x", "", "x"),
            ("e", "c", "x", "a", "x a"),
            ("", "c", "", "", "c"),
            ("", "c", "", "a", "a"),
            ("e", "", "", "", "e"),
            ("", "", "x", "a", "x a"),
        ] {
            let image = ConfigBuilder::default().entrypoint(list(entrypoint)).cmd(list(cmd));
            let process = process(image, |parts| {
                parts.config.command = list(command);
                parts.config.args = list(args);
            });
            let found = process.unwrap().args().clone().unwrap().join(" ");
            assert_eq!(found, expected, "{entrypoint:?} {cmd:?} {command:?} {args:?}");
        }
    }

    #[test]
    fn no_command_at_all_is_an_error_also_with_an_image_without_a_config() {
        let error = process(ConfigBuilder::default(), |_| {}).unwrap_err();
        assert!(matches!(error, SpecError::Invalid { field: "command", .. }), "{error}");
        let mut parts = Parts::new();
        parts.image = ImageConfigurationBuilder::default().build().unwrap();
        assert!(parts.build().is_err());
        parts.config.command = list("x");
        assert_eq!(parts.build().unwrap().process().as_ref().unwrap().cwd().to_str(), Some("/"));
    }

    #[test]
    fn the_working_directory_is_the_requests_or_the_images_and_always_absolute() {
        for (of_image, asked, expected) in [
            ("", "", "/"),
            ("/img", "", "/img"),
            ("img", "", "/img"),
            ("/img", "/asked", "/asked"),
            ("/img", "asked", "/asked"),
        ] {
            let image = ConfigBuilder::default().working_dir(of_image).cmd(list("c"));
            let process = process(image, |parts| parts.config.working_dir = asked.into()).unwrap();
            assert_eq!(process.cwd().to_str(), Some(expected), "{of_image:?} {asked:?}");
        }
    }

    fn env_of(
        of_image: &[&str],
        asked: &[(&str, &str)],
        change: impl FnOnce(&mut Parts),
    ) -> Result<Vec<String>, SpecError> {
        let of_image: Vec<String> = of_image.iter().map(|&entry| entry.to_owned()).collect();
        let image = ConfigBuilder::default().env(of_image).cmd(list("c"));
        let process = process(image, |parts| {
            let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
            parts.config.envs = asked.iter().map(own).collect();
            change(parts);
        })?;
        Ok(process.env().clone().unwrap())
    }

    #[test]
    fn the_environment_is_made_of_defaults_image_and_request_in_this_order() {
        let path = format!("PATH={DEFAULT_PATH}");
        let defaults = [&path, "HOSTNAME=host-of-pod", "HOME=/root"];
        assert_eq!(env_of(&[], &[], |_| {}).unwrap(), defaults);
        let of_image = ["A=1", "B=2=3", "novalue", "=noname", "EMPTY=", "PATH=/img", "HOME=/img"];
        let asked = [("B", "asked"), ("PATH", "/asked"), ("C", "x=y"), ("C", "last"), ("a b", "")];
        assert_eq!(
            env_of(&of_image, &asked, |_| {}).unwrap(),
            [
                "PATH=/asked",
                "HOSTNAME=host-of-pod",
                "A=1",
                "B=asked",
                "EMPTY=",
                "HOME=/img",
                "C=last",
                "a b=",
            ]
        );
    }

    #[test]
    fn a_terminal_has_a_type_unless_the_image_has_another() {
        let has = |of_image: &[&str], entry: &str| {
            let env = env_of(of_image, &[], |parts| parts.config.tty = true).unwrap();
            env.iter().any(|found| found == entry)
        };
        assert!(has(&[], "TERM=xterm"));
        assert!(has(&["TERM=vt100"], "TERM=vt100"));
        assert!(!env_of(&[], &[], |_| {}).unwrap().iter().any(|e| e.starts_with("TERM=")));
    }

    #[test]
    fn what_no_process_could_be_given_is_refused() {
        for (name, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "x\0")] {
            assert!(env_of(&[], &[(name, value)], |_| {}).is_err(), "{name:?} {value:?}");
        }
        let nul = process(ConfigBuilder::default(), |parts| parts.config.command = list("a\0b"));
        assert!(nul.is_err());
    }

    #[test]
    fn a_profile_the_kernel_cannot_enforce_is_refused_and_a_default_is_none() {
        use SeccompProfile::{Localhost, RuntimeDefault, Unconfined};
        let profile = |asked: Option<SeccompProfile>, kernel_has: bool| {
            let process = process(ConfigBuilder::default().cmd(list("c")), |parts| {
                parts.config.security.apparmor = asked;
                parts.node.apparmor = kernel_has;
            });
            process.map(|process| process.apparmor_profile().clone())
        };
        for kernel_has in [false, true] {
            for asked in [None, Some(RuntimeDefault), Some(Unconfined)] {
                assert_eq!(profile(asked, kernel_has).unwrap(), None);
            }
        }
        let local = Some(Localhost("mine".into()));
        assert_eq!(profile(local.clone(), true).unwrap().as_deref(), Some("mine"));
        assert!(matches!(profile(local, false), Err(SpecError::NotOnThisNode { .. })));
    }

    #[test]
    fn a_selinux_label_is_given_where_the_kernel_has_selinux_and_one_is_asked_for() {
        let asked = SelinuxOptions { kind: "spc_t".into(), ..Default::default() };
        for (asked, kernel_has, expected) in [
            (Some(asked.clone()), true, Some("system_u:system_r:spc_t:s0")),
            (Some(asked), false, None),
            (Some(SelinuxOptions::default()), true, None),
            (None, true, None),
        ] {
            let process = process(ConfigBuilder::default().cmd(list("c")), |parts| {
                parts.config.security.selinux = asked;
                parts.node.selinux = kernel_has;
            });
            assert_eq!(process.unwrap().selinux_label().as_deref(), expected);
        }
    }

    #[test]
    fn an_exec_with_a_terminal_has_a_kind_of_terminal_of_its_own_or_the_containers() {
        for (env, expected) in [("PATH=/bin", "xterm"), ("TERM=vt100", "vt100")] {
            let mut container = Process::default();
            container.set_env(Some(vec![env.to_owned()]));
            let exec = for_exec(&container, list("sh"), Terminal::New);
            assert_eq!(exec.terminal(), Some(true));
            let env = exec.env().clone().unwrap();
            let terms: Vec<_> = env.iter().filter_map(|it| it.strip_prefix("TERM=")).collect();
            assert_eq!(terms, [expected]);
        }
    }

    #[test]
    fn an_exec_is_the_containers_process_with_another_command() {
        let container = process(ConfigBuilder::default().cmd(list("c")), |parts| {
            parts.config.tty = true;
            parts.config.security.no_new_privs = true;
        });
        let container = container.unwrap();
        assert_eq!(container.terminal(), Some(true));
        let mut exec = for_exec(&container, list("ls -l"), Terminal::None);
        assert_eq!(*exec.args(), Some(list("ls -l")));
        assert_eq!(exec.terminal(), None);
        exec.set_args(container.args().clone()).set_terminal(Some(true));
        assert_eq!(exec, container);
    }
}
