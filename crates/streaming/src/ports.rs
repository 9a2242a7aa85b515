//! The ports of a port-forward in its old form, which are named before it begins: in the RPC, or in
//! the request's query. Pure.

use std::num::NonZeroU16;

/// Two channels for each; the base64 protocol writes their numbers as characters of ASCII.
const MOST: usize = 32;

/// One at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports(Vec<NonZeroU16>);

/// Why a client's ports are none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortsError {
    #[error("query parameter \"port\" is required")]
    Missing,
    #[error("query parameter \"port\" cannot be empty")]
    Empty,
    #[error("unable to parse {0:?} as a port")]
    NoPort(String),
    #[error("only {MOST} ports can be forwarded at once over WebSocket")]
    TooMany,
}

impl Ports {
    /// Those that were asked for by the RPC, else those in `query`: `port=80&port=443,8443`.
    pub(crate) fn of(asked: &[NonZeroU16], query: Option<&str>) -> Result<Self, PortsError> {
        let ports = if asked.is_empty() { parse(query.unwrap_or(""))? } else { asked.to_vec() };
        match ports.len() {
            0 => Err(PortsError::Missing),
            1..=MOST => Ok(Self(ports)),
            _ => Err(PortsError::TooMany),
        }
    }

    /// Each with the number of its data channel; the next one is for errors.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u16, u8)> {
        self.0.iter().map(|port| port.get()).zip((0..=u8::MAX).step_by(2))
    }
}

fn parse(query: &str) -> Result<Vec<NonZeroU16>, PortsError> {
    let mut ports = vec![];
    for list in query.split('&').filter_map(|pair| pair.strip_prefix("port=")) {
        if list.is_empty() {
            return Err(PortsError::Empty);
        }
        // The only character of a list that clients escape.
        for port in list.replace("%2C", ",").split(',') {
            ports.push(port.parse().map_err(|_| PortsError::NoPort(port.to_owned()))?);
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(asked: &[u16], query: Option<&str>) -> Result<Vec<(u16, u8)>, PortsError> {
        let asked: Vec<_> = asked.iter().map(|port| NonZeroU16::new(*port).unwrap()).collect();
        Ports::of(&asked, query).map(|ports| ports.numbered().collect())
    }

    #[test]
    fn ports_are_those_of_the_rpc_else_of_the_query() {
        assert_eq!(numbers(&[80, 443], None), Ok(vec![(80, 0), (443, 2)]));
        assert_eq!(numbers(&[80], Some("port=81")), Ok(vec![(80, 0)]));
        assert_eq!(numbers(&[], Some("port=81")), Ok(vec![(81, 0)]));
        let several = Some("a=b&port=1,2&port=3%2C65535&portly=9");
        assert_eq!(numbers(&[], several), Ok(vec![(1, 0), (2, 2), (3, 4), (65535, 6)]));
    }

    #[test]
    fn what_is_no_port_is_refused() {
        let no_port = |text: &str| Err(PortsError::NoPort(text.to_owned()));
        let cases = [
            (None, Err(PortsError::Missing)),
            (Some("container=x"), Err(PortsError::Missing)),
            (Some("port="), Err(PortsError::Empty)),
            (Some("port=80,"), no_port("")),
            (Some("port=0"), no_port("0")),
            (Some("port=65536"), no_port("65536")),
            (Some("port=-1"), no_port("-1")),
            (Some("port=http"), no_port("http")),
        ];
        for (query, expected) in cases {
            assert_eq!(numbers(&[], query), expected, "{query:?}");
        }
    }

    #[test]
    fn more_ports_than_a_client_has_channels_for_are_refused() {
        assert_eq!(numbers(&[80; MOST], None).unwrap().last(), Some(&(80, 62)));
        assert_eq!(numbers(&[80; MOST + 1], None), Err(PortsError::TooMany));
    }
}
