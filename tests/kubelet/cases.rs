//! What is tried, by subject. A case puts its own pods up and looks at them.

pub(crate) mod image_volumes;
pub(crate) mod life;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod probes;
pub(crate) mod pulls;
pub(crate) mod resources;
pub(crate) mod security;
pub(crate) mod standing;
pub(crate) mod stats;
pub(crate) mod streams;
pub(crate) mod volumes;

use std::env;

use anyhow::Result;

use crate::site::Site;

#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) check: fn(&Site) -> Result<()>,
    /// Not asked of other runtimes, which do it differently.
    pub(crate) cria_only: bool,
}

impl Case {
    pub(crate) fn is_wanted(&self) -> bool {
        is_wanted(self.name)
    }
}

/// Whether the row of this name is among those asked for.
pub(crate) fn is_wanted(name: &str) -> bool {
    let words = env::var("CRIA_KUBELET_ONLY");
    words.map_or(true, |words| words.split(',').any(|word| name.contains(word)))
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
pub(crate) fn at_length() -> Vec<Case> {
    standing::CASES.iter().chain(stats::CASES).copied().collect()
}

/// Those that look at pods of their own, in any order and beside one another.
pub(crate) fn single_pods() -> Vec<Case> {
    [
        network::CASES,
        life::CASES,
        probes::CASES,
        volumes::CASES,
        image_volumes::CASES,
        security::CASES,
        resources::CASES,
        logs::CASES,
        pulls::CASES,
        streams::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
    .collect()
}
