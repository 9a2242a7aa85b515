//! Tests of the default profile: its rules are evaluated as seccomp does, and a real container
//! runs under it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use tempfile::TempDir;

use super::*;

const X86_64: Arch = Arch::ScmpArchX86_64;
const NEWUSER: u64 = 0x1000_0000;
const NEWNET: u64 = 0x4000_0000;
const SIGCHLD: u64 = 17;
/// As pthread_create(3) asks for a thread.
const THREAD: u64 = 0x3d_0f00;

fn capabilities(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

/// What the profile says to a call: `None` allows, else the error. Two rules that match must agree.
fn verdict(profile: &LinuxSeccomp, name: &str, arguments: &[u64]) -> Option<u32> {
    let rules = profile.syscalls().as_ref().unwrap();
    let matching = rules.iter().filter(|rule| {
        rule.names().iter().any(|listed| listed == name)
            && rule.args().iter().flatten().all(|wanted| matches(wanted, arguments))
    });
    let verdicts: BTreeSet<Option<u32>> = matching.map(|rule| rule.errno_ret()).collect();
    assert!(verdicts.len() <= 1, "{name}{arguments:?}: {verdicts:?}");
    verdicts.first().copied().unwrap_or(profile.default_errno_ret())
}

fn matches(wanted: &LinuxSeccompArg, arguments: &[u64]) -> bool {
    let found = arguments[wanted.index()];
    match wanted.op() {
        LinuxSeccompOperator::ScmpCmpEq => found == wanted.value(),
        LinuxSeccompOperator::ScmpCmpLt => found < wanted.value(),
        LinuxSeccompOperator::ScmpCmpGt => found > wanted.value(),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Some(found & wanted.value()) == wanted.value_two(),
        operator => panic!("{operator} is not used"),
    }
}

#[test]
fn an_ordinary_container_may_do_ordinary_things_only() {
    let profile = runtime_default(&capabilities(&["CAP_CHOWN", "CAP_KILL"]), X86_64);
    for (name, arguments, expected) in [
        ("openat", &[][..], None),
        ("execve", &[], None),
        ("ptrace", &[], None),
        ("arch_prctl", &[], None),
        ("mount", &[], Some(EPERM)),
        ("umount2", &[], Some(EPERM)),
        ("setns", &[], Some(EPERM)),
        ("pivot_root", &[], Some(EPERM)),
        ("bpf", &[], Some(EPERM)),
        ("reboot", &[], Some(EPERM)),
        ("init_module", &[], Some(EPERM)),
        ("open_by_handle_at", &[], Some(EPERM)),
        ("keyctl", &[], Some(EPERM)),
        ("io_uring_setup", &[], Some(EPERM)),
        ("userfaultfd", &[], Some(EPERM)),
        ("a_call_of_the_future", &[], Some(ENOSYS)),
        ("clone3", &[], Some(ENOSYS)),
        ("clone", &[SIGCHLD], None),
        ("clone", &[THREAD], None),
        ("clone", &[SIGCHLD | NEWUSER], Some(EPERM)),
        ("clone", &[SIGCHLD | NEWUSER | NEWNET], Some(EPERM)),
        ("unshare", &[0x400], None),
        ("unshare", &[NEWNET], Some(EPERM)),
        ("unshare", &[CLONE_NEWTIME], Some(EPERM)),
        ("personality", &[0], None),
        ("personality", &[8], None),
        ("personality", &[0xffff_ffff], None),
        ("personality", &[0x4_0000], Some(ENOSYS)), // ADDR_NO_RANDOMIZE
        ("socket", &[1], None),
        ("socket", &[37], None),
        ("socket", &[38], Some(EAFNOSUPPORT)),
        ("socket", &[39], None),
        ("socket", &[40], Some(EAFNOSUPPORT)),
        ("socket", &[41], None),
    ] {
        assert_eq!(verdict(&profile, name, arguments), expected, "{name}{arguments:?}");
    }
}

#[test]
fn every_new_namespace_needs_the_administrator() {
    let ordinary = runtime_default(&capabilities(&[]), X86_64);
    let administrator = runtime_default(&capabilities(&["CAP_SYS_ADMIN"]), X86_64);
    for flag in NEW_NAMESPACES {
        for name in ["clone", "unshare"] {
            assert_eq!(verdict(&ordinary, name, &[flag]), Some(EPERM), "{name} {flag:#x}");
            assert_eq!(verdict(&administrator, name, &[flag]), None, "{name} {flag:#x}");
        }
    }
    assert_eq!(verdict(&administrator, "clone3", &[]), None);
}

#[test]
fn each_capability_opens_its_calls_and_no_others() {
    let without = runtime_default(&capabilities(&[]), X86_64);
    for (capability, opened) in calls::BY_CAPABILITY {
        let with = runtime_default(&capabilities(&[capability]), X86_64);
        for name in calls::BY_CAPABILITY.iter().flat_map(|(_, names)| *names) {
            let expected = (!opened.contains(name)).then_some(EPERM);
            assert_eq!(verdict(&with, name, &[]), expected, "{name} with {capability}");
            assert_eq!(verdict(&without, name, &[]), Some(EPERM), "{name}");
        }
        for name in calls::NEVER {
            assert_eq!(verdict(&with, name, &[]), Some(EPERM), "{name} with {capability}");
        }
    }
}

#[test]
fn the_flags_of_clone_are_where_the_architecture_has_them() {
    let profile = runtime_default(&capabilities(&[]), Arch::ScmpArchS390x);
    assert_eq!(verdict(&profile, "clone", &[0, NEWUSER]), Some(EPERM));
    assert_eq!(verdict(&profile, "clone", &[NEWUSER, SIGCHLD]), None);
}

#[test]
fn the_tables_say_each_thing_once() {
    let guarded = calls::BY_CAPABILITY.iter().flat_map(|(_, names)| *names);
    let guarded: BTreeSet<_> = guarded.collect();
    let own_rules = ["clone", "clone3", "unshare", "personality", "socket"];
    let architectures = [calls::X86, calls::ARM, calls::POWER, calls::S390, calls::RISCV];
    let mut seen = BTreeSet::new();
    let lists = calls::ORDINARY.iter().chain(&architectures).chain([&calls::NEVER]);
    for name in lists.copied().flatten().chain(guarded).chain(&own_rules) {
        assert!(seen.insert(name), "{name} stands twice");
    }
    for list in calls::ORDINARY {
        assert!(list.is_sorted(), "{list:?}");
    }
}

#[test]
fn smaller_siblings_of_the_architecture_have_their_rules() {
    for (arch, expected) in [
        (X86_64, &[X86_64, Arch::ScmpArchX86, Arch::ScmpArchX32][..]),
        (Arch::ScmpArchAarch64, &[Arch::ScmpArchAarch64, Arch::ScmpArchArm]),
        (Arch::ScmpArchRiscv64, &[Arch::ScmpArchRiscv64]),
    ] {
        let profile = runtime_default(&capabilities(&[]), arch);
        assert_eq!(profile.architectures().as_deref(), Some(expected));
    }
}

/// A container of Debian's static busybox under a profile, run by the real runc, in the host's
/// network. Gone with the test.
struct Container {
    directory: TempDir,
    id: String,
}

impl Container {
    fn new(name: &str, held: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let id = format!("cria-seccomp-{name}-{}", std::process::id());
        let container = Self { directory, id };
        let bin = container.path("rootfs/bin");
        for path in ["rootfs/proc", "rootfs/dev", "rootfs/sys", "rootfs/tmp"] {
            fs_err::create_dir_all(container.path(path)).unwrap();
        }
        fs_err::create_dir_all(&bin).unwrap();
        fs_err::copy("/bin/busybox", bin.join("busybox")).unwrap();
        fs_err::write(container.path("config.json"), spec(held).to_string()).unwrap();
        container
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.directory.path().join(path)
    }

    fn runc(&self, arguments: &[&str]) -> Output {
        Command::new("runc").arg("--root").arg(self.path("state")).args(arguments).output().unwrap()
    }

    /// The output of the script, both streams.
    fn run(&self, script: &str) -> String {
        fs_err::write(self.path("rootfs/script"), script).unwrap();
        let bundle = self.directory.path().display().to_string();
        let output = self.runc(&["run", "--bundle", &bundle, &self.id]);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.runc(&["delete", "--force", &self.id]);
    }
}

fn spec(held: &[&str]) -> serde_json::Value {
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/bin/busybox", "sh", "/script"],
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 },
            "noNewPrivileges": true,
            "capabilities": { "bounding": held, "effective": held, "permitted": held },
        },
        "root": { "path": "rootfs" },
        "hostname": "here",
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": namespaces,
            "seccomp": runtime_default(&capabilities(held), native_arch()),
        },
    })
}

