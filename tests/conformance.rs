//! critest, the conformance suite of the CRI: every spec passes but those in
//! `conformance-excluded.txt`, and none of those does.
//!
//! With `CRIA_CONFORMANCE_PEER=containerd` the same is run on containerd, which shows whether a
//! failure is ours or a stand-in image's.

#![expect(clippy::print_stdout, reason = "the suite's summary is this test's output")]

use std::env;
use std::path::PathBuf;

use harness::critest::{Critest, Outcome, Spec, Specs};
use harness::{Containerd, Node, Registry, critest_images, tools};

/// Specs side by side. More than this machine has processors: many of them wait.
const AT_ONCE: u32 = 4;

#[test]
fn all_specs_pass_but_the_excluded_and_none_of_those() {
    let registry = Registry::start();
    critest_images::push(&registry);
    let peer = Peer::start(&registry);
    let critest = Critest::new(&peer.socket());
    let excluded = excluded();

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
    // What cria cannot do yet, a peer may well.
    let judged = matches!(peer, Peer::Cria(_));
    assert!(!judged || wrong.is_empty(), "tests/conformance-excluded.txt: {wrong:#?}");
}

/// What is tested. Dropping it ends it.
enum Peer {
    Cria(Box<Node>),
    Containerd(Box<Containerd>),
}

impl Peer {
    fn start(registry: &Registry) -> Self {
        let peer = env::var("CRIA_CONFORMANCE_PEER").unwrap_or_else(|_| "cria".to_owned());
        match peer.as_str() {
            "cria" => {
                let setup = Node::setup().registry(registry);
                let setup = critest_images::HOSTS
                    .iter()
                    .fold(setup, |setup, host| setup.mapped(host, registry));
                Self::Cria(Box::new(setup.start()))
            }
            "containerd" => {
                let hosts = &critest_images::HOSTS;
                let node = Containerd::start(&tools::tool("runc"), registry, hosts);
                Self::Containerd(Box::new(node))
            }
            other => panic!("CRIA_CONFORMANCE_PEER is cria or containerd, not {other}"),
        }
    }

    fn socket(&self) -> PathBuf {
        match self {
            Self::Cria(node) => node.socket(),
            Self::Containerd(node) => node.socket(),
        }
    }
}

fn excluded() -> Vec<String> {
    let file = tools::workspace().join("tests/conformance-excluded.txt");
    let text = fs_err::read_to_string(file).expect("it lies beside this test");
    let lines = text.lines().map(str::trim);
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
