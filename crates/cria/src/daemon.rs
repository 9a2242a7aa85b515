//! The daemon itself. This branch has only its place.

use crate::config::Config;

/// Serves until it is told to stop.
pub(crate) async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the daemon is not built yet")
}
