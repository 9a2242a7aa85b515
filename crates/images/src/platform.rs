//! Which of an index's images this node can run. Pure, but for asking what this node is.

use serde::Deserialize;

/// An operating system and processor, by Go's names (`linux`, `amd64`, `v8`).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program was built for. A 32-bit ARM build is taken for v7, what
    /// every such node in use is.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            other => (other, None),
        };
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image for `offered` runs here: none if not at all; more is better.
    ///
    /// A variant runs on its own level and on higher ones (`arm/v6` on v7). No variant means
    /// the architecture's base: v8 for arm64, v7 for arm, v1 for amd64.
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        match (self.level(), offered.level()) {
            (Some(ours), Some(theirs)) => (theirs <= ours).then_some(theirs),
            // A variant that is no level (`v8.1` apart, none is known) must match by name.
            (_, None) | (None, _) => (self.variant == offered.variant).then_some(0),
        }
    }

    fn level(&self) -> Option<u32> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None | Some("")) => Some(80),
            ("arm", None | Some("")) => Some(70),
            ("amd64", None | Some("")) => Some(10),
            (_, None | Some("")) => Some(0),
            (_, Some(variant)) => {
                let (major, minor) = variant.strip_prefix('v').map(split_level)?;
                Some(major.parse::<u32>().ok()? * 10 + minor.parse::<u32>().ok()?)
            }
        }
    }
}

fn split_level(level: &str) -> (&str, &str) {
    level.split_once('.').unwrap_or((level, "0"))
}

/// The place of the best of `offered` for `host`; of equals the first, as index order is the
/// publisher's preference. An entry that names no platform fits only if nothing else does.
pub(crate) fn choose<'a>(
    host: &Platform,
    offered: impl Iterator<Item = Option<&'a Platform>>,
) -> Option<usize> {
    let mut best: Option<(Option<u32>, usize)> = None;
    for (place, platform) in offered.enumerate() {
        let rank = match platform {
            Some(platform) => match host.rank(platform) {
                Some(rank) => Some(rank),
                None => continue,
            },
            None => None,
        };
        if best.is_none_or(|(known, _)| rank > known) {
            best = Some((rank, place));
        }
    }
    best.map(|(_, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn the_highest_variant_that_runs_here_is_chosen() {
        for (host, offered, chosen) in [
            ("linux/amd64", &["linux/arm64", "linux/amd64"][..], Some(1)),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], Some(2)),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1)),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], Some(1)),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm"], Some(1)),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/arm64/v8", &["linux/arm64"], Some(0)),
            ("linux/arm64/v8", &["linux/arm64/v8", "linux/arm64"], Some(0)),
            ("linux/arm64/v8", &["linux/arm64/v9"], None),
            ("linux/amd64", &["windows/amd64"], None),
            ("linux/amd64", &["linux/amd64/odd"], None),
            ("linux/s390x", &["linux/s390x"], Some(0)),
            ("linux/amd64", &[], None),
        ] {
            let offered: Vec<_> = offered.iter().map(|text| platform(text)).collect();
            let place = choose(&platform(host), offered.iter().map(Some));
            assert_eq!(place, chosen, "{host}: {offered:?}");
        }
    }

    #[test]
    fn an_entry_without_platform_is_the_last_resort() {
        let here = platform("linux/amd64");
        assert_eq!(choose(&here, [None, Some(&here)].into_iter()), Some(1));
        assert_eq!(choose(&here, [Some(&platform("linux/arm64")), None].into_iter()), Some(1));
    }
}
