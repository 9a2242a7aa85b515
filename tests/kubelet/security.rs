//! Who a container is, and what it may: users, capabilities, filters, namespaces, limits.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Case, case, ours};
use crate::site::{LIMIT, Site, read, status, text, with};

pub(crate) const CASES: &[Case] = &[
    case("runAsUser, runAsGroup, fsGroup, supplementalGroups", users),
    case("runAsNonRoot: images of root, of a name, of a number", non_root),
    case("a read-only root filesystem", read_only_root),
    case("seccomp: RuntimeDefault and Unconfined", seccomp),
    case("capabilities: dropped, added, the usual; no new privileges", capabilities),
    ours("privileged: all that the node has", privileged),
    case("nothing is inherited: umask, blocked signals, descriptors", nothing_inherited),
    ours("nothing is inherited: limits, ignored signals", limits),
    case("shareProcessNamespace", shared_pids),
    case("hostPID: nothing of the container outlives its init", host_pid),
    case("hostIPC, and IPC shared in a pod", ipc),
];

fn users(site: &Site) -> Result<()> {
    let list = json!({ "volumeMounts": [{ "name": "disk", "mountPath": "/disk" }] });
    let script = "id -u; id -g; id -G; touch /disk/file; stat -c '%u %g' /disk/file; \
                  stat -c '%g %A' /disk; echo end; sleep 10000";
    let of_image = json!({ "image": site.images.numbered_user });
    let spec = json!({
        "securityContext": {
            "runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456, "supplementalGroups": [4567],
        },
        "volumes": [{ "name": "disk", "emptyDir": {} }],
        "containers": [with(site.sh("main", script), list)],
    });
    site.apply("users", spec);
    site.expect_log(
        "users",
        "main",
        &["1234", "2345", "2345 3456 4567", "1234 3456", "3456 drwxrwsrwx"],
    )?;
    let script = "id -u; id -g; id -G; echo end; sleep 10000";
    let spec = json!({ "containers": [with(site.sh("main", script), of_image)] });
    site.apply("users-of-image", spec);
    // The group 50000 is what the image's own /etc/group says of its user.
    site.expect_log("users-of-image", "main", &["1000", "1000", "1000 50000"])
}

fn non_root(site: &Site) -> Result<()> {
    let of = |name: &str, image: &str| {
        with(site.sh(name, "id -u; echo end; sleep 10000"), json!({ "image": image }))
    };
    let spec = json!({
        "securityContext": { "runAsNonRoot": true },
        "containers": [
            of("root", &site.images.busybox),
            of("named", &site.images.named_user),
            of("numbered", &site.images.numbered_user),
        ],
    });
    site.apply("non-root", spec);
    site.expect_log("non-root", "numbered", &["1000"])?;
    for (name, word) in [("root", "image will run as root"), ("named", "non-numeric user")] {
        site.pod("non-root", "refused for its users", |pod| {
            let waiting = &status(pod, name)["state"]["waiting"];
            let refused = waiting["reason"] == "CreateContainerConfigError";
            (refused && text(&waiting["message"]).contains(word)).then_some(())
        })?;
    }
    Ok(())
}

fn read_only_root(site: &Site) -> Result<()> {
    let more = json!({
        "securityContext": { "readOnlyRootFilesystem": true },
        "volumeMounts": [{ "name": "disk", "mountPath": "/disk" }],
    });
    let script = "touch /file 2>&- || echo refused; touch /disk/file && echo allowed; \
                  touch /dev/shm/file && echo shm; echo end; sleep 10000";
    let spec = json!({
        "volumes": [{ "name": "disk", "emptyDir": {} }],
        "containers": [with(site.sh("main", script), more)],
    });
    site.apply("read-only", spec);
    site.expect_log("read-only", "main", &["refused", "allowed", "shm"])
}

fn seccomp(site: &Site) -> Result<()> {
    let script = "grep ^Seccomp: /proc/self/status | tr -d '\\t '; echo end; sleep 10000";
    let of = |name: &str, kind: &str| {
        with(
            site.sh(name, script),
            json!({ "securityContext": { "seccompProfile": { "type": kind } } }),
        )
    };
    let spec = json!({ "containers": [of("default", "RuntimeDefault"), of("none", "Unconfined")] });
    site.apply("seccomp", spec);
    site.expect_log("seccomp", "default", &["Seccomp:2"])?;
    site.expect_log("seccomp", "none", &["Seccomp:0"])
}

fn capabilities(site: &Site) -> Result<()> {
    let script =
        "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status | tr -d '\\t '; echo end; sleep 10000";
    let of =
        |name: &str, context| with(site.sh(name, script), json!({ "securityContext": context }));
    let one = json!({ "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] });
    let spec = json!({ "containers": [
        of("one", json!({ "capabilities": one, "allowPrivilegeEscalation": false })),
        of("usual", json!({})),
        of("more", json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["CHOWN"] } })),
    ]});
    site.apply("capabilities", spec);
    site.expect_log("capabilities", "one", &["CapEff:0000000000000400", "NoNewPrivs:1"])?;
    site.expect_log("capabilities", "usual", &["CapEff:00000000a80425fb", "NoNewPrivs:0"])?;
    site.expect_log("capabilities", "more", &["CapEff:00000000a80435fa", "NoNewPrivs:0"])
}

