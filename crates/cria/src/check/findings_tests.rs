//! Tests of the judgement: every line in every verdict it can have.

use super::*;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn runtime(path: &str, refusal: Option<&str>) -> OciRuntime {
    OciRuntime {
        path: path.into(),
        version: "1".to_owned(),
        recursive_read_only: true,
        refusal: refusal.map(str::to_owned),
    }
}

fn directory_on(kind: &str) -> Directory {
    Directory { path: "/d".into(), filesystem: Some(kind.to_owned()), refusal: None }
}

/// A node that lacks nothing.
fn perfect() -> Node {
    Node {
        kernel: "6.18.0-1-amd64".to_owned(),
        overlay: Ok(OverlayMount::LayerByLayer),
        openat2: true,
        pidfd: true,
        seccomp: true,
        namespaces: names(&["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]),
        cgroup_layout: CgroupLayout::V2,
        controllers: names(&["cpu", "cpuset", "hugetlb", "io", "memory", "pids"]),
        systemd: true,
        cgroup_driver: CgroupDriver::Systemd,
        oci_runtimes: vec![runtime("/usr/bin/crun", None)],
        cni: Cni {
            directory: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            network: Network::Named {
                name: "pods".to_owned(),
                plugins: vec!["bridge".to_owned()],
                missing: vec![],
                broken: vec![],
            },
        },
        policy: Policy::Read("/etc/containers/policy.json".into()),
        lacking_capabilities: names(&[]),
        no_new_privs: false,
        oom_score_adj_floor: -1000,
        monitor: Some("/usr/libexec/cria/cria-monitor".into()),
        root: directory_on("ext4"),
        run_dir: directory_on("tmpfs"),
        kubelet: Some(Ok("v1.36.3".to_owned())),
        swap: false,
    }
}

#[test]
fn a_perfect_node_has_nothing_to_be_done() {
    for finding in judge(&perfect()) {
        assert_eq!(finding.verdict, Verdict::Good, "{finding:?}");
        assert_eq!(finding.remedy, None, "{finding:?}");
    }
}

/// What is wrong with a node, the line that says so, and how bad it is.
type Case = (fn(&mut Node), &'static str, Verdict);

const CASES: &[Case] = &[
    (|node| node.kernel = "5.9.0".to_owned(), "kernel", Verdict::Failing),
    (|node| node.kernel = "strange".to_owned(), "kernel", Verdict::Failing),
    (|node| node.kernel = "6.1.0".to_owned(), "kernel", Verdict::Good),
    (|node| node.overlay = Err("no such device".to_owned()), "overlayfs", Verdict::Failing),
    (|node| node.overlay = Ok(OverlayMount::OnePage), "overlayfs", Verdict::Lacking),
    (|node| node.openat2 = false, "openat2", Verdict::Failing),
    (|node| node.pidfd = false, "pidfd", Verdict::Failing),
    (|node| node.seccomp = false, "seccomp", Verdict::Failing),
    (|node| _ = node.namespaces.remove("net"), "namespaces", Verdict::Failing),
    (|node| _ = node.namespaces.remove("user"), "namespaces", Verdict::Lacking),
    (|node| node.cgroup_layout = CgroupLayout::None, "cgroups", Verdict::Failing),
    (to_v1, "cgroups", Verdict::Lacking),
    (to_hybrid, "cgroups", Verdict::Lacking),
    (|node| _ = node.controllers.remove("memory"), "cgroup controllers", Verdict::Failing),
    (|node| _ = node.controllers.remove("pids"), "cgroup controllers", Verdict::Lacking),
    (|node| node.systemd = false, "cgroup driver", Verdict::Failing),
    (|node| node.cgroup_driver = CgroupDriver::Cgroupfs, "cgroup driver", Verdict::Lacking),
    (|node| node.oci_runtimes.clear(), "OCI runtime", Verdict::Failing),
    (
        |node| node.oci_runtimes = vec![runtime("crun", Some("no")), runtime("runc", Some("no"))],
        "OCI runtime",
        Verdict::Failing,
    ),
    (|node| node.oci_runtimes[0].recursive_read_only = false, "OCI runtime", Verdict::Lacking),
    (|node| node.monitor = None, "monitor", Verdict::Failing),
    (
        |node| node.lacking_capabilities = names(&["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"]),
        "capabilities",
        Verdict::Failing,
    ),
    (
        |node| node.lacking_capabilities = names(&["CAP_SYS_RESOURCE"]),
        "capabilities",
        Verdict::Lacking,
    ),
    (|node| node.no_new_privs = true, "no_new_privs", Verdict::Lacking),
    (|node| node.oom_score_adj_floor = 0, "oom_score_adj", Verdict::Lacking),
    (
        |node| node.root.refusal = Some("read-only file system".to_owned()),
        "root directory",
        Verdict::Failing,
    ),
    (|node| node.root = directory_on("tmpfs"), "root directory", Verdict::Lacking),
    (
        |node| node.run_dir.refusal = Some("permission denied".to_owned()),
        "run directory",
        Verdict::Failing,
    ),
    (|node| node.run_dir = directory_on("ext4"), "run directory", Verdict::Lacking),
    (|node| node.cni.network = Network::None, "CNI network", Verdict::Lacking),
    (
        |node| node.cni.network = Network::Unusable("/f: there is no name".to_owned()),
        "CNI network",
        Verdict::Lacking,
    ),
    (break_file, "CNI network", Verdict::Lacking),
    (lose_plugin, "CNI plugins", Verdict::Failing),
    (|node| node.policy = Policy::None("/p".into()), "image policy", Verdict::Good),
    (|node| node.policy = Policy::Unusable("no".to_owned()), "image policy", Verdict::Failing),
    (|node| node.kubelet = None, "kubelet", Verdict::Good),
    (|node| node.kubelet = Some(Ok("v1.38.0".to_owned())), "kubelet", Verdict::Lacking),
    (|node| node.kubelet = Some(Ok("v1.34.2".to_owned())), "kubelet", Verdict::Lacking),
    (|node| node.kubelet = Some(Err("it says no".to_owned())), "kubelet", Verdict::Lacking),
    (|node| node.swap = true, "swap", Verdict::Good),
];

fn to_v1(node: &mut Node) {
    node.cgroup_layout = CgroupLayout::V1;
    node.controllers.insert("cpuacct".to_owned());
}

fn to_hybrid(node: &mut Node) {
    to_v1(node);
    node.cgroup_layout = CgroupLayout::Hybrid;
}

fn break_file(node: &mut Node) {
    if let Network::Named { broken, .. } = &mut node.cni.network {
        broken.push("/f: there is no name".to_owned());
    }
}

fn lose_plugin(node: &mut Node) {
    if let Network::Named { missing, plugins, .. } = &mut node.cni.network {
        missing.clone_from(plugins);
    }
}

#[test]
fn each_lack_is_told_by_its_own_line_and_by_no_other() {
    for (index, (spoil, subject, verdict)) in CASES.iter().enumerate() {
        let mut node = perfect();
        spoil(&mut node);
        for finding in judge(&node) {
            if finding.subject == *subject {
                assert_eq!(finding.verdict, *verdict, "case {index}: {finding:?}");
                assert_eq!(finding.remedy.is_some(), *verdict != Verdict::Good, "{finding:?}");
                assert!(!finding.follows.is_empty(), "{finding:?}");
            } else {
                assert_eq!(finding.verdict, Verdict::Good, "case {index}: {finding:?}");
            }
        }
    }
}

#[test]
fn every_line_that_can_fail_is_tried() {
    let tried: BTreeSet<_> = CASES.iter().map(|(_, subject, _)| *subject).collect();
    for finding in judge(&perfect()) {
        assert!(tried.contains(finding.subject), "{}", finding.subject);
    }
}

#[test]
fn a_runtime_that_was_passed_over_is_named_with_its_reason() {
    let mut node = perfect();
    node.oci_runtimes = vec![runtime("/bin/crun", Some("hybrid mode")), runtime("/bin/runc", None)];
    let finding = oci_runtime(&node.oci_runtimes);
    assert_eq!(finding.verdict, Verdict::Good);
    assert_eq!(finding.found, "/bin/runc (1); not /bin/crun (1): hybrid mode");
}

#[test]
fn a_kernel_release_has_its_version_in_front() {
    for (release, expected) in [
        ("6.12.0-1-amd64", Some((6, 12))),
        ("5.4", Some((5, 4))),
        ("6.1-rc1", Some((6, 1))),
        ("6", None),
        ("", None),
    ] {
        assert_eq!(version(release), expected, "{release}");
    }
}

#[test]
fn each_finding_is_one_line() {
    let mut node = perfect();
    node.monitor = None;
    let findings = judge(&node);
    let text = super::super::render(&findings);
    assert_eq!(text.lines().count(), findings.len());
    assert_eq!(super::super::worst(&findings), Verdict::Failing);
    let json: serde_json::Value =
        serde_json::from_str(&super::super::render_json(&findings)).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["findings"].as_array().unwrap().len(), findings.len());
    assert_eq!(json["findings"][0]["verdict"], "good");
    let line = "FAIL  monitor: cria-monitor is not there. No container can be started. \
                To do: install it beside cria, or set monitor.";
    assert!(text.lines().any(|found| found == line), "{text}");
}
