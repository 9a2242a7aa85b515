//! Which subprotocol a client and we have in common. Pure.

use std::fmt;

/// Of `channel.k8s.io`, as SPDY and WebSocket number them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V1,
    /// Tells failures as plain text; v1 has thrown its error stream away.
    V2,
    /// And the terminal's size.
    V3,
    /// And the exit code.
    V4,
    /// And that a client has ended its stdin. Over WebSocket only.
    V5,
}

impl Version {
    pub(crate) fn resizes(self) -> bool {
        self >= Self::V3
    }
}

/// Over SPDY, in the order in which refusals list them.
pub(crate) const COMMAND: [(&str, Version); 4] = [
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];

pub(crate) const PORT_FORWARD: [(&str, ()); 1] = [("portforward.k8s.io", ())];

/// How bytes are written in the messages of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Raw,
    /// For clients in browsers that had no binary messages.
    Base64,
}

/// Over WebSocket.
pub(crate) const CHANNELS: [(&str, (Version, Coding)); 5] = [
    ("v5.channel.k8s.io", (Version::V5, Coding::Raw)),
    ("v4.channel.k8s.io", (Version::V4, Coding::Raw)),
    ("v4.base64.channel.k8s.io", (Version::V4, Coding::Base64)),
    ("channel.k8s.io", (Version::V1, Coding::Raw)),
    ("base64.channel.k8s.io", (Version::V1, Coding::Base64)),
];

/// What is spoken with a WebSocket client that names nothing; for port-forward the coding counts.
pub(crate) const UNNAMED: (Version, Coding) = (Version::V1, Coding::Raw);

/// What a port-forward is over WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwarded {
    /// SPDY, whose frames are the messages' bytes.
    Tunnel,
    /// The old form: two channels for each port.
    Channels(Coding),
}

pub(crate) const FORWARDED: [(&str, Forwarded); 3] = [
    ("SPDY/3.1+portforward.k8s.io", Forwarded::Tunnel),
    ("v4.channel.k8s.io", Forwarded::Channels(Coding::Raw)),
    ("v4.base64.channel.k8s.io", Forwarded::Channels(Coding::Base64)),
];

/// The first of the client's choices that is among ours. Headers may be repeated, and hold lists.
pub(crate) fn choose<'a, T: Copy>(
    asked: impl Iterator<Item = &'a str>,
    ours: &[(&'static str, T)],
) -> Result<(&'static str, T), Refusal> {
    let asked: Vec<&str> =
        asked.flat_map(|list| list.split(',')).map(str::trim).filter(|it| !it.is_empty()).collect();
    if asked.is_empty() {
        return Err(Refusal::Missing);
    }
    let known = |name: &&str| ours.iter().find(|(ours, _)| ours == name).copied();
    asked.iter().find_map(known).ok_or_else(|| Refusal::Unknown {
        asked: asked.into_iter().map(str::to_owned).collect(),
        ours: ours.iter().map(|(name, _)| *name).collect(),
    })
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The client names none.
    Missing,
    Unknown {
        asked: Vec<String>,
        ours: Vec<&'static str>,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => {
                write!(formatter, "unable to upgrade: X-Stream-Protocol-Version is required")
            }
            Self::Unknown { asked, ours } => write!(
                formatter,
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server \
                 accepts [{}]",
                asked.join(" "),
                ours.join(" ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_choice_that_we_know_is_taken() {
        let cases: [(&[&str], Option<Version>); 6] = [
            (&["v4.channel.k8s.io"], Some(Version::V4)),
            (&["v9.channel.k8s.io", "v2.channel.k8s.io", "v4.channel.k8s.io"], Some(Version::V2)),
            (&["v5.channel.k8s.io, v3.channel.k8s.io,channel.k8s.io"], Some(Version::V3)),
            (&["channel.k8s.io"], Some(Version::V1)),
            (&["v5.channel.k8s.io"], None),
            (&["V4.CHANNEL.K8S.IO"], None),
        ];
        for (asked, expected) in cases {
            let chosen = choose(asked.iter().copied(), &COMMAND).ok().map(|(_, version)| version);
            assert_eq!(chosen, expected, "{asked:?}");
        }
    }

    #[test]
    fn a_client_without_a_choice_is_told_apart_from_one_with_a_strange_one() {
        for nothing in [&[][..], &[""], &[" , "]] {
            assert_eq!(choose(nothing.iter().copied(), &COMMAND), Err(Refusal::Missing));
        }
        let refusal = choose(["x, y"].into_iter(), &PORT_FORWARD).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "unable to upgrade: unable to negotiate protocol: client supports [x y], server \
             accepts [portforward.k8s.io]"
        );
    }
}
