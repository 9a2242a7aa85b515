//! Which sysctls a pod can have: what they are called, and whose they are. Pure.

/// Of which a pod can have its own, and with it its own values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    Net,
    Ipc,
    Uts,
}

/// The file below `/proc/sys`. As sysctl(8) reads names: the first separator is the one that
/// separates, the other one is part of a name (`net.ipv4.conf.eth0/1.forwarding`).
pub fn path(key: &str) -> Option<String> {
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

/// Whose the value at `path` is; none: it is the node's alone, or none that a pod may set. Not the
/// hostname, for which there is a field, nor what checkpoints are restored by
/// (`kernel/shm_next_id`).
pub fn namespace(path: &str) -> Option<Namespace> {
    match path {
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shm_rmid_forced"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni" => Some(Namespace::Ipc),
        "kernel/domainname" => Some(Namespace::Uts),
        _ if path.starts_with("fs/mqueue/") => Some(Namespace::Ipc),
        _ if path.starts_with("net/") => Some(Namespace::Net),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_are_read_as_sysctl_does() {
        for (key, expected) in [
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
            assert_eq!(path(key).as_deref(), expected, "{key}");
        }
    }

    #[test]
    fn a_sysctl_belongs_to_one_namespace_or_to_the_node() {
        for (path, owner) in [
            ("net/core/somaxconn", Some(Namespace::Net)),
            ("kernel/shm_rmid_forced", Some(Namespace::Ipc)),
            ("kernel/shmmax", Some(Namespace::Ipc)),
            ("kernel/msgmnb", Some(Namespace::Ipc)),
            ("kernel/sem", Some(Namespace::Ipc)),
            ("fs/mqueue/msg_max", Some(Namespace::Ipc)),
            ("kernel/domainname", Some(Namespace::Uts)),
            ("kernel/hostname", None),
            ("kernel/shm_next_id", None),
            ("kernel/panic", None),
            ("vm/swappiness", None),
            ("fs/file-max", None),
            ("network", None),
        ] {
            assert_eq!(namespace(path), owner, "{path}");
        }
    }
}
