//! Runs critest against a socket and reads its report.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::tools::{tool, tools_path};
use crate::wait::within;

/// All specs together take a few minutes.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const PROGRESS: Duration = Duration::from_secs(30);

/// critest, with a folder for what it writes.
pub struct Critest {
    socket: PathBuf,
    folder: TempDir,
    options: Vec<&'static str>,
}

/// Which specs are run, by parts of their whole names.
pub enum Specs<'a> {
    AllBut(&'a [String]),
    Only(&'a [String]),
}

/// How a spec ended.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub outcome: Outcome,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Passed,
    /// With what went wrong.
    Failed(String),
    /// It was to be run, and decided itself that it does not fit; with its reason.
    Skipped(String),
}

impl Critest {
    pub fn new(socket: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("cria-critest-").tempdir();
        let folder = folder.expect("the temporary folder is writable");
        Self { socket: socket.to_owned(), folder, options: vec![] }
    }

    /// With flags of critest's own.
    #[must_use]
    pub fn with(mut self, options: &[&'static str]) -> Self {
        self.options.extend(options);
        self
    }

    /// Runs `specs`, `at_once` of them side by side (those that cannot be are run alone), and
    /// prints a line now and then.
    pub fn run(&self, specs: &Specs<'_>, at_once: u32) -> Vec<Spec> {
        let segments = shared_memory();
        let mut critest = Daemon::new("critest", self.folder.path().join("log"));
        critest.start(&mut self.command(specs, at_once));
        let begun = Instant::now();
        while begun.elapsed() < LIMIT
            && within(PROGRESS, || (!critest.runs()).then_some(())).is_none()
        {
            let ended = critest.log().lines().filter(|line| line.starts_with('•')).count();
            eprintln!("critest: {ended} specs after {} s", begun.elapsed().as_secs());
        }
        // It has ended, or is late and killed with what the report then lacks.
        drop_new_segments(&segments);
        let report = self.report().unwrap_or_else(|| {
            panic!("critest left no report\n{}", critest.log());
        });
        let text = fs_err::read_to_string(&report).expect("it was just found");
        fs_err::remove_file(&report).expect("own folder");
        parse(&text)
    }

    /// All that critest has said.
    pub fn log(&self) -> String {
        let bytes = fs_err::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One process leaves it where it runs, many leave it in a folder they make there.
    fn report(&self) -> Option<PathBuf> {
        let folder = self.folder.path();
        let entries = folder.read_dir().ok()?.flatten().map(|entry| entry.path());
        let mut places = entries.chain([folder.to_owned()]);
        places.find_map(|place| Some(place.join("report.json")).filter(|file| file.exists()))
    }

    fn command(&self, specs: &Specs<'_>, at_once: u32) -> Command {
        let endpoint = format!("unix://{}", self.socket.display());
        let mut command = Command::new(tool("critest"));
        command
            .arg(format!("--runtime-endpoint={endpoint}"))
            .arg(format!("--image-endpoint={endpoint}"))
            .args(["--config=/dev/null", "--ginkgo.no-color", "--ginkgo.json-report=report.json"])
            .args(&self.options)
            .current_dir(self.folder.path())
            .env("TMPDIR", self.folder.path())
            .env("PATH", path_with_tools());
        // With one, the flag is taken for that of Go's own tests, and refused.
        if at_once > 1 {
            command.arg(format!("--parallel={at_once}"));
        }
        let (flag, names) = match specs {
            Specs::AllBut(names) => ("skip", names),
            Specs::Only(names) => ("focus", names),
        };
        command.args(names.iter().map(|name| format!("--ginkgo.{flag}={}", literally(name))));
        command
    }
}

/// The regular expression that fits `text`.
fn literally(text: &str) -> String {
    let escaped = |c: char| {
        let special = c.is_ascii_punctuation() && !matches!(c, ',' | '-' | '_' | '/');
        special.then_some('\\').into_iter().chain([c])
    };
    text.chars().flat_map(escaped).collect()
}

/// Part of the report that ginkgo writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    #[serde(default)]
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

fn parse(report: &str) -> Vec<Spec> {
    let suites: Vec<Suite> = serde_json::from_str(report).expect("ginkgo writes its own format");
    let reports = suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default());
    reports.filter_map(spec).collect()
}

/// A spec that was run; not one that was filtered out, nor a setup that went well.
fn spec(report: SpecReport) -> Option<Spec> {
    let message = report.failure.map(|failure| failure.message).unwrap_or_default();
    let outcome = match report.state.as_str() {
        "passed" if report.leaf_node_type == "It" => Outcome::Passed,
        "passed" | "pending" => return None,
        "skipped" if message.is_empty() => return None,
        "skipped" => Outcome::Skipped(message),
        state => Outcome::Failed(format!("{state}: {message}")),
    };
    let mut words = report.container_hierarchy_texts.unwrap_or_default();
    words.push(report.leaf_node_text);
    Some(Spec { name: words.join(" "), outcome, took: Duration::from_nanos(report.run_time) })
}

/// The host's shared memory segments: critest makes some, and leaves them.
fn shared_memory() -> BTreeSet<String> {
    let table = fs_err::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let ids = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    ids.map(str::to_owned).collect()
}

fn drop_new_segments(before: &BTreeSet<String>) {
    for id in shared_memory().difference(before) {
        // Another's, gone by now: nothing to remove.
        let _ = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
    }
}

fn path_with_tools() -> std::ffi::OsString {
    let rest = env::var_os("PATH").unwrap_or_default();
    let all = [tools_path()].into_iter().chain(env::split_paths(&rest));
    env::join_paths(all).expect("the paths came from such a list")
}

#[cfg(test)]
mod tests {
    use super::{Outcome, literally, parse};

    #[test]
    fn a_name_is_matched_as_it_is_written() {
        assert_eq!(literally("[k8s.io] A|B (c), d-e"), r"\[k8s\.io\] A\|B \(c\), d-e");
    }

    #[test]
    fn only_specs_that_were_run_are_counted() {
        let report = r#"[{ "SpecReports": [
            { "ContainerHierarchyTexts": null, "LeafNodeText": "", "LeafNodeType": "BeforeSuite", "State": "passed" },
            { "ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeText": "works", "LeafNodeType": "It", "State": "passed", "RunTime": 5 },
            { "ContainerHierarchyTexts": ["A", "B"], "LeafNodeText": "fails", "LeafNodeType": "It", "State": "timedout", "Failure": { "Message": "late" } },
            { "ContainerHierarchyTexts": [], "LeafNodeText": "filtered", "LeafNodeType": "It", "State": "skipped", "Failure": {} },
            { "ContainerHierarchyTexts": [], "LeafNodeText": "unfit", "LeafNodeType": "It", "State": "skipped", "Failure": { "Message": "no SELinux" } }
        ] }]"#;
        let specs = parse(report);
        let seen: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), &spec.outcome)).collect();
        assert_eq!(
            seen,
            [
                ("[k8s.io] A works", &Outcome::Passed),
                ("A B fails", &Outcome::Failed("timedout: late".to_owned())),
                ("unfit", &Outcome::Skipped("no SELinux".to_owned())),
            ]
        );
    }
}
