//! Measures a CRI socket, or two side by side: what a pod costs in time and memory.
//!
//! ```text
//! bench                         a cria of its own
//! bench --peer containerd       and containerd beside it, the same runc and CNI plugins for both
//! bench --socket PATH           whatever serves there
//! ```
//!
//! With two subjects every sample of one is followed by a sample of the other: the machine's
//! noise meets both, and their ratio says more than either number. Nothing here is a limit in
//! time; `--gate` turns the marks of `plan.rs` into the exit code.

mod arguments;
mod cgroup;
mod images;
mod measure;
mod plan;
mod process;
mod report;
mod sample;
mod subject;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use harness::{Registry, tools};

use crate::arguments::{Arguments, Peer};
use crate::images::Images;
use crate::measure::Table;
use crate::plan::Plan;
use crate::subject::Subject;

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let plan = Plan::new(&arguments);
    let registry = Registry::start();
    let images = Images::push(&registry, &plan);
    let mut subjects = subjects(&arguments, &registry);
    for subject in &mut subjects {
        plan.progress(&format!("{}: {}", subject.name(), subject.version()));
        subject.cri().pull(&images.busybox);
    }

    let rows = measure::all(&mut subjects, &images, &plan);
    let table = Table { subjects: subjects.iter().map(Subject::version).collect(), rows };
    let text = if arguments.markdown { report::markdown(&table) } else { report::text(&table) };
    io::stdout().lock().write_all(text.as_bytes())?;

    let missed = arguments.gate && table.rows.iter().any(|row| row.met() == Some(false));
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The first is the one that is judged, the second the one it is compared with.
fn subjects(arguments: &Arguments, registry: &Registry) -> Vec<Subject> {
    if let Some(socket) = &arguments.socket {
        let first = Subject::at(socket, arguments.monitor.as_deref());
        let second = arguments.beside.as_ref().map(|socket| Subject::at(socket, None));
        return [first].into_iter().chain(second).collect();
    }
    let chosen = arguments.oci_runtime.clone();
    let runc = || chosen.clone().unwrap_or_else(|| tools::tool("runc"));
    match arguments.peer {
        None => vec![Subject::cria(registry, chosen.as_deref())],
        Some(Peer::Containerd) => {
            vec![Subject::cria(registry, Some(&runc())), Subject::containerd(registry, &runc())]
        }
        Some(Peer::ContainerdAlone) => vec![Subject::containerd(registry, &runc())],
    }
}
