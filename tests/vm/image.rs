//! The image that the machines boot from: the packages of this tree, and the tests' own programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use harness::tools::{tool, workspace};
use tempfile::TempDir;

use crate::machine;

/// Where the tests' own things are in the machine.
const HOME: &str = "/opt/cria";

/// The units of `tests/vm`.
const UNITS: [&str; 2] = ["cria-vm-journal.service", "cria-vm-tests.service"];

/// Test programs that run inside, beside the guest's own.
const TESTS: [&str; 2] = ["kubelet", "conformance"];

/// How the folders of images are called.
const PREFIX: &str = "image-";

pub(crate) struct Image {
    folder: TempDir,
}

impl Image {
    /// Builds it beneath `output`, with `package` installed and `newer` at hand.
    pub(crate) fn build(output: &Path, package: &Path, newer: &Path) -> Result<Self> {
        remove_old(output)?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(output)?;
        let mut files = vec![(newer.to_owned(), format!("{HOME}/newer.deb"))];
        for unit in UNITS {
            let source = workspace().join("tests/vm").join(unit);
            files.push((source, format!("/etc/systemd/system/{unit}")));
        }
        files.push((program("vm-guest", folder.path())?, format!("{HOME}/vm-guest")));
        for test in TESTS {
            files.push((program(test, folder.path())?, format!("{HOME}/{test}")));
        }
        for name in ["kubelet", "critest", "ginkgo", "remote"] {
            files.push((tool(name).canonicalize()?, format!("{HOME}/tools/bin/{name}")));
        }
        let mut command = Command::new(workspace().join("tests/vm/image"));
        command.arg(folder.path()).arg(package).arg("--").stdout(Stdio::null());
        command.args(files.iter().map(|(from, to)| format!("{}={to}", from.display())));
        ensure!(command.status()?.success(), "the image cannot be built");
        Ok(Self { folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A machine of its own on this terminal, until it is turned off.
    pub(crate) fn shell(&self) -> Result<ExitCode> {
        let mut command = machine::command(self.folder(), self.folder(), "");
        command.args(["-nographic", "-serial", "mon:stdio", "-no-reboot"]);
        let status = command.status()?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Removes images whose run was killed.
fn remove_old(output: &Path) -> Result<()> {
    for entry in fs_err::read_dir(output)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs_err::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A program that cargo built beside this one, without its debug information: a copy in `folder`.
fn program(name: &str, folder: &Path) -> Result<PathBuf> {
    let source = env::var_os(format!("CRIA_VM_{}", name.replace('-', "_").to_uppercase()));
    let source = match source {
        Some(path) => PathBuf::from(path),
        None => env::current_exe()?.with_file_name(name),
    };
    let copy = folder.join(name);
    let status = Command::new("strip").arg("-o").args([&copy, &source]).status();
    let status = status.context("strip (binutils) cannot be run")?;
    ensure!(status.success(), "{} is missing: run tests/vm/run", source.display());
    Ok(copy)
}
