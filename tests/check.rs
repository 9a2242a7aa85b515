//! `cria check` on nodes that lack something: each is this machine, spoiled in a mount namespace of
//! the check's own or by its flags. What no namespace can take away is tried by unit tests (kinds of
//! namespaces are the kernel's own), and, where systemd can filter system calls, in the virtual
//! machine (openat2, pidfds).

use std::path::PathBuf;
use std::process::{Command, Output};

use harness::Node;
use serde_json::Value;

/// Pods could not run, pods run.
const FAILING: (&str, i32) = ("failing", 1);
const LACKING: (&str, i32) = ("lacking", 2);

struct Case {
    /// Shell commands before the check, in its mount namespace.
    spoil: &'static str,
    /// What stands before the check on its command line.
    wrapper: &'static [&'static str],
    flags: &'static [&'static str],
    subject: &'static str,
    verdict: (&'static str, i32),
}

const PLAIN: Case = Case { spoil: "", wrapper: &[], flags: &[], subject: "", verdict: FAILING };

const CASES: [Case; 17] = [
    Case { wrapper: &["setarch", "--uname-2.6"], subject: "kernel", ..PLAIN },
    Case { flags: &["--root", "/proc/none"], subject: "overlayfs", ..PLAIN },
    Case { spoil: "mount -t tmpfs none /proc/sys/kernel/seccomp", subject: "seccomp", ..PLAIN },
    Case { spoil: "umount -lR /sys/fs/cgroup", subject: "cgroups", ..PLAIN },
    Case {
        // Of v1 one controller's tree; of v2 the only one, in whose place there is another.
        spoil: "if [ -d /sys/fs/cgroup/memory ]; then umount -l /sys/fs/cgroup/memory
            else mount -t tmpfs none /sys/fs/cgroup; fi",
        subject: "cgroup controllers",
        ..PLAIN
    },
    Case {
        spoil: "[ ! -d /run/systemd ] || mount -t tmpfs none /run/systemd",
        flags: &["--cgroup-driver", "systemd"],
        subject: "cgroup driver",
        ..PLAIN
    },
    Case { flags: &["--oci-runtime", "/bin/false"], subject: "OCI runtime", ..PLAIN },
    Case { flags: &["--monitor", "/no/monitor"], subject: "monitor", ..PLAIN },
    Case { wrapper: &["setpriv", "--bounding-set=-chown"], subject: "capabilities", ..PLAIN },
    Case {
        wrapper: &["setpriv", "--no-new-privs"],
        subject: "no_new_privs",
        verdict: LACKING,
        ..PLAIN
    },
    Case {
        spoil: "mount -t tmpfs -o ro none \"$FOLDER/root\"",
        subject: "root directory",
        ..PLAIN
    },
    Case { spoil: "mount -t tmpfs -o ro none \"$FOLDER/run\"", subject: "run directory", ..PLAIN },
    Case {
        spoil: "mount -t tmpfs none \"$FOLDER/policies\"; echo '{}' > \"$FOLDER/policies/a.json\"",
        subject: "image policy",
        ..PLAIN
    },
    Case {
        spoil: "echo '{\"name\": \"n\", \"cniVersion\": \"1.0.0\", \"type\": \"no-such-plugin\"}' > \"$FOLDER/net.json\"
            mount -t tmpfs none \"$CNI\"; cp \"$FOLDER/net.json\" \"$CNI/01.json\"",
        subject: "CNI plugins",
        ..PLAIN
    },
    Case {
        spoil: "mount -t tmpfs none \"$CNI\"",
        subject: "CNI network",
        verdict: LACKING,
        ..PLAIN
    },
    Case {
        spoil: "echo '{' > \"$FOLDER/net.json\"
            mount -t tmpfs none \"$CNI\"; cp \"$FOLDER/net.json\" \"$CNI/01.json\"",
        subject: "CNI network",
        verdict: LACKING,
        ..PLAIN
    },
    Case {
        spoil: "printf '#!/bin/sh\\necho Kubernetes v1.30.1\\n' > \"$FOLDER/kubelet\"
            chmod 755 \"$FOLDER/kubelet\"; PATH=$FOLDER:$PATH",
        subject: "kubelet",
        verdict: LACKING,
        ..PLAIN
    },
];

#[test]
fn each_lack_of_a_node_is_told_by_its_line_with_a_remedy_and_by_the_exit_code() {
    for Case { spoil, wrapper, flags, subject, verdict: (verdict, code) } in CASES {
        let node = Node::setup().prepare();
        let output = check(&node, spoil, wrapper, flags);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{subject}: {error}: {text}"));
        let line = line_of(&report, subject);
        assert_eq!(line["verdict"], verdict, "{line}");
        assert!(line["remedy"].as_str().is_some_and(|text| !text.is_empty()), "{line}");
        assert_eq!(output.status.code(), Some(code), "{subject}: {report:#}");
    }
}

#[test]
fn a_node_as_it_is_can_run_pods() {
    let node = Node::setup().prepare();
    let output = check(&node, "", &[], &[]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let lines = report["findings"].as_array().expect("a list");
    let worst = ["failing", "lacking", "good"]
        .into_iter()
        .find(|verdict| lines.iter().any(|line| line["verdict"] == *verdict));
    let code = if worst == Some("lacking") { 2 } else { 0 };
    assert_ne!(worst, Some("failing"), "{report:#}");
    assert_eq!(output.status.code(), Some(code), "{report:#}");
}

fn line_of(report: &Value, subject: &str) -> Value {
    let lines = report["findings"].as_array().expect("a list of findings");
    lines.iter().find(|line| line["subject"] == subject).expect(subject).clone()
}

/// The node's own command, but `check --json`, behind `wrapper` in a spoiled mount namespace.
fn check(node: &Node, spoil: &str, wrapper: &[&str], flags: &[&str]) -> Output {
    let daemon = node.command();
    let own: Vec<_> = daemon.get_args().map(ToOwned::to_owned).collect();
    let from = own.iter().position(|word| word == "--config").expect("the flags begin here");
    // Flags may come once: a case's own replace the node's.
    let replaced = |words: &&[std::ffi::OsString]| !flags.iter().any(|flag| words[0] == *flag);
    let kept = own[from..].chunks(2).filter(replaced).flatten();
    let folder: PathBuf = node.place().folder().into();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec", &format!("{spoil}\nexec \"$@\""), "sh"])
        .args(wrapper)
        .arg(harness::tools::binary("cria"))
        .args(["check", "--json"])
        .args(kept)
        .args(flags)
        .env("FOLDER", folder)
        .env("CNI", node.cni_conf_dir());
    command.output().expect("util-linux is installed")
}
