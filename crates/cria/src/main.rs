//! The daemon's entrance: arguments, configuration, logging, then one of the subcommands.

mod args;
mod beneath;
mod cgroup;
mod check;
mod checkpoint;
mod clock;
mod cni;
mod config;
mod confinement;
mod container;
mod cri;
mod daemon;
mod disk;
mod error;
mod farewell;
mod id;
mod live;
mod lock;
mod logging;
mod metrics;
mod monitor;
mod mounts;
mod netstats;
mod node;
mod oci;
mod orphans;
#[cfg(test)]
mod pages;
mod paths;
mod process;
mod programs;
mod reaper;
mod recovery;
mod registry;
mod release;
mod reload;
mod retry;
mod sandbox;
mod signal;
mod spawner;
mod startup;
mod stats;
mod status;
mod streaming;
mod sys;
mod systemd;
mod tree;
mod watch;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;

use crate::args::{Args, Command};
use crate::config::{Config, Sources, Warning};
use crate::reload::Reloader;

/// What work on files gets to end when the daemon does.
const LAST_WORK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        None => run_daemon(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Version) => print(&release::describe()).map(|()| ExitCode::SUCCESS),
        Some(Command::Config) => print_config(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Check { json }) => print_check(&args, json),
        Some(Command::Status { json }) => print_status(&args, json).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cria: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_daemon(args: &Args) -> anyhow::Result<()> {
    let (config, warnings) = Config::load(args)?;
    let log_level = logging::start(config.log_level, config.log_format);
    warnings.iter().for_each(Warning::log);
    let threads = threads()?;
    let done = threads.block_on(startup::run(config, Reloader::new(args.clone(), log_level)));
    // An unpacking layer is not waited for: it is made again.
    threads.shutdown_timeout(LAST_WORK);
    done
}

/// Few threads, whatever the node's size: requests wait for other processes most of the time, and
/// each thread costs a stack and an allocator's arena of resident memory. The blocking threads
/// (file trees, hashing, unpacking) come as needed and go when idle; their number is high enough
/// for several pulls at once not to keep a pod's own files waiting.
fn threads() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(128)
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()
        .context("cannot start the threads")
}

fn print_config(args: &Args) -> anyhow::Result<()> {
    let sources = Sources::read(args)?;
    for warning in &sources.warnings {
        eprintln!("cria: {warning}");
    }
    print(&sources.render())
}

fn print_status(args: &Args, json: bool) -> anyhow::Result<()> {
    let (config, warnings) = Config::load(args)?;
    for warning in warnings {
        eprintln!("cria: {warning}");
    }
    let report = status::ask(&config)?;
    print(&if json { serde_json::to_string(&report)? + "\n" } else { status::render(&report) })
}

/// 0: nothing is missing; 1: pods could not run; 2: something is missing that some pods want.
fn print_check(args: &Args, json: bool) -> anyhow::Result<ExitCode> {
    let (config, warnings) = Config::load(args)?;
    for warning in warnings {
        eprintln!("cria: {warning}");
    }
    let findings = check::run(&config);
    print(&if json { check::render_json(&findings) } else { check::render(&findings) })?;
    Ok(match check::worst(&findings) {
        check::Verdict::Good => ExitCode::SUCCESS,
        check::Verdict::Failing => ExitCode::FAILURE,
        check::Verdict::Lacking => ExitCode::from(2),
    })
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}
