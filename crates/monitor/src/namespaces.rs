//! The `namespaces` role: a short-lived process that makes a pod's namespaces and holds them until
//! its parent has bound `/proc/<pid>/ns/*` to files.
//!
//! ```text
//! cria-monitor namespaces ID --new net,ipc,uts [--hostname NAME] [--sysctl KEY=VALUE]...
//! ```
//!
//! Descriptor 0 is a unix socket (stream or seqpacket). One answer comes: `+` when everything is
//! made, or `-` and the reason. Then the process waits until the other side closes, and ends.
//! Sysctls are written only into namespaces made here, never into the host's.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};

use crate::sys;

struct Wanted {
    new: Vec<String>,
    hostname: Option<String>,
    sysctls: Vec<(String, String)>,
}

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let Ok(socket) = sys::take_socket() else { return ExitCode::FAILURE };
    let mut socket = File::from(socket);
    let result = parse(arguments).and_then(|wanted| make(&wanted));
    answer(&mut socket, &result.map(|()| String::new()));
    // Whatever comes, or the end.
    let _ = socket.read(&mut [0]);
    ExitCode::SUCCESS
}

/// `+` and what there is to say, or `-` and the reason. A parent that is gone needs no answer.
pub(crate) fn answer(socket: &mut impl Write, result: &Result<String, String>) {
    let _ = match result {
        Ok(text) => socket.write_all(format!("+{text}").as_bytes()),
        Err(reason) => socket.write_all(format!("-{reason}").as_bytes()),
    };
}

pub(crate) fn reason(action: &str, error: impl Display) -> String {
    format!("{action}: {error}")
}

fn parse(arguments: &[String]) -> Result<Wanted, String> {
    let mut wanted = Wanted { new: vec![], hostname: None, sysctls: vec![] };
    let mut arguments = arguments.iter();
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} without a value"))?;
        match flag.as_str() {
            "--new" => wanted.new = value.split(',').map(str::to_owned).collect(),
            "--hostname" => wanted.hostname = Some(value.clone()),
            "--sysctl" => {
                let pair = value.split_once('=').ok_or_else(|| format!("no value in {value}"))?;
                wanted.sysctls.push((pair.0.to_owned(), pair.1.to_owned()));
            }
            _ => return Err(format!("unknown argument {flag}")),
        }
    }
    Ok(wanted)
}

fn make(wanted: &Wanted) -> Result<(), String> {
    let mut flags = CloneFlags::empty();
    for kind in &wanted.new {
        flags |= match kind.as_str() {
            "net" => CloneFlags::CLONE_NEWNET,
            "ipc" => CloneFlags::CLONE_NEWIPC,
            "uts" => CloneFlags::CLONE_NEWUTS,
            _ => return Err(format!("unknown namespace {kind}")),
        };
    }
    unshare(flags).map_err(|error| reason("make namespaces", error))?;
    if let Some(hostname) = &wanted.hostname {
        if !flags.contains(CloneFlags::CLONE_NEWUTS) {
            return Err("a hostname needs a UTS namespace".to_owned());
        }
        nix::unistd::sethostname(hostname).map_err(|error| reason("set the hostname", error))?;
    }
    if flags.contains(CloneFlags::CLONE_NEWNET) {
        sys::loopback_up().map_err(|error| reason("bring the loopback up", error))?;
    }
    for (key, value) in &wanted.sysctls {
        write_sysctl(key, value, flags).map_err(|error| reason(&format!("sysctl {key}"), error))?;
    }
    Ok(())
}

fn write_sysctl(key: &str, value: &str, made: CloneFlags) -> io::Result<()> {
    let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    let path = sysctl_path(key).ok_or_else(|| refused("no such name"))?;
    let owner = sysctl_namespace(&path).ok_or_else(|| refused("belongs to the whole node"))?;
    if !made.contains(owner) {
        return Err(refused("belongs to a namespace that the pod shares with the node"));
    }
    let path = PathBuf::from("/proc/sys").join(path);
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// As sysctl(8) reads names: the first separator is the one that separates, the other one is part
/// of a name (`net.ipv4.conf.eth0/1.forwarding`).
fn sysctl_path(key: &str) -> Option<String> {
    let separator = key.find(['.', '/'])?;
    let path = match &key[separator..=separator] {
        "." => key
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    };
    let is_name = |part: &str| !matches!(part, "" | "." | "..");
    path.split('/').all(is_name).then_some(path)
}

/// Whose the value is, if it is a namespace's.
fn sysctl_namespace(path: &str) -> Option<CloneFlags> {
    const IPC: [&str; 7] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
    ];
    if path.starts_with("net/") {
        Some(CloneFlags::CLONE_NEWNET)
    } else if IPC.contains(&path)
        || path == "kernel/shm_rmid_forced"
        || path.starts_with("fs/mqueue/")
    {
        Some(CloneFlags::CLONE_NEWIPC)
    } else if matches!(path, "kernel/hostname" | "kernel/domainname") {
        Some(CloneFlags::CLONE_NEWUTS)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_are_read_as_sysctl_does() {
        for (key, path) in [
            ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            ("net/ipv4/ip_forward", Some("net/ipv4/ip_forward")),
            ("net.ipv4.conf.eth0/1.forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net", None),
            ("net/../kernel/panic", None),
            ("net.//.kernel", None),
            ("/net", None),
            ("net..ipv4", None),
        ] {
            assert_eq!(sysctl_path(key).as_deref(), path, "{key}");
        }
    }

    #[test]
    fn a_sysctl_belongs_to_one_namespace_or_to_the_node() {
        for (path, owner) in [
            ("net/core/somaxconn", Some(CloneFlags::CLONE_NEWNET)),
            ("kernel/shm_rmid_forced", Some(CloneFlags::CLONE_NEWIPC)),
            ("kernel/sem", Some(CloneFlags::CLONE_NEWIPC)),
            ("fs/mqueue/msg_max", Some(CloneFlags::CLONE_NEWIPC)),
            ("kernel/domainname", Some(CloneFlags::CLONE_NEWUTS)),
            ("kernel/panic", None),
            ("vm/swappiness", None),
            ("fs/file-max", None),
        ] {
            assert_eq!(sysctl_namespace(path), owner, "{path}");
        }
    }
}
