//! Who a container is and what it may, as the CRI says it: groups, devices, seccomp profiles.

use std::os::unix::fs::MetadataExt;

use cria_proto::security_profile::ProfileType;
use cria_proto::*;
use harness::cri::{Container, Pod};
use harness::scene::{SOON, Scene, refused};
use tonic::Code;

fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Runs the container to its end; what it wrote.
fn written(pod: &Pod, config: ContainerConfig) -> (Container, String) {
    let container = pod.run(config);
    container.await_exit(SOON);
    let written = container.written("stdout");
    (container, written)
}

#[test]
fn the_groups_of_the_image_are_added_or_not_as_the_policy_says_and_the_status_tells() {
    let scene = Scene::new();
    let pod = scene.host("groups");
    // The image's /etc/group has its user 1000 in 50000.
    for (name, policy, groups) in [
        ("merge", SupplementalGroupsPolicy::Merge, &[1000, 1234, 50000][..]),
        ("strict", SupplementalGroupsPolicy::Strict, &[1000, 1234][..]),
    ] {
        let mut config = scene.script(name, "id -u; id -g; id -G");
        let security = security(&mut config);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.run_as_group = Some(Int64Value { value: 1000 });
        security.supplemental_groups = vec![1234];
        security.supplemental_groups_policy = policy.into();
        let (container, written) = written(&pod, config);
        let mut lines = written.lines();
        assert_eq!((lines.next(), lines.next()), (Some("1000"), Some("1000")), "{name}");
        let mut seen: Vec<i64> = lines
            .next()
            .unwrap_or_default()
            .split(' ')
            .map(|group| group.parse().expect("a number"))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, groups, "{name}");

        let user = container.status().user.expect("the user is told").linux.expect("of linux");
        let mut told = user.supplemental_groups;
        told.sort_unstable();
        assert_eq!((user.uid, user.gid), (1000, 1000), "{name}");
        // Whether the group itself is among them is the runtime's choice.
        told.retain(|group| *group != 1000);
        assert_eq!(told, groups[1..], "{name}");
    }
}

#[test]
fn a_device_can_be_used_as_it_was_given_and_one_that_was_not_given_cannot_be_used() {
    let scene = Scene::new();
    let pod = scene.host("devices");
    // What is opened is enough: nothing is written into the node's kernel log.
    let script = "[ -e /dev/mine ] || mknod /dev/mine c 1 11; stat -c %t:%T /dev/mine; \
                  (: < /dev/mine) 2>/dev/null && echo read; (: >> /dev/mine) 2>/dev/null && echo write";
    for (permissions, uses) in
        [(None, ""), (Some("r"), "read\n"), (Some("w"), "write\n"), (Some("rwm"), "read\nwrite\n")]
    {
        let mut config = scene.script(permissions.unwrap_or("none"), script);
        config.devices.extend(permissions.map(|permissions| Device {
            container_path: "/dev/mine".to_owned(),
            host_path: "/dev/kmsg".to_owned(),
            permissions: permissions.to_owned(),
        }));
        // The device's own demand for reading; without the permission it does not help.
        let capabilities = security(&mut config).capabilities.get_or_insert_default();
        capabilities.add_capabilities.push("SYSLOG".to_owned());
        let (_, written) = written(&pod, config);
        assert_eq!(written, format!("1:b\n{uses}"), "{permissions:?}");
    }
}

#[test]
fn a_device_that_is_not_on_the_node_is_named() {
    let mut scene = Scene::new();
    let pod = scene.host("no-device");
    let mut config = scene.script("no-device", "true");
    config.devices.push(Device {
        container_path: "/dev/none".to_owned(),
        host_path: "/dev/no-such-device".to_owned(),
        permissions: "rw".to_owned(),
    });
    let message = refused(pod.create(config), Code::FailedPrecondition);
    assert!(message.contains("/dev/no-such-device"), "{message}");
    scene.assert_nothing_left();
}

#[test]
fn a_privileged_container_has_the_nodes_devices() {
    let scene = Scene::new();
    let mut config = scene.host_pod("privileged");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = scene.run_pod(config);
    let mut config =
        scene.script("privileged", "stat -c '%t:%T' /dev/kmsg; head -c 1 /dev/kmsg | wc -c");
    security(&mut config).privileged = true;
    let (_, written) = written(&pod, config);
    let host = fs_err::metadata("/dev/kmsg").expect("every node has one").rdev();
    let (major, minor) = (libc::major(host), libc::minor(host));
    assert_eq!(written, format!("{major:x}:{minor:x}\n1\n"));
}

/// A profile that lets everything through but making directories.
const NO_DIRECTORIES: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }]
}"#;

#[test]
fn a_seccomp_profile_of_the_node_is_applied_and_one_that_is_not_there_or_wrong_is_named() {
    let mut scene = Scene::new();
    let pod = scene.host("seccomp");
    let folder = scene.place().make("seccomp");
    let (good, bad) = (folder.join("no-directories.json"), folder.join("bad.json"));
    fs_err::write(&good, NO_DIRECTORIES).expect("own folder");
    fs_err::write(&bad, r#"{ "defaultAction": "SCMP_ACT_NONSENSE" }"#).expect("own folder");
    let script = "grep Seccomp: /proc/self/status; mkdir /tmp/x 2>&1; ls -d /tmp";
    let with = |name: &str, kind: ProfileType, path: &str| {
        let mut config = scene.script(name, script);
        security(&mut config).seccomp =
            Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() });
        config
    };
    let localhost = |name, path: &std::path::Path| {
        with(name, ProfileType::Localhost, path.to_str().expect("plain names"))
    };
    let (_, filtered) = written(&pod, localhost("filtered", &good));
    assert_eq!(
        filtered,
        "Seccomp:\t2\nmkdir: can't create directory '/tmp/x': Operation not supported\n/tmp\n"
    );
    let (_, free) = written(&pod, with("free", ProfileType::Unconfined, ""));
    assert_eq!(free, "Seccomp:\t0\n/tmp\n");

    for path in [&bad, &folder.join("none.json")] {
        let message = refused(pod.create(localhost("refused", path)), Code::InvalidArgument);
        assert!(message.contains(path.to_str().expect("plain names")), "{message}");
    }
    let message =
        refused(pod.create(with("empty", ProfileType::Localhost, "")), Code::InvalidArgument);
    assert!(message.contains("localhost_ref"), "{message}");
    scene.assert_nothing_left();
}
