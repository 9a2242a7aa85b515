//! From a request's headers to the protocol that is spoken after it, or to a refusal in the words and
//! codes of the reference server. Pure.

use std::num::NonZeroU16;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Response, StatusCode};
use sha1::{Digest as _, Sha1};

use crate::ports::{Ports, PortsError};
use crate::protocol::{
    self, CHANNELS, COMMAND, Coding, FORWARDED, Forwarded, PORT_FORWARD, Refusal, Version,
};

const SPDY: &str = "SPDY/3.1";
const WEBSOCKET: &str = "websocket";
const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

pub(crate) type Answer = Response<Full<Bytes>>;

/// What a client of exec or attach speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Spdy(Version),
    WebSocket(Version, Coding),
}

impl Spoken {
    pub(crate) fn version(self) -> Version {
        match self {
            Self::Spdy(version) | Self::WebSocket(version, _) => version,
        }
    }
}

/// How a client forwards ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Spdy,
    /// SPDY within WebSocket.
    Tunnel,
    /// WebSocket alone, with the ports named beforehand.
    Channels {
        ports: Ports,
        coding: Coding,
    },
}

/// For exec and attach.
pub(crate) fn command(headers: &HeaderMap) -> Result<(Answer, Spoken), Box<Answer>> {
    if !is_websocket(headers) {
        let (name, version) = spdy(headers, &COMMAND)?;
        return Ok((switching_to_spdy(name), Spoken::Spdy(version)));
    }
    let accept = accept_key(headers)?;
    let chosen = protocol::choose(values(headers, &SEC_WEBSOCKET_PROTOCOL), &CHANNELS);
    let (name, (version, coding)) = match chosen {
        Ok((name, spoken)) => (Some(name), spoken),
        Err(Refusal::Missing) => (None, protocol::UNNAMED),
        Err(refusal @ Refusal::Unknown { .. }) => return Err(Box::new(refuse(&refusal))),
    };
    Ok((switching_to_websocket(accept, name), Spoken::WebSocket(version, coding)))
}

/// With the ports that the RPC named, and the request's query, which may name them too.
pub(crate) fn port_forward(
    headers: &HeaderMap,
    asked: &[NonZeroU16],
    query: Option<&str>,
) -> Result<(Answer, Carrier), Box<Answer>> {
    if !is_websocket(headers) {
        let (name, ()) = spdy(headers, &PORT_FORWARD)?;
        return Ok((switching_to_spdy(name), Carrier::Spdy));
    }
    let accept = accept_key(headers)?;
    let chosen = protocol::choose(values(headers, &SEC_WEBSOCKET_PROTOCOL), &FORWARDED);
    let (name, forwarded) = match chosen {
        Ok((name, forwarded)) => (Some(name), forwarded),
        Err(Refusal::Missing) => (None, Forwarded::Channels(protocol::UNNAMED.1)),
        Err(refusal @ Refusal::Unknown { .. }) => return Err(Box::new(refuse(&refusal))),
    };
    let carrier = match forwarded {
        Forwarded::Tunnel => Carrier::Tunnel,
        Forwarded::Channels(coding) => {
            let ports = Ports::of(asked, query);
            let refuse = |error: PortsError| text(StatusCode::BAD_REQUEST, &error.to_string());
            Carrier::Channels { ports: ports.map_err(|error| Box::new(refuse(error)))?, coding }
        }
    };
    Ok((switching_to_websocket(accept, name), carrier))
}

