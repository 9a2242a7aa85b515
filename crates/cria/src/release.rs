//! The Kubernetes release that this cria is made for: its own version, which the workspace's
//! Cargo.toml states. The kubelet of a node may be up to two minors older than its runtime.

/// As `cria version`, the CRI and the packages tell it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How many minor releases before its own cria serves.
const OLDER: u32 = 2;

/// A release of Kubernetes: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release(u32, u32);

impl Release {
    pub(crate) fn own() -> Self {
        Self::parse(VERSION).expect("cargo checked the version")
    }

    pub(crate) fn oldest() -> Self {
        let Self(major, minor) = Self::own();
        Self(major, minor.saturating_sub(OLDER))
    }

    /// From `1.37.2`, `v1.37.2-rc.0` and the like.
    pub(crate) fn parse(version: &str) -> Option<Self> {
        let mut numbers = version.trim().trim_start_matches('v').split('.');
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    pub(crate) fn is_served(self) -> bool {
        (Self::oldest()..=Self::own()).contains(&self)
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What `cria version` says.
pub(crate) fn describe() -> String {
    format!("cria {VERSION}, for Kubernetes {} to {}\n", Release::oldest(), Release::own())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of them: the release it is pinned to, and the two before.
    #[test]
    fn the_version_names_the_kubernetes_releases_it_serves() {
        assert!(describe().starts_with(concat!("cria ", env!("CARGO_PKG_VERSION"), ", for ")));
        assert!(describe().ends_with("for Kubernetes 1.35 to 1.37\n"), "{}", describe());
        for (version, served) in [
            ("1.34.9", false),
            ("v1.35.0", true),
            ("v1.36.1+k3s1", true),
            ("1.37.0-rc.0", true),
            ("v1.38.0-alpha.1", false),
            ("2.36.0", false),
        ] {
            assert_eq!(Release::parse(version).unwrap().is_served(), served, "{version}");
        }
        for nonsense in ["", "v1", "1.x", "one.two"] {
            assert_eq!(Release::parse(nonsense), None, "{nonsense}");
        }
    }

    /// What users read in other places; the packages have a test of their own.
    #[test]
    fn every_place_that_names_the_release_agrees() {
        let unit = include_str!("../../../packaging/cria.service");
        let description =
            format!("Description=Container runtime for Kubernetes {}\n", Release::own());
        assert!(unit.contains(&description), "{description}");
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&format!("cria {} serves Kubernetes {0}", Release::own())));
    }
}
