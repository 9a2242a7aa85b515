//! Credential helpers: programs that know passwords (`docker-credential-NAME get`).

use std::io;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::Credentials;
use crate::error::Error;

/// Helpers may ask a cloud's metadata service.
const DEADLINE: Duration = Duration::from_secs(30);
const LARGEST_ANSWER: u64 = 64 << 10;
/// What helpers say when they have nothing for a registry (docker-credential-helpers).
const UNKNOWN: &str = "credentials not found in native keychain";
/// The user name that stands for an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper `name` for what it has for `host`. What it prints is never repeated: even a
/// failure may hold a secret.
pub(super) async fn ask(name: &str, host: &str) -> Result<Credentials, Error> {
    let failed = |source: io::Error| Error::CredentialHelper {
        helper: name.to_owned(),
        source: Arc::new(source),
    };
    let output = tokio::time::timeout(DEADLINE, run(name, host))
        .await
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        return match said.trim() == UNKNOWN {
            true => Ok(Credentials::Anonymous),
            false => Err(failed(io::Error::other(output.status.to_string()))),
        };
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed(io::Error::other("its answer is not the protocol's")))?;
    let (username, secret) = (answer.username, answer.secret);
    Ok(match username.as_str() {
        TOKEN_USER => Credentials::Identity { token: secret },
        _ => Credentials::Basic { username, password: secret },
    })
}

async fn run(name: &str, host: &str) -> io::Result<Output> {
    let mut helper = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (input, output) = (helper.stdin.take(), helper.stdout.take());
    if let Some(mut input) = input {
        // One that knows without being asked may be gone already.
        drop(input.write_all(host.as_bytes()).await);
    }
    let mut stdout = Vec::new();
    if let Some(output) = output {
        output.take(LARGEST_ANSWER).read_to_end(&mut stdout).await?;
    }
    Ok(Output { status: helper.wait().await?, stdout, stderr: Vec::new() })
}
