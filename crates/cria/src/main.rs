//! The daemon's entrance: arguments, configuration, logging, then one of the subcommands.

mod args;
mod cgroup;
mod check;
mod checkpoint;
mod clock;
mod cni;
mod config;
mod container;
mod cri;
mod daemon;
mod disk;
mod error;
mod id;
mod lock;
mod monitor;
mod mounts;
mod netstats;
mod node;
mod oci;
mod orphans;
mod paths;
mod process;
mod programs;
mod reaper;
mod recovery;
mod registry;
mod retry;
mod sandbox;
mod signal;
mod spawner;
mod startup;
mod stats;
mod sys;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use tracing::level_filters::LevelFilter;
use tracing::{Subscriber, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

use crate::args::{Args, Command};
use crate::config::{Config, LogFormat, LogLevel, Sources};

/// What work on files gets to end when the daemon does.
const LAST_WORK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        None => run_daemon(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Version) => print(&version()).map(|()| ExitCode::SUCCESS),
        Some(Command::Config) => print_config(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Check) => print_check(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cria: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_daemon(args: &Args) -> anyhow::Result<()> {
    let (config, warnings) = Config::load(args)?;
    start_logging(config.log_level, config.log_format);
    for warning in warnings {
        warn!(file = %warning.file.display(), line = warning.line, key = warning.key,
            nearest = warning.nearest, "unknown key in the configuration");
    }
    let threads = threads()?;
    let done = threads.block_on(startup::run(config));
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

fn print_check(args: &Args) -> anyhow::Result<ExitCode> {
    let (config, warnings) = Config::load(args)?;
    for warning in warnings {
        eprintln!("cria: {warning}");
    }
    let findings = check::run(&config);
    print(&check::render(&findings))?;
    Ok(if check::passes(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// cria has the version of the Kubernetes release it is pinned to, and serves the two before it.
fn version() -> String {
    let minor: u32 = env!("CARGO_PKG_VERSION_MINOR").parse().expect("cargo checked the version");
    let major = env!("CARGO_PKG_VERSION_MAJOR");
    let version = env!("CARGO_PKG_VERSION");
    format!("cria {version}, for Kubernetes {major}.{} to {major}.{minor}\n", minor - 2)
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}

fn start_logging(level: LogLevel, format: LogFormat) {
    let registry = Registry::default();
    match format {
        LogFormat::Text => registry.with(text_layer().with_filter(filter(level))).init(),
        LogFormat::Json => registry
            .with(
                layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(io::stderr)
                    .with_filter(filter(level)),
            )
            .init(),
    }
}

fn text_layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr)
}

/// The libraries below us speak only to warn, unless everything is asked for.
fn filter(level: LogLevel) -> Targets {
    let (ours, theirs) = match level {
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::WARN),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    // A prefix: the daemon and its libraries are `cria` and `cria_...`.
    Targets::new().with_target("cria", ours).with_default(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of them: the release it is pinned to, and the two before.
    #[test]
    fn the_version_names_the_kubernetes_releases_it_serves() {
        assert!(version().starts_with(concat!("cria ", env!("CARGO_PKG_VERSION"), ", for ")));
        assert!(version().ends_with("for Kubernetes 1.35 to 1.37\n"), "{}", version());
    }

    #[test]
    fn our_own_messages_are_filtered_apart_from_those_of_libraries() {
        use tracing::Level;
        for (level, target, message, shown) in [
            (LogLevel::Info, "cria::daemon", Level::INFO, true),
            (LogLevel::Info, "cria::daemon", Level::DEBUG, false),
            (LogLevel::Debug, "cria_images::pull", Level::DEBUG, true),
            (LogLevel::Debug, "h2::codec", Level::INFO, false),
            (LogLevel::Info, "h2::codec", Level::WARN, true),
            (LogLevel::Error, "h2::codec", Level::WARN, false),
            (LogLevel::Trace, "h2::codec", Level::TRACE, true),
        ] {
            let found = filter(level).would_enable(target, &message);
            assert_eq!(found, shown, "{level} {target} {message}");
        }
    }
}
