//! Which tests a machine runs, in order of their weight, and how long each may take.

use std::time::Duration;

use anyhow::Result;

use crate::{journal, kubelet, life, power, programs, units};

pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// Of an idle host; multiplied by how slow it is.
    pub(crate) limit: Duration,
    pub(crate) run: fn() -> Result<()>,
    pub(crate) then: Then,
}

/// What happens to the machine after a test.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Then {
    GoOn,
    Reboot,
    PowerCut,
}

const fn test(name: &'static str, seconds: u64, run: fn() -> Result<()>) -> Test {
    Test { name, limit: Duration::from_secs(seconds), run, then: Then::GoOn }
}

const fn and(test: Test, then: Then) -> Test {
    Test { then, ..test }
}

/// The unit's life, and the conformance specs that depend on the cgroup version.
fn node() -> Vec<Test> {
    vec![
        test("cria is up, and cria check finds nothing wrong", 180, life::is_up),
        test("cria check fails where system calls are missing", 120, life::check_fails),
        test("pods run on a network and from a registry that a reload brings", 180, life::pods_run),
        test("reload disturbs no container", 120, life::reload),
        test("restart disturbs no container", 120, life::restart),
        test("stop and start disturb no container", 120, life::stop_and_start),
        test("kill -9 of the daemon disturbs no container", 120, life::kill9),
        test("a daemon that hangs is replaced, and disturbs no container", 120, life::watchdog),
        test("systemctl kill of the whole unit ends no container", 120, life::kill_all),
        test("kill -9 of the whole unit ends no container", 180, life::kill9_all),
        test("a crash loop is survived, and leaves no failed unit", 120, life::crash_loop),
        test("an upgrade of the package disturbs no container", 180, life::upgrade),
        test("scopes are containers' own, and go with them", 90, units::scopes_go),
        test("limits are in the cgroup's files", 90, units::limits),
        test("out of memory kills the whole container", 120, units::out_of_memory),
        test("the cgroupfs driver leads a pod through its life", 180, units::cgroupfs),
        test("nothing is left of pods that are removed", 120, units::nothing_left),
        test("conformance where cgroup version and driver matter", 900, programs::conformance_some),
        test("removing the package lets containers run on", 120, life::remove),
        test("purging the package leaves nothing", 120, life::purge),
        test("the journal and the kernel's log are clean", 60, journal::is_clean),
    ]
}

fn kubelet_machine() -> Vec<Test> {
    vec![
        test("the kubelet runs a dozen pods with the systemd driver", 900, kubelet::pods_run),
        test("the kubelet's limits are in the cgroup files", 240, kubelet::limits),
        and(
            test("a container ends with 3, and the node is rebooted", 120, power::before_reboot),
            Then::Reboot,
        ),
        test("the kubelet starts the pods again after the reboot", 400, power::after_reboot),
        and(
            test("pods come and go, and the power is cut", 180, power::before_power_cut),
            Then::PowerCut,
        ),
        test("the kubelet starts the pods again after the power cut", 400, power::after_power_cut),
        test("the journal and the kernel's log are clean (kubelet)", 60, journal::is_clean),
        test("the rows of make kubelet", 1800, programs::kubelet_rows),
    ]
}

fn conformance() -> Vec<Test> {
    vec![
        test("cria is up", 180, life::is_up),
        test("conformance, the whole of it", 7200, programs::conformance_all),
    ]
}

/// The tests of `machine`; only those whose names have one of the words in `only`, if there are any.
pub(crate) fn of(machine: &str, only: &str) -> Vec<Test> {
    let tests = match machine {
        "node" => node(),
        "kubelet" => kubelet_machine(),
        "conformance" => conformance(),
        _ => vec![],
    };
    let words: Vec<_> = only.split(',').filter(|word| !word.is_empty()).collect();
    let wanted =
        |test: &Test| words.is_empty() || words.iter().any(|word| test.name.contains(word));
    tests.into_iter().filter(wanted).collect()
}

pub(crate) fn all() -> Vec<Test> {
    [node(), kubelet_machine(), conformance()].into_iter().flatten().collect()
}
