//! What a caller shows a registry: nothing, a password, or a token that was bought with one.
//!
//! Nothing is shown before the registry asks. A token serves its caller's session alone, for as
//! long as it lives, and is bought anew when it is about to end or is refused before that (a large
//! layer may take longer than a token lives).

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::answer::{failed, refused, unreachable};
use super::challenge::Challenge;
use super::connection::Reach;
use crate::auth::Credentials;
use crate::error::Error;

/// How long a token lives that does not say (by the token specification).
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
/// A token that ends this soon is not shown any more: the request takes its time, too.
const MARGIN: Duration = Duration::from_secs(5);
const LARGEST_TOKEN: u64 = 1 << 20;
const CLIENT_ID: &str = "cria";

pub(super) struct Authorization {
    credentials: Credentials,
    /// Asked for where the challenge names none.
    scope: String,
    reach: Reach,
    /// Held while a token is fetched, so that it is fetched once for all layers.
    grant: Mutex<Option<Grant>>,
}

/// What the registry took, or is about to be shown.
struct Grant {
    value: HeaderValue,
    /// How it was had, and when it ends; none if it does not.
    bought: Option<(Challenge, Instant)>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

impl Authorization {
    pub(super) fn new(credentials: Credentials, repository: &str, reach: Reach) -> Self {
        // A token for the registry itself needs no challenge.
        let grant = match &credentials {
            Credentials::Bearer { token } => {
                Some(Grant { value: secret(&format!("Bearer {token}")), bought: None })
            }
            Credentials::Anonymous | Credentials::Basic { .. } | Credentials::Identity { .. } => {
                None
            }
        };
        let scope = format!("repository:{repository}:pull");
        Self { credentials, scope, reach, grant: Mutex::new(grant) }
    }

    /// What to show with a request; none if the registry has not asked yet.
    pub(super) async fn current(&self, image: &str) -> Result<Option<HeaderValue>, Error> {
        let mut grant = self.grant.lock().await;
        let ending = match &*grant {
            Some(Grant { bought: Some((challenge, until)), .. })
                if *until <= Instant::now() + MARGIN =>
            {
                Some(challenge.clone())
            }
            Some(_) | None => None,
        };
        if let Some(challenge) = ending {
            *grant = Some(self.buy(&challenge, image).await?);
        }
        Ok(grant.as_ref().map(|grant| grant.value.clone()))
    }

    /// What to show after `shown` was refused with `challenges`; none if there is nothing better.
    pub(super) async fn renewed(
        &self,
        challenges: &[Challenge],
        shown: Option<&HeaderValue>,
        image: &str,
    ) -> Result<Option<HeaderValue>, Error> {
        let mut grant = self.grant.lock().await;
        match &*grant {
            // Another request has renewed it meanwhile.
            Some(known) if Some(&known.value) != shown => return Ok(Some(known.value.clone())),
            // It cannot be had anew: the same would be refused again.
            Some(Grant { bought: None, .. }) => return Ok(None),
            Some(_) | None => {}
        }
        let bearer = challenges.iter().find(|one| matches!(one, Challenge::Bearer { .. }));
        let has_basic = challenges.contains(&Challenge::Basic);
        let new = match (bearer, &self.credentials) {
            (Some(challenge), _) => self.buy(challenge, image).await?,
            (None, Credentials::Basic { username, password }) if has_basic => {
                Grant { value: basic(username, password), bought: None }
            }
            (None, _) => return Ok(None),
        };
        let value = new.value.clone();
        *grant = Some(new);
        Ok(Some(value))
    }

    /// Asks the realm for a token. Anonymous callers ask, too: public images want one.
    async fn buy(&self, challenge: &Challenge, image: &str) -> Result<Grant, Error> {
        let Challenge::Bearer { realm, service, scope } = challenge else {
            unreachable!("only tokens are bought, and only a Bearer challenge leads to one")
        };
        let realm = Url::parse(realm).map_err(|error| failed(image, error))?;
        let http = self.reach.token_client(&realm, image)?;
        let service = service.as_deref().unwrap_or_default();
        let scope = scope.as_deref().unwrap_or(&self.scope);
        let request = match &self.credentials {
            Credentials::Identity { token } => http.post(realm).form(&[
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("service", service),
                ("scope", scope),
                ("client_id", CLIENT_ID),
            ]),
            Credentials::Basic { username, password } => http
                .get(realm)
                .query(&[("service", service), ("scope", scope), ("account", username)])
                .header(AUTHORIZATION, basic(username, password)),
            Credentials::Anonymous | Credentials::Bearer { .. } => {
                http.get(realm).query(&[("service", service), ("scope", scope)])
            }
        };
        let answer = request.send().await.map_err(|error| unreachable(image, error))?;
        if !answer.status().is_success() {
            return Err(refused(image, answer).await);
        }
        let asked = Instant::now();
        let body = super::read_bounded(answer, LARGEST_TOKEN, "a token", image).await?;
        // The message of serde_json may quote what it read.
        let unusable = || failed(image, std::io::Error::other("the token server's answer"));
        let token: Token = serde_json::from_slice(&body).map_err(|_| unusable())?;
        let text = if token.token.is_empty() { token.access_token } else { token.token };
        if text.is_empty() {
            return Err(unusable());
        }
        let life = token.expires_in.map_or(SHORTEST_LIFE, Duration::from_secs);
        // Absurd lives end when the clock does.
        let until = asked.checked_add(life).unwrap_or(asked + SHORTEST_LIFE);
        let bought = Some((challenge.clone(), until.max(asked + MARGIN * 2)));
        Ok(Grant { value: secret(&format!("Bearer {text}")), bought })
    }
}

fn basic(username: &str, password: &str) -> HeaderValue {
    secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// Marked, so that nothing prints it. What no header can hold is shown as nothing, and refused.
fn secret(text: &str) -> HeaderValue {
    let value = HeaderValue::from_str(text);
    let mut value = value.unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}