fn privileged(site: &Site) -> Result<()> {
    let script = "grep ^CapEff /proc/self/status | tr -d '\\t '; test -e /dev/kmsg && echo devices; \
                  mount -t tmpfs none /mnt 2>&- || mkdir -p /mnt && mount -t tmpfs none /mnt && echo mounts; \
                  echo end; sleep 10000";
    let spec = json!({ "containers": [
        with(site.sh("main", script), json!({ "securityContext": { "privileged": true } })),
    ]});
    site.apply("privileged", spec);
    let own = read("/proc/self/status")?;
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("CapBnd")?;
    let all = format!("CapEff:{}", own.trim());
    site.expect_log("privileged", "main", &[&all, "devices", "mounts"])
}

fn nothing_inherited(site: &Site) -> Result<()> {
    let script = "umask; grep ^SigBlk /proc/1/status | tr -d '\\t '; echo end; exec sleep 10000";
    site.apply("inherited", json!({ "containers": [site.sh("main", script)] }));
    site.expect_log("inherited", "main", &["0022", "SigBlk:0000000000000000"])?;
    // By now nobody but itself can have opened anything.
    let open = site.exec("inherited", "main", "ls /proc/1/fd")?;
    ensure!(open == "0\n1\n2\n", "{open}");
    Ok(())
}

fn limits(site: &Site) -> Result<()> {
    // No shell, which has signals of its own that it ignores.
    let of = |name: &str, words: &[&str]| with(site.sh(name, ""), json!({ "command": words }));
    let spec = json!({ "restartPolicy": "Never", "containers": [
        of("limits", &["grep", "^Max open", "/proc/self/limits"]),
        of("signals", &["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]),
    ]});
    site.apply("limits-of-process", spec);
    site.ended("limits-of-process", "Succeeded")?;
    // More than the node itself may have it cannot give.
    let own = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.1;
    let hard = own.min(524_288).to_string();
    let log = site.log("limits-of-process", "limits")?;
    let words: Vec<_> = log.split_whitespace().collect();
    ensure!(words == ["Max", "open", "files", "1024", &hard, "files"], "{log}");
    let log = site.log("limits-of-process", "signals")?;
    ensure!(log == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", "{log}");
    Ok(())
}

fn shared_pids(site: &Site) -> Result<()> {
    // PID 1 is nobody's container, and shows nobody the host.
    let look = "until ps | grep -q '[s]leep 12345'; do sleep 0.1; done; \
                test $$$$ != 1 && echo not the first; \
                ls /proc/1/root/etc/passwd 2>&- >&2 && grep -c '^sshd' /proc/1/root/etc/passwd; \
                echo end; sleep 10000";
    let spec = json!({
        "shareProcessNamespace": true,
        "containers": [site.sh("looks", look), site.sh("sleeps", "sleep 12345")],
    });
    site.apply("shared-pids", spec);
    site.expect_log("shared-pids", "looks", &["not the first"])
}

fn host_pid(site: &Site) -> Result<()> {
    let own = std::process::id();
    // It holds the container's output as well: the end must not wait for it.
    let script =
        format!("test -d /proc/{own} && echo sees the host; sleep 76543 & sleep 1; echo end");
    let spec = json!({
        "hostPID": true, "restartPolicy": "Never", "containers": [site.sh("main", &script)],
    });
    site.apply("host-pid", spec);
    site.ended("host-pid", "Succeeded")?;
    site.expect_log("host-pid", "main", &["sees the host"])?;
    let gone = harness::wait::within(LIMIT, || (!runs("sleep\u{0}76543")).then_some(()));
    gone.context("the background child runs still")
}

/// Whether a process with these words is on the host.
fn runs(words: &str) -> bool {
    let processes = std::path::Path::new("/proc").read_dir().into_iter().flatten().flatten();
    let mut commands =
        processes.filter_map(|entry| fs_err::read(entry.path().join("cmdline")).ok());
    commands.any(|command| String::from_utf8_lossy(&command).starts_with(words))
}

fn ipc(site: &Site) -> Result<()> {
    let script = "readlink /proc/self/ns/ipc; echo end; sleep 10000";
    let spec = json!({ "hostIPC": true, "containers": [site.sh("main", script)] });
    site.apply("host-ipc", spec);
    let spec = json!({ "containers": [
        site.sh("one", "echo of one > /dev/shm/file; readlink /proc/self/ns/ipc; echo end; sleep 10000"),
        site.sh("two", "until [ -s /dev/shm/file ]; do sleep 0.1; done; readlink /proc/self/ns/ipc; echo end; sleep 10000"),
    ]});
    site.apply("pod-ipc", spec);
    let own = fs_err::read_link("/proc/self/ns/ipc")?;
    site.expect_log("host-ipc", "main", &[&own.to_string_lossy()])?;
    let one = site.await_log("pod-ipc", "one", "end\n")?;
    ensure!(one == site.await_log("pod-ipc", "two", "end\n")?, "two namespaces in a pod");
    ensure!(!one.contains(&*own.to_string_lossy()), "the host's namespace");
    Ok(())
}
