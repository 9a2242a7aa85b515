//! critest, the conformance suite of the CRI: every spec passes but those in
//! `conformance-excluded.txt`, and none of those does.
//!
//! With `CRIA_CONFORMANCE_PEER=containerd` the same is run on containerd, which shows whether a
//! failure is ours or a stand-in image's. With `installed` it is run on the node's own cria, which
//! knows where the stand-ins come from; and `CRIA_CONFORMANCE_ONLY` has parts of the names of those
//! specs that are to be run there.

#![expect(clippy::print_stdout, reason = "the suite's summary is this test's output")]

use std::env;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use harness::critest::{Critest, Outcome, Spec, Specs};
use harness::{Containerd, Node, Registry, critest_images, tools};

/// Specs side by side. More than this machine has processors: many of them wait.
const AT_ONCE: u32 = 4;

/// Taken by each test: the specs of port-forward listen on ports of their own choice, which two runs
/// of the suite cannot share.
static ALONE: Mutex<()> = Mutex::new(());

/// The socket of the node's own cria.
const INSTALLED: &str = "/run/cria/cria.sock";

#[test]
fn all_specs_pass_but_the_excluded_and_none_of_those() {
    let _alone = alone();
    // The registry goes on for as long as the peer pulls from it.
    let (peer, _registry) = Peer::start();
    let critest = Critest::new(&peer.socket());
    let excluded = excluded();
    if let Ok(names) = env::var("CRIA_CONFORMANCE_ONLY") {
        return some_pass(&critest, &names, &excluded);
    }

    let specs = critest.run(&Specs::AllBut(&excluded), AT_ONCE);
    show("all but the excluded", &specs);
    // A spec that skips itself has not passed: it is excluded, with its reason, or it is to run.
    let (passed, all) = (count(&specs, |outcome| *outcome == Outcome::Passed), specs.len());

    let specs = critest.run(&Specs::Only(&excluded), AT_ONCE);
    show("the excluded", &specs);
    let passing = specs.iter().filter(|spec| spec.outcome == Outcome::Passed);
    let mut wrong: Vec<_> = passing.map(|spec| format!("passes: {}", spec.name)).collect();
    let unused = |text: &&String| !specs.iter().any(|spec| spec.name.contains(text.as_str()));
    wrong.extend(excluded.iter().filter(unused).map(|text| format!("fits no spec: {text}")));

    assert_eq!(passed, all, "only {passed} of {all} specs passed");
    assert!(passed > 80, "only {passed} specs were run");
    // What cria cannot do yet, a peer may well; and another kernel has what this one lacks.
    let judged = matches!(peer, Peer::Cria(_));
    assert!(!judged || wrong.is_empty(), "tests/conformance-excluded.txt: {wrong:#?}");
}

/// The kubelet hands WebSocket clients through to the runtime, so both transports are spoken.
#[test]
fn streaming_specs_pass_over_every_transport() {
    if env::var_os("CRIA_CONFORMANCE_ONLY").is_some() {
        return; // Those were chosen, and none else.
    }
    let _alone = alone();
    let (peer, _registry) = Peer::start();
    let streaming = ["Streaming".to_owned()];
    for options in [&[][..], &["-websocket-exec", "-websocket-attach", "-websocket-portforward"]] {
        let critest = Critest::new(&peer.socket()).with(options);
        let specs = critest.run(&Specs::Only(&streaming), 1);
        show(&format!("streaming {}", options.join(" ")), &specs);
        let passed = count(&specs, |outcome| *outcome == Outcome::Passed);
        assert_eq!((passed, specs.len()), (5, 5), "{options:?}");
    }
}

/// The other test may have failed; that is its own matter.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The specs whose names have one of `names`, without the excluded, pass.
fn some_pass(critest: &Critest, names: &str, excluded: &[String]) {
    let names: Vec<_> = names.split(',').map(|name| name.trim().to_owned()).collect();
    let mut specs = critest.run(&Specs::Only(&names), AT_ONCE);
    specs.retain(|spec| !excluded.iter().any(|text| spec.name.contains(text)));
    show("the chosen", &specs);
    let unused = |text: &&String| !specs.iter().any(|spec| spec.name.contains(text.as_str()));
    let unused: Vec<_> = names.iter().filter(unused).collect();
    assert!(unused.is_empty(), "these fit no spec: {unused:?}");
    let passed = count(&specs, |outcome| *outcome == Outcome::Passed);
    assert_eq!(passed, specs.len(), "only {passed} of {} specs passed", specs.len());
}

/// What is tested. Dropping it ends it, but for an installed one.
enum Peer {
    Cria(Box<Node>),
    Containerd(Box<Containerd>),
    Installed,
}

impl Peer {
    /// With the registry of its stand-ins, unless it has one already.
    fn start() -> (Self, Option<Registry>) {
        let peer = env::var("CRIA_CONFORMANCE_PEER").unwrap_or_else(|_| "cria".to_owned());
        let stand_ins = || {
            let registry = Registry::start();
            critest_images::push(&registry);
            registry
        };
        match peer.as_str() {
            "cria" => {
                let registry = stand_ins();
                let setup = Node::setup().registry(&registry);
                let setup = critest_images::HOSTS
                    .iter()
                    .fold(setup, |setup, host| setup.mapped(host, &registry));
                (Self::Cria(Box::new(setup.start())), Some(registry))
            }
            "containerd" => {
                let registry = stand_ins();
                let hosts = &critest_images::HOSTS;
                let node = Containerd::start(&tools::tool("runc"), &registry, hosts);
                (Self::Containerd(Box::new(node)), Some(registry))
            }
            "installed" => (Self::Installed, None),
            other => panic!("CRIA_CONFORMANCE_PEER is cria, containerd or installed, not {other}"),
        }
    }

    fn socket(&self) -> PathBuf {
        match self {
            Self::Cria(node) => node.socket(),
            Self::Containerd(node) => node.socket(),
            Self::Installed => INSTALLED.into(),
        }
    }
}

fn excluded() -> Vec<String> {
    // A part of the program: it may run where the sources are not.
    let lines = include_str!("conformance-excluded.txt").lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn count(specs: &[Spec], of: impl Fn(&Outcome) -> bool) -> usize {
    specs.iter().filter(|spec| of(&spec.outcome)).count()
}

fn show(title: &str, specs: &[Spec]) {
    println!("\n== {title}");
    for spec in specs {
        let seconds = spec.took.as_secs_f64();
        match &spec.outcome {
            Outcome::Passed if seconds > 20.0 => println!("slow    {seconds:5.1} s  {}", spec.name),
            Outcome::Passed => {}
            Outcome::Skipped(why) => {
                println!("skipped          {}: {}", spec.name, first_line(why))
            }
            Outcome::Failed(why) => println!("FAILED  {seconds:5.1} s  {}\n{why}\n", spec.name),
        }
    }
    let failed = count(specs, |outcome| matches!(outcome, Outcome::Failed(_)));
    let passed = count(specs, |outcome| *outcome == Outcome::Passed);
    println!("{passed} passed, {failed} failed, {} skipped", specs.len() - passed - failed);
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}
