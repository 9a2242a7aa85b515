//! `make test-vm`: boots virtual machines from what the project packages, and lets them test it.
//!
//! Each machine runs its own list of tests (`guest/`), one after the other; the machines run side
//! by side. Out of them come a report, the journal and the console; nothing goes in but the image,
//! a registry on the host's loopback, and the power switch.

#![expect(clippy::print_stdout, reason = "the table of what was tried is the output")]

mod event;
mod image;
mod machine;
mod plan;
mod progress;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use harness::{Registry, critest_images, scene};

use crate::image::Image;
use crate::machine::Machine;
use crate::progress::Progress;

/// Tests cria in virtual machines with systemd and cgroup v2.
#[derive(Parser)]
struct Arguments {
    /// Older package of this tree, whose daemon is installed first.
    #[arg(long)]
    package: PathBuf,
    /// Newer package, to upgrade to.
    #[arg(long)]
    newer: PathBuf,
    /// Where logs go.
    #[arg(long, default_value = "target/vm")]
    output: PathBuf,
    /// When to stop: what has not run by then is named. Without it, there is no limit.
    #[arg(long, allow_negative_numbers = true)]
    seconds: Option<i64>,
    /// What has not run in time has failed.
    #[arg(long)]
    all: bool,
    /// Only these machines: node, kubelet, conformance.
    #[arg(long, value_delimiter = ',', default_values_t = ["node".to_owned(), "kubelet".to_owned()])]
    machines: Vec<String>,
    /// Only the tests whose names have one of these words.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// A root shell in a machine with cria instead of tests, on this terminal.
    #[arg(long)]
    shell: bool,
}

/// What a list of tests is called, as the machine is told by its kernel's command line.
const MACHINES: [&str; 3] = ["node", "kubelet", "conformance"];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let limit =
        arguments.seconds.map(|seconds| Duration::from_secs(seconds.try_into().unwrap_or(0)));
    let deadline = limit.map(|limit| Instant::now() + limit);
    let names = MACHINES.into_iter().filter(|name| arguments.machines.iter().any(|m| m == name));
    let names: Vec<_> = names.collect();
    let only = arguments.only.join(",");
    let progress = Progress::new(plan::of(&names, &only)?);
    fs_err::create_dir_all(&arguments.output)?;
    let times = arguments.output.join("times");
    if limit.is_some_and(|limit| limit.is_zero()) {
        println!("test-vm: no time is left");
        fs_err::write(times, progress.table())?;
        return Ok(if arguments.all { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let output = arguments.output.canonicalize()?;
    println!("test-vm: building the image (and its base, where there is none yet)");
    let image = Image::build(&output, &arguments.package, &arguments.newer)?;
    if arguments.shell {
        return image.shell();
    }

    let registry = Registry::start();
    scene::push_busybox(&registry, "busybox:1");
    critest_images::push(&registry);
    let port = registry.address().rsplit_once(':').context("an address has a port")?.1;
    let mut words = format!("cria.registry=10.0.2.2:{port}");
    if !only.is_empty() {
        // The kernel's command line is split at spaces.
        words += &format!(" cria.only={}", only.replace(' ', "+"));
    }
    let made: Result<Vec<_>> = names
        .into_iter()
        .map(|name| Machine::new(name, image.folder(), &output.join(name), &words))
        .collect();
    let (machines, progress) = (made?, &progress);
    thread::scope(|scope| {
        for machine in machines {
            scope.spawn(move || watch::to_the_end(machine, deadline, progress));
        }
    });
    println!("\nlogs: {}", output.display());
    if arguments.all {
        progress.miss();
    }
    let table = progress.table();
    println!("\n{table}");
    fs_err::write(times, table)?;
    Ok(if progress.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
