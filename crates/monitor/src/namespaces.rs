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

use cria_monitor::sysctl::{self, Namespace};
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
    let path = sysctl::path(key).ok_or_else(|| refused("no such name"))?;
    let owner = match sysctl::namespace(&path) {
        Some(Namespace::Net) => CloneFlags::CLONE_NEWNET,
        Some(Namespace::Ipc) => CloneFlags::CLONE_NEWIPC,
        Some(Namespace::Uts) => CloneFlags::CLONE_NEWUTS,
        None => return Err(refused("belongs to the whole node")),
    };
    if !made.contains(owner) {
        return Err(refused("belongs to a namespace that the pod shares with the node"));
    }
    let path = PathBuf::from("/proc/sys").join(path);
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
