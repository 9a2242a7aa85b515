//! `WWW-Authenticate`: how a registry wants to be told who asks. Pure.

use http_auth::ChallengeRef;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from somebody else.
    Bearer {
        /// Whom to ask for it.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges that can be met, in the registry's order. What cannot be read is left out.
pub(super) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts
        .filter_map(|text| http_auth::parse_challenges(text).ok())
        .flatten()
        .filter_map(|challenge| read(&challenge))
        .collect()
}

fn read(challenge: &ChallengeRef<'_>) -> Option<Challenge> {
    if challenge.scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !challenge.scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameter = |name: &str| {
        let mut parameters = challenge.params.iter();
        let found = parameters.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    let (service, scope) = (parameter("service"), parameter("scope"));
    Some(Challenge::Bearer { realm: parameter("realm")?, service, scope })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        parse(&headers)
    }

    #[test]
    fn challenges_are_read_in_all_their_forms() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        for (values, expected) in [
            (&["Basic realm=\"x\""][..], vec![Challenge::Basic]),
            (
                &["Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:a:pull,push\""],
                vec![bearer("https://a/t", Some("s"), Some("repository:a:pull,push"))],
            ),
            (&["bearer realm=\"https://a/t\""], vec![bearer("https://a/t", None, None)]),
            (
                &["Negotiate", "Bearer realm=\"r\", Basic realm=\"b\""],
                vec![bearer("r", None, None), Challenge::Basic],
            ),
            (&["Bearer service=\"no realm\""], vec![]),
            (&["\u{7f}"; 0], vec![]),
        ] {
            assert_eq!(of(values), expected, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(text in "[ -~]{0,80}", realm in "[ -~]{0,20}") {
            of(&[&text, &format!("Bearer realm=\"{realm}\",{text}")]);
        }
    }
}
