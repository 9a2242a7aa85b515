//! Taking things apart until it has succeeded: what is to go, goes, however long somebody else (a
//! network's agent, a hung OCI runtime) cannot do his part.

use std::time::Duration;

use tokio::time::sleep;

use crate::error::{Error, chain};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Attempts it once, and if that fails in the background again and again. `action` and `id` say
/// in the log what it is.
pub(crate) async fn until_done<F>(
    action: &'static str,
    id: String,
    attempt: impl Fn() -> F + Send + 'static,
) where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let Err(error) = attempt().await else { return };
    tracing::warn!(id, action, error = chain(&error), "cannot do it yet");
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            sleep(pause).await;
            match attempt().await {
                Ok(()) => return tracing::info!(id, action, "done at last"),
                Err(error) => tracing::warn!(id, action, error = chain(&error), "cannot do it yet"),
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    });
}
