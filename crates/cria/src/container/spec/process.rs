//! The container's process: what is run, as whom, with which environment and rights. Pure.

use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::{Process, User as SpecUser};

use super::{SpecError, SpecRequest, capabilities, resources};
use crate::container::config::{ContainerConfig, SeccompProfile, SelinuxOptions};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
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

/// An exec in a container: its process with another command line.
pub(crate) fn for_exec(container: &Process, command: Vec<String>, terminal: Terminal) -> Process {
    let mut process = container.clone();
    let terminal = match terminal {
        Terminal::Yes => Some(true),
        Terminal::No => None,
    };
    process.set_args(Some(command)).set_terminal(terminal);
    process
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    Yes,
    No,
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
fn cwd(config: &ContainerConfig, image: Option<&ImageConfig>) -> std::path::PathBuf {
    let of_image = image.and_then(|image| image.working_dir().as_deref()).unwrap_or_default();
    let asked = if config.working_dir.is_empty() { of_image } else { &config.working_dir };
    std::path::Path::new("/").join(asked)
}

/// The defaults, the image's, the request's: a later one takes the place of an earlier one of the
/// same name. An entry of the image without a value sets nothing.
fn env(request: &SpecRequest<'_>, image: Option<&ImageConfig>) -> Result<Vec<String>, SpecError> {
    let config = request.config;
    let mut env = vec![("PATH", PATH)];
    if config.tty {
        env.push(("TERM", "xterm"));
    }
    env.push(("HOSTNAME", request.hostname));
    let of_image = image.and_then(|image| image.env().as_deref()).unwrap_or_default();
    env.extend(of_image.iter().filter_map(|entry| entry.split_once('=')));
    env.extend(config.envs.iter().map(|(name, value)| (&**name, &**value)));

    let mut unique: Vec<(&str, &str)> = Vec::with_capacity(env.len() + 1);
    for (name, value) in env {
        check_env(name, value)?;
        match unique.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => unique.push((name, value)),
        }
    }
    if unique.iter().all(|(name, _)| *name != "HOME") {
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
