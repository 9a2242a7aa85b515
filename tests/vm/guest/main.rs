//! What runs inside a virtual machine: its tests in their order, over all its boots.
//!
//! The kernel's command line says which machine this is (`cria.machine=node`). Each test is a process
//! of its own with a time limit, so that one that hangs or panics is that one's failure. What has
//! begun is noted on the disk: after a reboot or a power cut the list goes on behind it.

#![expect(clippy::print_stdout, reason = "what a test prints is shown when it fails")]

#[path = "../event.rs"]
mod event;
mod journal;
mod kubelet;
mod life;
mod node;
mod plan;
mod power;
mod programs;
mod units;

use std::env;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use harness::wait::within;

use crate::event::Event;
use crate::plan::{Test, Then};

const PORT: &str = "/dev/virtio-ports/report";

/// What the tests leave for those after them.
const STATE: &str = "/var/lib/cria-vm";

/// What [`measure`] takes on an idle host of the kind that the limits were set on.
const USUAL: Duration = Duration::from_millis(700);

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--list", machine, only] => {
            list(machine, only);
            Ok(())
        }
        ["--work"] => power::work(),
        [name] => one(name),
        [] => all(),
        _ => bail!("usage: vm-guest [TEST | --list MACHINE WORDS | --work]"),
    }
}

/// Says which tests a machine has; on the host.
fn list(machine: &str, only: &str) {
    for test in plan::of(machine, only) {
        println!("{}", test.name);
    }
}

/// Runs one test in this process.
fn one(name: &str) -> Result<()> {
    let test = plan::all().into_iter().find(|test| test.name == name);
    (test.with_context(|| format!("no such test: {name}"))?.run)()
}

fn all() -> Result<()> {
    fs_err::create_dir_all(STATE)?;
    let machine = kernel_word("cria.machine").context("the kernel was not told which machine")?;
    let only = kernel_word("cria.only").unwrap_or_default().replace('+', " ");
    let tests = plan::of(&machine, &only);
    let mut port = Port::open()?;
    port.say(&Event::Up)?;

    for test in &tests {
        if !note_beginning(test.name)? {
            continue;
        }
        let then = run(test, &mut port)?;
        match then {
            Then::GoOn => {}
            Then::Reboot => {
                Command::new("systemctl").arg("reboot").status()?;
                return wait_for_the_end();
            }
            Then::PowerCut => {
                port.say(&Event::CutThePower)?;
                return wait_for_the_end();
            }
        }
    }
    port.say(&Event::Done)?;
    Command::new("systemctl").arg("poweroff").status()?;
    Ok(())
}

/// Runs `test` and reports it. What follows a test that failed is as if it had passed, so that the
/// tests behind it are run.
fn run(test: &Test, port: &mut Port) -> Result<Then> {
    let limit = test.limit.mul_f64(slowness());
    port.say(&Event::Begun { name: test.name.to_owned(), limit_seconds: limit.as_secs() })?;
    let begun = Instant::now();
    let output = Path::new(STATE).join("output");
    let log = File::create(&output)?;
    let mut child = Command::new(env::current_exe()?)
        .arg(test.name)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let status = within(limit, || child.try_wait().ok().flatten());
    let fault = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(status.to_string()),
        None => {
            child.kill()?;
            child.wait()?;
            Some(format!("did not end within {} s", limit.as_secs()))
        }
    };
    let said = String::from_utf8_lossy(&fs_err::read(&output)?).into_owned();
    let fault = fault.map(|fault| reason(&said).unwrap_or(fault));
    let seconds = begun.elapsed().as_secs_f64();
    port.say(&Event::Ended { name: test.name.to_owned(), seconds, fault, said })?;
    Ok(test.then)
}

/// What a test said of its failure: the line of its error or panic.
fn reason(said: &str) -> Option<String> {
    let error = said.lines().find_map(|line| line.strip_prefix("Error: "));
    let mut lines = said.lines().skip_while(|line| !line.contains("panicked at"));
    let panic = lines.nth(1);
    error.or(panic).map(str::to_owned)
}

/// How many times slower than usual this machine is at the moment, but never less than once.
fn slowness() -> f64 {
    (measure().as_secs_f64() / USUAL.as_secs_f64()).max(1.0)
}

/// How long a fixed piece of work takes: some processes, and some arithmetic.
fn measure() -> Duration {
    let begun = Instant::now();
    let script = "n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done; \
        for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true; done";
    // Whether it worked does not matter here; the tests find out what does not.
    let _ = Command::new("sh").args(["-c", script]).status();
    begun.elapsed()
}

/// Notes on the disk that `name` begins; whether it had not before.
fn note_beginning(name: &str) -> Result<bool> {
    let path = Path::new(STATE).join("begun");
    let begun = fs_err::read_to_string(&path).unwrap_or_default();
    if begun.lines().any(|line| line == name) {
        return Ok(false);
    }
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{name}")?;
    file.sync_all()?;
    Ok(true)
}

/// The machine is being turned off.
fn wait_for_the_end() -> Result<()> {
    within(Duration::from_secs(600), || None::<()>);
    bail!("the machine still runs")
}

/// A word of the kernel's command line.
fn kernel_word(key: &str) -> Option<String> {
    let mut line = String::new();
    File::open("/proc/cmdline").ok()?.read_to_string(&mut line).ok()?;
    let value = |word: &str| word.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
    line.split_whitespace().find_map(value)
}

/// The way to the host.
struct Port(File);

impl Port {
    fn open() -> Result<Self> {
        let file = within(Duration::from_secs(60), || File::options().write(true).open(PORT).ok());
        Ok(Self(file.context("the host gave no port to report by")?))
    }

    fn say(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        Ok(self.0.write_all(&line)?)
    }
}