/// What to speak, if the client asks for SPDY and knows a subprotocol that we know.
fn spdy<T: Copy>(
    headers: &HeaderMap,
    ours: &[(&'static str, T)],
) -> Result<(&'static str, T), Box<Answer>> {
    let chosen = protocol::choose(values(headers, &PROTOCOL), ours);
    let chosen = chosen.map_err(|refusal| Box::new(refuse(&refusal)))?;
    if !has(headers, &CONNECTION, "upgrade") || !has(headers, &UPGRADE, SPDY) {
        let why = format!("unable to upgrade: missing upgrade headers ({SPDY}) in request");
        return Err(Box::new(text(StatusCode::BAD_REQUEST, &why)));
    }
    Ok(chosen)
}

fn is_websocket(headers: &HeaderMap) -> bool {
    has(headers, &CONNECTION, "upgrade") && has(headers, &UPGRADE, WEBSOCKET)
}

/// The proof that we know what a WebSocket is (RFC 6455, section 4.2.2).
fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, Box<Answer>> {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let refuse = |why| Box::new(text(StatusCode::BAD_REQUEST, why));
    if !has(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return Err(refuse("unable to upgrade: only version 13 of WebSocket is spoken"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.ok_or_else(|| refuse("unable to upgrade: Sec-WebSocket-Key is required"))?;
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let accept = STANDARD.encode(digest).try_into();
    Ok(accept.expect("base64 is text"))
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// Whether `value` is in a header's list.
fn has(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    let mut values = values(headers, name).flat_map(|list| list.split(','));
    values.any(|found| found.trim().eq_ignore_ascii_case(value))
}

fn refuse(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::Missing => text(StatusCode::BAD_REQUEST, &refusal.to_string()),
        Refusal::Unknown { ours, .. } => {
            let mut answer = text(StatusCode::FORBIDDEN, &refusal.to_string());
            for name in ours {
                answer.headers_mut().append(ACCEPTED, HeaderValue::from_static(name));
            }
            answer
        }
    }
}

fn switching(to: &'static str) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

fn switching_to_spdy(subprotocol: &'static str) -> Answer {
    let mut answer = switching(SPDY);
    answer.headers_mut().insert(PROTOCOL, HeaderValue::from_static(subprotocol));
    answer
}

fn switching_to_websocket(accept: HeaderValue, subprotocol: Option<&'static str>) -> Answer {
    let mut answer = switching(WEBSOCKET);
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(name) = subprotocol {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    answer
}

pub(crate) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found")
}

pub(crate) fn text(status: StatusCode, why: &str) -> Answer {
    let mut answer = Response::new(Full::from(format!("{why}\n")));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    // One request for each connection: the next session has another token.
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn lists_in_headers_are_searched_whatever_their_case() {
        let headers = headers(&[("connection", "keep-alive, UPGRADE"), ("upgrade", "spdy/3.1")]);
        assert!(has(&headers, &CONNECTION, "upgrade") && has(&headers, &UPGRADE, SPDY));
        assert!(!has(&headers, &CONNECTION, "up") && !has(&headers, &PROTOCOL, "upgrade"));
    }

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_websocket_is_accepted_by_the_proof_of_its_key() {
        let asked = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v9.channel.k8s.io, v5.channel.k8s.io"),
        ];
        let (answer, spoken) = command(&headers(&asked)).unwrap();
        assert_eq!(answer.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer.headers()[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
        assert_eq!(spoken, Spoken::WebSocket(Version::V5, Coding::Raw));

        let (answer, spoken) = command(&headers(&asked[..4])).unwrap();
        assert_eq!(spoken, Spoken::WebSocket(Version::V1, Coding::Raw));
        assert!(!answer.headers().contains_key(SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn refusals_are_those_of_the_reference() {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let websocket = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let with = |base: &[(&'static str, &'static str)], more: (&'static str, &'static str)| {
            headers(&[base, &[more]].concat())
        };
        let cases = [
            (headers(&upgrade), 400),
            (with(&upgrade, ("x-stream-protocol-version", "v5.channel.k8s.io")), 403),
            (with(&[], ("x-stream-protocol-version", "v4.channel.k8s.io")), 400),
            (with(&websocket, ("sec-websocket-protocol", "v3.channel.k8s.io")), 403),
            (headers(&websocket[..3]), 400),
            (headers(&websocket[..2]), 400),
        ];
        for (headers, code) in cases {
            let answer = command(&headers).unwrap_err();
            assert_eq!(answer.status().as_u16(), code, "{headers:?}");
        }
    }

    #[test]
    fn a_websocket_forwards_ports_through_spdy_or_through_channels_of_their_own() {
        let asked = |protocol: Option<&'static str>| {
            let mut headers = headers(&[
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ]);
            if let Some(name) = protocol {
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
            }
            headers
        };
        let channels = |coding| {
            let ports = Ports::of(&[], Some("port=80")).unwrap();
            Ok(Carrier::Channels { ports, coding })
        };
        let cases = [
            (Some("SPDY/3.1+portforward.k8s.io"), None, Ok(Carrier::Tunnel)),
            (Some("v4.channel.k8s.io"), Some("port=80"), channels(Coding::Raw)),
            (Some("v4.base64.channel.k8s.io"), Some("port=80"), channels(Coding::Base64)),
            (None, Some("port=80"), channels(Coding::Raw)),
            (None, None, Err(400)),
            (Some("v4.channel.k8s.io"), Some("port=x"), Err(400)),
            (Some("v5.channel.k8s.io"), Some("port=80"), Err(403)),
        ];
        for (protocol, query, expected) in cases {
            let found = port_forward(&asked(protocol), &[], query);
            let found =
                found.map_err(|answer| answer.status().as_u16()).map(|(answer, carrier)| {
                    let named = answer.headers().get(SEC_WEBSOCKET_PROTOCOL);
                    assert_eq!(named.map(HeaderValue::as_bytes), protocol.map(str::as_bytes));
                    carrier
                });
            assert_eq!(found, expected, "{protocol:?} {query:?}");
        }
    }
}
