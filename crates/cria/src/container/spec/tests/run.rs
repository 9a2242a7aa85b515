//! Specs of ours, run by the real OCI runtimes in a busybox root file system.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use fs_err as fs;
use tempfile::TempDir;

use super::super::node::{CgroupFacts, NodeSettings};
use super::super::rlimits::Rlimit;
use super::*;
use crate::container::config::{Mount, SupplementalGroupsPolicy};

/// What the container tells about itself, one `key=value` a line.
const SCRIPT: &str = r#"
say() { echo "$1=$2"; }
tried() { name=$1; shift; if "$@" >/dev/null 2>&1; then say $name yes; else say $name no; fi; }
say id "$(id -u) $(id -g) $(id -G)"
say cwd "$(pwd)"
say home "$HOME"
say twice "$TWICE"
say path "$PATH"
say umask "$(umask)"
say nofile "$(ulimit -n) $(ulimit -Hn)"
say memlock "$(ulimit -l)"
for key in CapBnd CapPrm CapEff CapInh CapAmb NoNewPrivs SigBlk; do
    say $key "$(grep $key: /proc/self/status | cut -f2)"
done
say oom "$(cat /proc/self/oom_score_adj)"
say fds "$(ls /proc/self/fd | tr '\n' ' ')"
say masked_dir "$(ls /masked | wc -l)"
say masked_file "$(wc -c < /secret)"
tried write_root touch /x
tried write_ro touch /ro/x
tried write_ro_sub touch /ro/sub/x
tried write_rro touch /rro/x
tried write_rro_sub touch /rro/sub/x
tried write_rw touch /rw/x
tried write_rw_sub touch /rw/sub/x
tried run_noexec /rw/run
tried run_exec /exec/run
access() { grep " $1 " /proc/mounts | cut -d' ' -f4 | cut -d, -f1; }
say sys "$(access /sys)"
say cgroups "$(access /sys/fs/cgroup/memory)"
tried write_shm touch /dev/shm/x
tried read_zero head -c 1 /dev/extra-zero
say hosts "$(cat /etc/hosts)"
say cgroup "$(ls /sys/fs/cgroup/memory 2>/dev/null | grep -c '^memory.limit_in_bytes$')"
say limit "$(cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null)"
say pids "$(cat /sys/fs/cgroup/pids/pids.max 2>/dev/null)"
"#;

const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// Debian 12's crun takes a node with both versions of cgroups for one with the second.
const HIDE_V2: &str =
    r#"if [ "$3" = crun ]; then umount /sys/fs/cgroup/unified 2>/dev/null || true; fi"#;

struct Bundle {
    dir: TempDir,
    id: String,
}

