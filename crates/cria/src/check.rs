//! `cria check`: what this node has and lacks, for a person. `node` looks and tries, `findings`
//! judges (pure), and this prints.

mod findings;
mod mounts;
mod node;
mod oci;
mod overlay;

use std::fmt::Write as _;

use serde::Serialize;

use crate::config::Config;
use crate::release::VERSION;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) subject: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) found: String,
    /// What it means for pods.
    pub(crate) follows: String,
    /// How to mend it; nothing where nothing is wrong.
    pub(crate) remedy: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Good,
    /// Pods run, but something is missing or slower.
    Lacking,
    /// Pods could not run.
    Failing,
}

/// Looks at this node as a daemon with `config` would find it. Makes and removes a few files, a
/// container that never runs, and a mount that nobody sees.
pub(crate) fn run(config: &Config) -> Vec<Finding> {
    findings::judge(&node::Node::gather(config))
}

/// The verdict on the node.
pub(crate) fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Good)
}

/// For programs: the same, as one object.
pub(crate) fn render_json(findings: &[Finding]) -> String {
    let report = serde_json::json!({ "version": VERSION, "findings": findings });
    serde_json::to_string_pretty(&report).expect("findings are plain texts") + "\n"
}

/// One line for each finding.
pub(crate) fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { subject, verdict, found, follows, remedy } in findings {
        let mark = match verdict {
            Verdict::Good => "ok  ",
            Verdict::Lacking => "warn",
            Verdict::Failing => "FAIL",
        };
        let remedy = remedy.map_or(String::new(), |remedy| format!(" To do: {remedy}."));
        writeln!(text, "{mark}  {subject}: {found}. {follows}.{remedy}")
            .expect("a string takes whatever is written");
    }
    text
}
