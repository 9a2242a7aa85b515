//! Which tests there are, as the guest's program says: it is the same that runs in the machines.

use std::env;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Machine and name of each test of `machines`, in their order.
pub(crate) fn of(machines: &[&'static str], only: &str) -> Result<Vec<(&'static str, String)>> {
    let guest = env::current_exe()?.with_file_name("vm-guest");
    let mut tests = vec![];
    for &machine in machines {
        let output = Command::new(&guest).args(["--list", machine, only]).output();
        let output = output.with_context(|| guest.display().to_string())?;
        ensure!(output.status.success(), "{} --list: {}", guest.display(), output.status);
        let names = String::from_utf8(output.stdout)?;
        tests.extend(names.lines().map(|name| (machine, name.to_owned())));
    }
    Ok(tests)
}
