//! Whether an OCI runtime works on this node: it is asked for its version and features, and has to
//! create a container, which is deleted before it ever runs.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::poll::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

/// What is known of an OCI runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OciRuntime {
    pub(crate) path: PathBuf,
    /// The first line of what it says of itself.
    pub(crate) version: String,
    /// Whether it can make a mount read-only with all that is mounted below it; None if it is too
    /// old to tell its features.
    pub(crate) recursive_read_only: Option<bool>,
    /// Why it could not create a container here, in its own words.
    pub(crate) refusal: Option<String>,
}

/// Tries the executable `path`, with systemd's cgroups or without.
pub(crate) fn probe(path: &Path, systemd: bool) -> OciRuntime {
    let version = run(path, &["--version"]);
    let version = version.as_ref().map(|output| String::from_utf8_lossy(&output.stdout));
    let features = run(path, &["features"]).ok().filter(|output| output.status.success());
    OciRuntime {
        path: path.to_owned(),
        version: version.map_or(String::new(), |text| text.lines().next().unwrap_or("").to_owned()),
        recursive_read_only: features.and_then(|output| recursive_read_only(&output.stdout)),
        refusal: try_create(path, systemd).err(),
    }
}

/// A runtime that hangs must not hang whoever asks about it.
const DEADLINE_MS: u16 = 20_000;

fn run(path: &Path, arguments: &[&str]) -> io::Result<Output> {
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    finish(command.spawn()?)
}

/// Waits for the end of `child`, then reads its output: what a runtime says of itself fits into a
/// pipe.
fn finish(mut child: Child) -> io::Result<Output> {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let ended = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], DEADLINE_MS)?;
    if ended == 0 {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer within 20 seconds"));
    }
    child.wait_with_output()
}

fn recursive_read_only(features: &[u8]) -> Option<bool> {
    let features: serde_json::Value = serde_json::from_slice(features).ok()?;
    let options = features.get("mountOptions")?.as_array()?;
    Some(options.iter().any(|option| option == "rro"))
}

/// A bundle whose container would run an empty file, removed on drop.
struct Bundle(PathBuf);

impl Drop for Bundle {
    fn drop(&mut self) {
        // There is nothing to be done about a directory that stays.
        fs_err::remove_dir_all(&self.0).ok();
    }
}

fn try_create(path: &Path, systemd: bool) -> Result<(), String> {
    // Probes may run at once, in this process and in others.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("cria-check-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let bundle = bundle(&id, systemd).map_err(|error| error.to_string())?;
    let state = bundle.0.join("state").display().to_string();
    let log = bundle.0.join("log");
    let driver: &[&str] = if systemd { &["--systemd-cgroup"] } else { &[] };
    let call = |arguments: &[&str]| {
        let child = Command::new(path)
            .args(["--root", &state, "--log", &log.display().to_string()])
            .args(["--log-format", "json"])
            .args(driver)
            .args(arguments)
            // Nothing is read: the container's init holds these ends as long as it lives.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        child.and_then(finish)
    };
    let created = call(&["create", "--bundle", &bundle.0.display().to_string(), &id]);
    // After a failure too: some leave half a container.
    call(&["delete", "--force", &id]).ok();
    match created {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err(last_message(&log)),
        Err(error) => Err(error.to_string()),
    }
}

/// What the OCI runtime logged last: one JSON object for each line.
fn last_message(log: &Path) -> String {
    let text = fs_err::read_to_string(log).unwrap_or_default();
    let line = text.lines().last().unwrap_or_default();
    let entry = serde_json::from_str(line).unwrap_or(serde_json::Value::Null);
    entry.get("msg").and_then(|text| text.as_str()).unwrap_or("it gave no reason").to_owned()
}

fn bundle(id: &str, systemd: bool) -> io::Result<Bundle> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;

    let bundle = Bundle(std::env::temp_dir().join(id));
    let rootfs = bundle.0.join("rootfs");
    for directory in ["proc", "dev", "sys"] {
        fs_err::create_dir_all(rootfs.join(directory))?;
    }
    let mut program = fs_err::OpenOptions::new();
    program.write(true).create(true).mode(0o755).open(rootfs.join("program"))?;
    fs_err::write(bundle.0.join("config.json"), spec(id, systemd).to_string())?;
    Ok(bundle)
}

fn spec(id: &str, systemd: bool) -> serde_json::Value {
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    let cgroup = if systemd { format!("system.slice:cria:{id}") } else { format!("/{id}") };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/program"],
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
        },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces, "cgroupsPath": cgroup },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runc_works_here() {
        let runc = probe(&crate::programs::find(Path::new("runc")).unwrap(), false);
        assert_eq!(runc.refusal, None);
        assert!(runc.version.starts_with("runc version "), "{}", runc.version);
    }

    #[test]
    fn a_bundle_is_gone_after_its_use() {
        let made = bundle("cria-check-test-bundle", false).unwrap();
        let path = made.0.clone();
        assert!(path.join("rootfs/program").exists());
        drop(made);
        assert!(!path.exists());
    }

    #[test]
    fn a_program_that_is_no_runtime_is_refused() {
        let refusal = probe(Path::new("/bin/false"), false).refusal;
        assert_eq!(refusal.as_deref(), Some("it gave no reason"));
        assert!(probe(Path::new("/nonexistent"), false).refusal.is_some());
    }

    #[test]
    fn the_features_tell_recursive_read_only() {
        for (text, expected) in [
            (r#"{"mountOptions": ["ro", "rro"]}"#, Some(true)),
            (r#"{"mountOptions": ["ro"]}"#, Some(false)),
            ("{}", None),
            ("unknown command", None),
        ] {
            assert_eq!(recursive_read_only(text.as_bytes()), expected, "{text}");
        }
    }
}
