//! The seccomp profiles of containers: the one behind `RuntimeDefault`, built in, and those of
//! files (`Localhost`, or an administrator's default). Both come out as the OCI's `LinuxSeccomp`;
//! the OCI runtime compiles them.
//!
//! The default lets a program do what ends in itself and in what it has opened, and what its
//! capabilities are for. Everything else is refused: EPERM where the call is known, ENOSYS where it
//! is newer than cria, because C libraries fall back at ENOSYS only.

mod calls;
pub(crate) mod file;

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// The flags of clone(2) that make namespaces. (CLONE_NEWTIME is not among clone's: its bit is part
/// of the exit signal there.)
const NEW_NAMESPACES: [u64; 7] = [
    0x0002_0000, // CLONE_NEWNS
    0x0200_0000, // CLONE_NEWCGROUP
    0x0400_0000, // CLONE_NEWUTS
    0x0800_0000, // CLONE_NEWIPC
    0x1000_0000, // CLONE_NEWUSER
    0x2000_0000, // CLONE_NEWPID
    0x4000_0000, // CLONE_NEWNET
];
const CLONE_NEWTIME: u64 = 0x80;

/// The profile behind `RuntimeDefault` for a container with `capabilities` (as the kernel spells
/// them: `CAP_CHOWN`) on a node of `arch`.
pub(crate) fn runtime_default(capabilities: &BTreeSet<String>, arch: Arch) -> LinuxSeccomp {
    let mut allowed: BTreeSet<&str> = calls::ORDINARY.iter().copied().flatten().copied().collect();
    allowed.extend(of_architecture(arch));
    for (capability, names) in calls::BY_CAPABILITY {
        if capabilities.contains(*capability) {
            allowed.extend(*names);
        }
    }
    let guarded = calls::BY_CAPABILITY.iter().flat_map(|(_, names)| *names);
    let refused: BTreeSet<&str> =
        guarded.chain(calls::NEVER).copied().filter(|name| !allowed.contains(name)).collect();

    let mut syscalls = vec![allow(allowed), refuse(refused, EPERM)];
    syscalls.extend(namespaces(capabilities.contains("CAP_SYS_ADMIN"), arch));
    syscalls.extend(personality());
    syscalls.extend(sockets());

    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(Some(with_sub_architectures(arch)))
        .set_syscalls(Some(syscalls));
    seccomp
}

/// The architecture cria was built for, which is the node's.
pub(crate) const fn native_arch() -> Arch {
    if cfg!(target_arch = "x86_64") {
        Arch::ScmpArchX86_64
    } else if cfg!(target_arch = "aarch64") {
        Arch::ScmpArchAarch64
    } else if cfg!(target_arch = "powerpc64") {
        Arch::ScmpArchPpc64le
    } else if cfg!(target_arch = "s390x") {
        Arch::ScmpArchS390x
    } else if cfg!(target_arch = "riscv64") {
        Arch::ScmpArchRiscv64
    } else {
        Arch::ScmpArchNative
    }
}

fn of_architecture(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::ScmpArchX86_64 | Arch::ScmpArchX86 | Arch::ScmpArchX32 => calls::X86,
        Arch::ScmpArchAarch64 | Arch::ScmpArchArm => calls::ARM,
        Arch::ScmpArchPpc64le => calls::POWER,
        Arch::ScmpArchS390x | Arch::ScmpArchS390 => calls::S390,
        Arch::ScmpArchRiscv64 => calls::RISCV,
        // cria is not built for the others; their programs get the ordinary calls.
        _ => &[],
    }
}

/// A 64-bit kernel runs programs of its smaller siblings too, by other numbers; without their
/// rules they would be killed.
fn with_sub_architectures(arch: Arch) -> Vec<Arch> {
    match arch {
        Arch::ScmpArchX86_64 => vec![arch, Arch::ScmpArchX86, Arch::ScmpArchX32],
        Arch::ScmpArchAarch64 => vec![arch, Arch::ScmpArchArm],
        Arch::ScmpArchS390x => vec![arch, Arch::ScmpArchS390],
        _ => vec![arch],
    }
}