impl Bundle {
    /// A root file system of busybox and `accounts`, and what the script looks at.
    fn new() -> Self {
        let dir = TempDir::with_prefix("cria-spec-").unwrap();
        // The container's user is not root, and its binds are in here.
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let root = dir.path().join("rootfs");
        for made in ["bin", "etc", "proc", "sys", "dev", "masked/inside"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "id", "ls", "cat", "grep", "cut", "wc", "tr", "touch", "head", "mount", "mkdir",
            "readlink",
        ] {
            fs::hard_link(root.join("bin/busybox"), root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("secret"), "secret").unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:\napp:x:1234:2345::/home/app:\n")
            .unwrap();
        fs::write(root.join("etc/group"), "app:x:2345:\nextra:x:50000:root,app\n").unwrap();
        for made in ["ro/sub", "rro/sub", "rw/sub", "shm"] {
            fs::create_dir_all(dir.path().join(made)).unwrap();
            fs::set_permissions(dir.path().join(made), PermissionsExt::from_mode(0o777)).unwrap();
        }
        for made in ["ro", "rro", "rw"] {
            let path = dir.path().join(made);
            fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
            fs::write(path.join("run"), "#!/bin/sh\n").unwrap();
            fs::set_permissions(path.join("run"), PermissionsExt::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(dir.path().join("shared")).unwrap();
        for file in ["resolv.conf", "hostname", "hosts"] {
            fs::write(dir.path().join(file), format!("our {file}")).unwrap();
        }
        let id = format!("cria-spec-{}", &SandboxId::random().unwrap().as_str()[..12]);
        Self { dir, id }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn volume(&self, container_path: &str, name: &str) -> Mount {
        Mount {
            container_path: container_path.into(),
            host_path: self.path(name).to_str().unwrap().into(),
            ..Default::default()
        }
    }

    /// In a mount namespace with a mount beneath each of the volumes, and what is mounted in
    /// `shared` seen by its peers; `run` removes the container's cgroups at the end.
    fn run(&self, runtime: &str, spec: &Spec) -> Output {
        fs::write(self.path("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        let script = r#"
            for volume in ro rro rw; do mount -t tmpfs -o mode=777 none "$1/$volume/sub"; done
            mount -t tmpfs none "$1/shared"; mount --make-shared "$1/shared"
            "$3" --root "$1/state" run --bundle "$1" "$2"
            if [ -d "$1/shared/new" ] && mountpoint -q "$1/shared/new"; then
                echo propagated=yes
            else
                echo propagated=no
            fi
        "#;
        self.shell(runtime, &format!("{HIDE_V2}\n{script}"))
    }

    /// Runs `script` in a mount namespace of its own: its arguments are the bundle's directory, the
    /// container's id and the OCI runtime.
    fn shell(&self, runtime: &str, script: &str) -> Output {
        Command::new("unshare")
            .args(["--mount", "sh", "-ec", script, "sh"])
            .arg(self.dir.path())
            .args([&self.id, runtime])
            .output()
            .unwrap()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // There is something to do only if a failure left it behind.
        let delete = r#"
            "$3" --root "$1/state" delete --force "$2" || true
            rmdir /sys/fs/cgroup/*/"$2"
        "#;
        for runtime in RUNTIMES {
            drop(self.shell(runtime, &format!("{HIDE_V2}\n{delete}")));
        }
    }
}

fn parts(bundle: &Bundle) -> Parts {
    let mut parts = Parts::new();
    parts.node = NodeFacts::look_up(NodeSettings {
        cgroups: CgroupFacts { version: CgroupVersion::V1, swap: true, hugetlb: false },
        default_capabilities: crate::config::RuntimeConfig::default().capability_names(),
        nofile: Rlimit { soft: 1000, hard: 2000 },
        pids_limit: Some(500),
        recursive_read_only: true,
        own_dirs: Vec::new(),
    })
    .unwrap();
    parts.rootfs = bundle.path("rootfs");
    parts.namespaces =
        SpecNamespaces { ipc: Some("/proc/self/ns/ipc".into()), ..Default::default() };
    parts.files = Files {
        resolv_conf: bundle.path("resolv.conf"),
        hostname: bundle.path("hostname"),
        hosts: bundle.path("hosts"),
        shm: bundle.path("shm"),
    };
    parts.cgroups_path = format!("/{}", bundle.id);
    parts
}

fn told(output: &Output) -> BTreeMap<String, String> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {error}\n{text}", output.status);
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn a_container_is_what_was_asked_for() {
    for runtime in RUNTIMES {
        check_ordinary(runtime);
    }
}

fn check_ordinary(runtime: &str) {
    let bundle = Bundle::new();
    let mut parts = parts(&bundle);
    let config = &mut parts.config;
    config.command = vec!["/bin/sh".into(), "-c".into(), SCRIPT.into()];
    config.working_dir = "/made/by/runc".into();
    config.envs = vec![("TWICE".into(), "first".into()), ("TWICE".into(), "second".into())];
    config.resources.memory_limit_bytes = 64 << 20;
    config.resources.oom_score_adj = 900;
    let readonly = |mount| Mount { readonly: true, ..mount };
    config.mounts = vec![
        readonly(bundle.volume("/ro", "ro")),
        Mount { recursive_read_only: true, ..readonly(bundle.volume("/rro", "rro")) },
        Mount { mount_options: vec!["noexec".into()], ..bundle.volume("/rw", "rw") },
        bundle.volume("/exec", "rw"),
    ];
    config.devices = vec![crate::container::config::Device {
        container_path: "/dev/extra-zero".into(),
        host_path: "/dev/zero".into(),
        permissions: "r".into(),
    }];
    let security = &mut config.security;
    security.run_as_username = "app".into();
    security.supplemental_groups = vec![60000];
    security.supplemental_groups_policy = SupplementalGroupsPolicy::Merge;
    security.add_ambient_capabilities = vec!["NET_BIND_SERVICE".into()];
    security.drop_capabilities = vec!["CHOWN".into()];
    security.no_new_privs = true;
    security.readonly_rootfs = true;
    security.masked_paths = vec!["/masked".into(), "/secret".into(), "/not/there".into()];
    fs::create_dir_all(bundle.path("rootfs/made/by/runc")).unwrap();
    parts.user = user::look_up(&parts.rootfs, &parts.config.security, "").unwrap();
    parts.volumes = volumes::look_up(&parts.config.mounts, &BTreeMap::new(), &parts.node).unwrap();
    parts.devices = devices::look_up(&parts.config.devices).unwrap();

    let told = told(&bundle.run(runtime, &parts.build().unwrap()));

    let held = capabilities::of(&parts.config.security, &parts.node).unwrap().held;
    let held = mask(&held);
    let bind_service = mask(&["CAP_NET_BIND_SERVICE".to_owned()].into());
    for (key, expected) in [
        ("id", "1234 2345 2345 50000 60000"),
        ("cwd", "/made/by/runc"),
        ("home", "/home/app"),
        ("twice", "second"),
        ("path", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("umask", "0022"),
        ("nofile", "1000 2000"),
        ("CapBnd", &held),
        // Not root: what is not ambient is gone with execve.
        ("CapPrm", &bind_service),
        ("CapEff", &bind_service),
        ("CapInh", &bind_service),
        ("CapAmb", &bind_service),
        ("NoNewPrivs", "1"),
        ("SigBlk", "0000000000000000"),
        ("oom", "900"),
        // The third is the directory that ls reads.
        ("fds", "0 1 2 3"),
        ("masked_dir", "0"),
        ("masked_file", "0"),
        ("write_root", "no"),
        ("write_ro", "no"),
        ("write_ro_sub", "yes"),
        ("write_rro", "no"),
        ("write_rro_sub", "no"),
        ("write_rw", "yes"),
        ("write_rw_sub", "yes"),
        ("run_noexec", "no"),
        ("run_exec", "yes"),
        ("sys", "ro"),
        ("cgroups", "ro"),
        ("write_shm", "yes"),
        ("read_zero", "yes"),
        ("hosts", "our hosts"),
        ("cgroup", "1"),
        ("limit", "67108864"),
        ("pids", "500"),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(expected), "{runtime} {key}: {told:#?}");
    }
}

/// As in `/proc/self/status`.
fn mask(names: &BTreeSet<String>) -> String {
    let bits = names.iter().map(|name| 1_u64 << name.parse::<caps::Capability>().unwrap().index());
    format!("{:016x}", bits.sum::<u64>())
}

#[test]
fn a_privileged_container_is_let_do_what_the_node_can() {
    for runtime in RUNTIMES {
        check_privileged(runtime);
    }
}

fn check_privileged(runtime: &str) {
    let script = r#"
        mkdir /shared/new; mount -t tmpfs none /shared/new; echo mounted=$?
        grep -q "^proc /proc proc ro" /proc/mounts; echo proc_readonly=$?
        cat /sys/kernel/mm/ksm/run > /sys/kernel/mm/ksm/run; echo sysctl=$?
        head -c 0 /dev/loop-control; echo device=$?
        echo masked=$(wc -c < /secret)
        echo held=$(grep CapEff: /proc/self/status | cut -f2)
        echo pid_namespace=$(readlink /proc/self/ns/pid)
    "#;
    let bundle = Bundle::new();
    let mut parts = parts(&bundle);
    let config = &mut parts.config;
    config.command = vec!["/bin/sh".into(), "-c".into(), script.into()];
    config.security.privileged = true;
    config.security.masked_paths = vec!["/secret".into()];
    parts.namespaces.pid = PidNamespace::Host;
    parts.devices = devices::of_host(Path::new("/dev")).unwrap();
    parts.volumes = vec![Volume {
        destination: "/shared".into(),
        source: bundle.path("shared"),
        access: volumes::Access::ReadWrite,
        propagation: crate::container::config::Propagation::Bidirectional,
        options: Vec::new(),
    }];

    let told = told(&bundle.run(runtime, &parts.build().unwrap()));

    let host = fs::read_link("/proc/self/ns/pid").unwrap();
    let host = host.to_str().unwrap();
    let held = mask(&parts.node.capabilities);
    for (key, expected) in [
        ("mounted", "0"),
        ("propagated", "yes"),
        ("proc_readonly", "1"),
        ("sysctl", "0"),
        ("device", "0"),
        ("masked", "6"),
        ("held", &held),
        ("pid_namespace", host),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(expected), "{runtime} {key}: {told:#?}");
    }
}

/// Starts nothing: the cgroup is there once the container is created.
#[test]
fn an_update_of_some_limits_leaves_the_others_in_the_cgroup_as_they_were() {
    for runtime in RUNTIMES {
        check_update(runtime);
    }
}

fn check_update(runtime: &str) {
    let bundle = Bundle::new();
    let mut parts = parts(&bundle);
    let resources = &mut parts.config.resources;
    resources.memory_limit_bytes = 64 << 20;
    resources.cpu_shares = 512;
    resources.cpu_quota = 50_000;
    resources.cpu_period = 100_000;
    parts.config.command = vec!["/bin/sh".into()];
    let update = crate::container::config::Resources {
        memory_limit_bytes: 96 << 20,
        cpu_quota: 70_000,
        cpuset_cpus: "0".into(),
        unified: BTreeMap::from([("memory.high".into(), "1".into())]),
        ..Default::default()
    };
    let merged = resources::merge(&parts.config.resources, &update);
    let json = serde_json::to_vec(&resources::for_update(&merged, &parts.node)).unwrap();
    fs::write(bundle.path("update.json"), json).unwrap();
    fs::write(bundle.path("config.json"), serde_json::to_vec(&parts.build().unwrap()).unwrap())
        .unwrap();

    let script = r#"
        "$3" --root "$1/state" create --bundle "$1" "$2" </dev/null >"$1/output" 2>&1
        "$3" --root "$1/state" update --resources "$1/update.json" "$2"
        for file in memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us \
            cpu/cpu.cfs_period_us cpuset/cpuset.cpus pids/pids.max; do
            echo "${file#*/}=$(cat /sys/fs/cgroup/${file%/*}/$2/${file#*/})"
        done
        "$3" --root "$1/state" delete --force "$2"
    "#;
    let told = told(&bundle.shell(runtime, &format!("{HIDE_V2}\n{script}")));
    let quota = update.cpu_quota.to_string();
    for (key, expected) in [
        ("memory.limit_in_bytes", "100663296"),
        ("cpu.shares", "512"),
        ("cpu.cfs_quota_us", &quota),
        ("cpu.cfs_period_us", "100000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "500"),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(expected), "{runtime} {key}: {told:#?}");
    }
}
