//! What a registry's refusal means to whoever pulls.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oci_client::errors::{OciEnvelope, OciErrorCode};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use crate::error::Error;

/// How much of a refusal is read.
const LARGEST_REFUSAL: usize = 64 << 10;
/// How much of it is repeated.
const LONGEST_MESSAGE: usize = 300;

/// An answer that is no success, in the registry's words.
#[derive(Debug, thiserror::Error)]
#[error("{status}{}{message}", if message.is_empty() { "" } else { ": " })]
struct Refused {
    status: StatusCode,
    message: String,
}

/// The host did not answer, or not as HTTP has it.
///
/// The URL is left out: one that a registry redirects to may carry a signature.
pub(super) fn unreachable(image: &str, error: reqwest::Error) -> Error {
    failed(image, error.without_url())
}

pub(super) fn failed(image: &str, source: impl StdError + Send + Sync + 'static) -> Error {
    let source = Arc::new(source);
    Error::RegistryUnavailable { image: image.to_owned(), retry_after: None, source }
}

/// An answer that is no success.
pub(super) async fn refused(image: &str, mut answer: Response) -> Error {
    let status = answer.status();
    let retry_after = retry_after(answer.headers(), SystemTime::now());
    let mut body = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        body.extend_from_slice(&piece);
        if body.len() > LARGEST_REFUSAL {
            break;
        }
    }
    let envelope: Option<OciEnvelope> = serde_json::from_slice(&body).ok();
    let first = envelope.as_ref().and_then(|envelope| envelope.errors.first());
    let message = first.map(|error| shown(&format!("{:?}: {}", error.code, error.message)));
    let meaning = meaning(status, first.map(|error| &error.code));
    let source = Arc::new(Refused { status, message: message.unwrap_or_default() });
    let image = image.to_owned();
    match meaning {
        Meaning::Unauthorized => Error::Unauthorized { image, source },
        Meaning::NotFound => Error::NotFound { image, source },
        Meaning::Unavailable => Error::RegistryUnavailable { image, retry_after, source },
    }
}

#[derive(Debug, PartialEq)]
enum Meaning {
    Unauthorized,
    NotFound,
    Unavailable,
}

fn meaning(status: StatusCode, code: Option<&OciErrorCode>) -> Meaning {
    match (status, code) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Meaning::Unauthorized,
        (StatusCode::NOT_FOUND, _) => Meaning::NotFound,
        // Some say it in the body alone.
        (status, Some(OciErrorCode::Unauthorized | OciErrorCode::Denied))
            if status.is_client_error() =>
        {
            Meaning::Unauthorized
        }
        (
            status,
            Some(
                OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NameInvalid
                | OciErrorCode::BlobUnknown
                | OciErrorCode::ManifestBlobUnknown
                | OciErrorCode::NotFound,
            ),
        ) if status.is_client_error() => Meaning::NotFound,
        (_, _) => Meaning::Unavailable,
    }
}

/// How long a Retry-After asks to wait, which says so in seconds or until when. If both clocks differ a
/// date means less or more than was meant; our own waits bound it from both sides.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Foreign text as it may stand in an error: one short line.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_code_decide_what_a_refusal_means() {
        use Meaning::{NotFound, Unauthorized, Unavailable};
        for (status, code, expected) in [
            (401, None, Unauthorized),
            (403, Some(OciErrorCode::Toomanyrequests), Unauthorized),
            (404, Some(OciErrorCode::ManifestUnknown), NotFound),
            (400, Some(OciErrorCode::NameInvalid), NotFound),
            (400, Some(OciErrorCode::Denied), Unauthorized),
            (500, Some(OciErrorCode::ManifestUnknown), Unavailable),
            (429, Some(OciErrorCode::Toomanyrequests), Unavailable),
            (503, None, Unavailable),
            (302, None, Unavailable),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(meaning(status, code.as_ref()), expected, "{status} {code:?}");
        }
    }

    #[test]
    fn a_registry_says_in_seconds_or_by_a_date_when_to_come_back() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, expected) in [
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{value}");
        }
    }

    #[test]
    fn foreign_text_is_one_short_line() {
        assert_eq!(shown("a\nb\u{1b}[31m"), "ab[31m");
        assert_eq!(shown(&"x".repeat(10_000)).len(), LONGEST_MESSAGE);
    }
}