/// Threads and processes are for everybody, new namespaces for who administers the system: in one
/// of its own user namespaces a program has every capability, over much of the kernel.
fn namespaces(administrator: bool, arch: Arch) -> Vec<LinuxSyscall> {
    if administrator {
        return vec![allow(["clone", "clone3", "unshare"])];
    }
    // clone(2): s390 has the flags second.
    let index = usize::from(matches!(arch, Arch::ScmpArchS390x | Arch::ScmpArchS390));
    let unshared = [&NEW_NAMESPACES[..], &[CLONE_NEWTIME]].concat();
    // clone3's flags lie behind a pointer that seccomp cannot follow; at ENOSYS C libraries use
    // clone.
    [
        without_flags("clone", index, &NEW_NAMESPACES),
        without_flags("unshare", 0, &unshared),
        vec![refuse(["clone3"], ENOSYS)],
    ]
    .concat()
}

/// Allows `name` with none of `flags` in its argument, and refuses it with any: one rule for each,
/// since the language has no "not".
fn without_flags(name: &'static str, index: usize, flags: &[u64]) -> Vec<LinuxSyscall> {
    let all = flags.iter().fold(0, |all, flag| all | flag);
    let mut rules = vec![given(allow([name]), masked(index, all, 0))];
    rules
        .extend(flags.iter().map(|flag| given(refuse([name], EPERM), masked(index, *flag, *flag))));
    rules
}

/// The personalities that only change what programs are told (the kind of machine, its release),
/// and the question which it is. The others weaken the address space's layout.
fn personality() -> Vec<LinuxSyscall> {
    const PER_LINUX: u64 = 0;
    const PER_LINUX32: u64 = 8;
    const UNAME26: u64 = 0x2_0000;
    const ASK: u64 = 0xffff_ffff;
    [PER_LINUX, PER_LINUX32, UNAME26, PER_LINUX32 | UNAME26, ASK]
        .map(|value| {
            given(allow(["personality"]), compared(LinuxSeccompOperator::ScmpCmpEq, value))
        })
        .into()
}

/// Every family but two: AF_ALG is the kernel's cryptography, which no container needs; AF_VSOCK
/// reaches the hypervisor past every network policy.
fn sockets() -> Vec<LinuxSyscall> {
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpGt, ScmpCmpLt};
    const AF_ALG: u64 = 38;
    const AF_VSOCK: u64 = 40;
    vec![
        given(allow(["socket"]), compared(ScmpCmpLt, AF_ALG)),
        given(refuse(["socket"], EAFNOSUPPORT), compared(ScmpCmpEq, AF_ALG)),
        given(allow(["socket"]), compared(ScmpCmpEq, AF_ALG + 1)),
        given(refuse(["socket"], EAFNOSUPPORT), compared(ScmpCmpEq, AF_VSOCK)),
        given(allow(["socket"]), compared(ScmpCmpGt, AF_VSOCK)),
    ]
}

fn allow<'a>(names: impl IntoIterator<Item = &'a str>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

fn refuse<'a>(names: impl IntoIterator<Item = &'a str>, errno: u32) -> LinuxSyscall {
    let mut rule = allow(names);
    rule.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(errno));
    rule
}

fn given(mut rule: LinuxSyscall, argument: LinuxSeccompArg) -> LinuxSyscall {
    rule.set_args(Some(vec![argument]));
    rule
}

/// The first argument against `value`.
fn compared(operator: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default().index(0_usize).op(operator).value(value);
    argument.build().expect("every field has a default")
}

/// Argument `index`, under `mask`, equals `value`.
fn masked(index: usize, mask: u64, value: u64) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .value(mask)
        .value_two(value);
    argument.build().expect("every field has a default")
}

#[cfg(test)]
mod tests;
