//! How a session's outcome is told on its error stream: from v4 on as a `Status` of the Kubernetes
//! API, before as plain text, and only if something went wrong.

use serde::Serialize;

use crate::process::End;
use crate::protocol::Version;

/// What the session was for; its name is in the messages of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Exec,
    Attach,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Status<'a> {
    metadata: Empty,
    status: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Empty {}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Cause {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    message: String,
}

/// The bytes for the error stream; none: there is nothing to say.
pub(crate) fn encode(version: Version, purpose: Purpose, end: &End) -> Vec<u8> {
    let message = message(purpose, end);
    if version < Version::V4 {
        return message.into_bytes();
    }
    let (status, reason) = match end {
        End::Exited(0) => ("Success", ""),
        // How an attached container ends is no failure of the attaching.
        End::Exited(_) if purpose == Purpose::Attach => ("Success", ""),
        End::Exited(_) => ("Failure", "NonZeroExitCode"),
        End::Failed(_) => ("Failure", "InternalError"),
    };
    let cause = |message: String, reason| Some(Details { causes: vec![Cause { reason, message }] });
    let details = match end {
        End::Exited(code) if status == "Failure" => cause(code.to_string(), "ExitCode"),
        End::Exited(_) => None,
        // Clients show the cause where there is no other reason.
        End::Failed(why) => cause(why.clone(), ""),
    };
    let code = matches!(end, End::Failed(_)).then_some(500);
    let status = Status { metadata: Empty {}, status, message: &message, reason, details, code };
    serde_json::to_vec(&status).expect("it is strings and numbers only")
}

fn message(purpose: Purpose, end: &End) -> String {
    match (purpose, end) {
        (_, End::Exited(0)) | (Purpose::Attach, End::Exited(_)) => String::new(),
        (Purpose::Exec, End::Exited(code)) => {
            format!("command terminated with non-zero exit code: exit code {code}")
        }
        (Purpose::Exec, End::Failed(why)) => {
            format!("Internal error occurred: error executing command in container: {why}")
        }
        (Purpose::Attach, End::Failed(why)) => {
            format!("Internal error occurred: error attaching to container: {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_told_as_each_version_has_it() {
        let failed = || End::Failed("no such file".to_owned());
        let internal = "Internal error occurred: error";
        let cases = [
            (Version::V4, Purpose::Exec, End::Exited(0), r#"{"metadata":{},"status":"Success"}"#.to_owned()),
            (Version::V4, Purpose::Attach, End::Exited(9), r#"{"metadata":{},"status":"Success"}"#.to_owned()),
            (
                Version::V4,
                Purpose::Exec,
                End::Exited(3),
                r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#.to_owned(),
            ),
            (
                Version::V4,
                Purpose::Exec,
                failed(),
                format!(r#"{{"metadata":{{}},"status":"Failure","message":"{internal} executing command in container: no such file","reason":"InternalError","details":{{"causes":[{{"message":"no such file"}}]}},"code":500}}"#),
            ),
            (Version::V3, Purpose::Exec, End::Exited(0), String::new()),
            (Version::V1, Purpose::Attach, End::Exited(1), String::new()),
            (
                Version::V2,
                Purpose::Exec,
                End::Exited(3),
                "command terminated with non-zero exit code: exit code 3".to_owned(),
            ),
            (
                Version::V1,
                Purpose::Attach,
                failed(),
                format!("{internal} attaching to container: no such file"),
            ),
        ];
        for (version, purpose, end, expected) in cases {
            let told = String::from_utf8(encode(version, purpose, &end)).unwrap();
            assert_eq!(told, expected, "{version:?} {purpose:?} {end:?}");
        }
    }
}
