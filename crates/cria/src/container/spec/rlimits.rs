//! The resource limits of a container's processes: all sixteen, so that none is inherited from the
//! daemon, whose unit raises some. (The CRI has no field for them.)

use std::io;

use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};

use super::node::Privilege;

pub(crate) const UNLIMITED: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rlimit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Rlimit {
    const NONE: Self = Self::both(UNLIMITED);

    const fn both(value: u64) -> Self {
        Self { soft: value, hard: value }
    }

    fn lowered_to(self, hard: u64) -> Self {
        let hard = self.hard.min(hard);
        Self { soft: self.soft.min(hard), hard }
    }
}

/// The limits of containers on this node. A hard limit can only be raised with `CAP_SYS_RESOURCE`:
/// without it, each is lowered to cria's own.
pub(super) fn look_up(nofile: Rlimit, privilege: Privilege) -> io::Result<Vec<PosixRlimit>> {
    let threads = fs_err::read_to_string("/proc/sys/kernel/threads-max")?;
    let threads = threads.trim().parse().map_err(io::Error::other)?;
    let mut limits = Vec::new();
    for (typ, resource, wanted) in wanted(nofile, threads) {
        let limit = match privilege {
            Privilege::MayRaise => wanted,
            Privilege::MayOnlyLower => wanted.lowered_to(getrlimit(resource)?.1),
        };
        limits.push(to_spec(typ, limit));
    }
    Ok(limits)
}

fn to_spec(typ: PosixRlimitType, limit: Rlimit) -> PosixRlimit {
    let spec = PosixRlimitBuilder::default().typ(typ).soft(limit.soft).hard(limit.hard);
    spec.build().expect("every field is set")
}

/// What the kernel gives the first process, but for open files and processes: these are counted
/// over all containers of a user, and what bounds them is the cgroup's `pids.max`.
fn wanted(nofile: Rlimit, threads_max: u64) -> [(PosixRlimitType, Resource, Rlimit); 16] {
    use PosixRlimitType as Type;
    let mib = |count: u64| count << 20;
    [
        (Type::RlimitAs, Resource::RLIMIT_AS, Rlimit::NONE),
        (Type::RlimitCore, Resource::RLIMIT_CORE, Rlimit { soft: 0, hard: UNLIMITED }),
        (Type::RlimitCpu, Resource::RLIMIT_CPU, Rlimit::NONE),
        (Type::RlimitData, Resource::RLIMIT_DATA, Rlimit::NONE),
        (Type::RlimitFsize, Resource::RLIMIT_FSIZE, Rlimit::NONE),
        (Type::RlimitLocks, Resource::RLIMIT_LOCKS, Rlimit::NONE),
        (Type::RlimitMemlock, Resource::RLIMIT_MEMLOCK, Rlimit::both(mib(8))),
        (Type::RlimitMsgqueue, Resource::RLIMIT_MSGQUEUE, Rlimit::both(819_200)),
        (Type::RlimitNice, Resource::RLIMIT_NICE, Rlimit::both(0)),
        (Type::RlimitNofile, Resource::RLIMIT_NOFILE, nofile),
        (Type::RlimitNproc, Resource::RLIMIT_NPROC, Rlimit::NONE),
        (Type::RlimitRss, Resource::RLIMIT_RSS, Rlimit::NONE),
        (Type::RlimitRtprio, Resource::RLIMIT_RTPRIO, Rlimit::both(0)),
        (Type::RlimitRttime, Resource::RLIMIT_RTTIME, Rlimit::NONE),
        (Type::RlimitSigpending, Resource::RLIMIT_SIGPENDING, Rlimit::both(threads_max / 2)),
        (Type::RlimitStack, Resource::RLIMIT_STACK, Rlimit { soft: mib(8), hard: UNLIMITED }),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_limit_the_kernel_has_is_set_once() {
        let limits = wanted(Rlimit::NONE, 1000);
        let names: BTreeSet<_> = limits.iter().map(|(typ, ..)| typ.to_string()).collect();
        let kernel = fs_err::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(names.len(), kernel.lines().count() - 1, "{names:?}");
        for (typ, resource, _) in limits {
            assert_eq!(typ.to_string().to_uppercase(), format!("{resource:?}"));
        }
    }

    #[test]
    fn a_limit_is_lowered_to_a_hard_one_that_cannot_be_raised() {
        let nofile = Rlimit { soft: 1024, hard: 524_288 };
        for (own, soft, hard) in [(UNLIMITED, 1024, 524_288), (2000, 1024, 2000), (9, 9, 9)] {
            assert_eq!(nofile.lowered_to(own), Rlimit { soft, hard }, "{own}");
        }
    }

    #[test]
    fn the_limits_of_this_node_can_be_set_by_a_process_of_it() {
        for limit in look_up(Rlimit::NONE, Privilege::MayOnlyLower).unwrap() {
            assert!(limit.soft() <= limit.hard(), "{limit:?}");
            if limit.typ() == PosixRlimitType::RlimitNofile {
                assert_eq!(limit.hard(), getrlimit(Resource::RLIMIT_NOFILE).unwrap().1);
            }
        }
    }
}