/// One line per step: `NAME ok`, or `NAME` and the error.
const SCRIPT: &str = "
step() { name=$1; shift; if out=$(\"$@\" 2>&1); then echo \"$name ok\"; else echo \"$name $out\"; fi; }
busybox mkdir /tmp/d
step shell sh -c 'echo a | busybox cat | busybox grep a && (exit 0) & wait'
step files sh -c 'busybox cp /script /tmp/s && busybox mv /tmp/s /tmp/t && busybox rm /tmp/t'
step links sh -c 'busybox ln /script /tmp/h && busybox ln -s /script /tmp/l && busybox ls -l /tmp'
step fifo busybox mkfifo /tmp/f
step chown busybox chown 5:5 /tmp/h
step sleep busybox sleep 0.01
step ps busybox ps
step date busybox date
step kill sh -c 'busybox sleep 100 & kill $!'
step filter busybox grep -q Seccomp:.2 /proc/self/status
step time busybox timeout 5 busybox true
step mount busybox mount -t tmpfs none /tmp/d
step unshare busybox unshare -n busybox true
step hostname busybox hostname there
step userns busybox unshare -U busybox true
step chroot busybox chroot /tmp busybox true
";

fn step<'a>(output: &'a str, name: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no step {name} in:\n{output}"))
}

#[test]
fn a_real_container_works_under_the_profile_and_is_held_by_it() {
    assert!(Path::new("/bin/busybox").exists(), "this test needs busybox-static");
    let ordinary = ["CAP_CHOWN", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_FOWNER"];
    let output = Container::new("ordinary", &ordinary).run(SCRIPT);
    for name in [
        "shell", "files", "links", "fifo", "chown", "sleep", "ps", "date", "kill", "filter", "time",
    ] {
        assert_eq!(step(&output, name), "ok", "{name} in:\n{output}");
    }
    for name in ["mount", "unshare", "userns", "hostname", "chroot"] {
        assert_ne!(step(&output, name), "ok", "{name} in:\n{output}");
    }
}

#[test]
fn a_real_container_may_do_what_its_capabilities_are_for() {
    let output = Container::new("admin", &["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]).run(SCRIPT);
    for name in ["mount", "unshare", "userns", "hostname", "filter"] {
        assert_eq!(step(&output, name), "ok", "{name} in:\n{output}");
    }
}
