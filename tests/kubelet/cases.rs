//! What is tried, by subject. A case puts its own pods up and looks at them.

pub mod life;
pub mod logs;
pub mod network;
pub mod probes;
pub mod pulls;
pub mod resources;
pub mod security;
pub mod standing;
pub mod stats;
pub mod volumes;

use std::env;

use anyhow::Result;

use crate::site::Site;

#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub check: fn(&Site) -> Result<()>,
    /// Not asked of other runtimes, which do it differently.
    pub cria_only: bool,
}

impl Case {
    pub fn is_wanted(&self) -> bool {
        is_wanted(self.name)
    }
}

/// Whether the row of this name is among those asked for.
pub fn is_wanted(name: &str) -> bool {
    env::var("CRIA_KUBELET_ONLY").map_or(true, |word| name.contains(&word))
}

/// A case that any runtime has to pass.
const fn case(name: &'static str, check: fn(&Site) -> Result<()>) -> Case {
    Case { name, check, cria_only: false }
}

/// A case for cria alone.
const fn ours(name: &'static str, check: fn(&Site) -> Result<()>) -> Case {
    Case { name, check, cria_only: true }
}

/// Those that take their time, after the restarts and with the statistics of the CRI.
pub fn at_length() -> Vec<Case> {
    standing::CASES.iter().chain(stats::CASES).copied().collect()
}

/// Those that look at pods of their own, in any order and beside one another.
pub fn single_pods() -> Vec<Case> {
    [
        network::CASES,
        life::CASES,
        probes::CASES,
        volumes::CASES,
        security::CASES,
        resources::CASES,
        logs::CASES,
        pulls::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
    .collect()
}
