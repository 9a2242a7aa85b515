//! The values that keys can have: each type holds only what makes sense, so that nothing behind
//! the loader has to check again. A value is parsed the same way from a file and from a flag.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// What a value should have been, for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found `{found}`")]
pub(crate) struct Unfit {
    expected: &'static str,
    found: String,
}

impl Unfit {
    fn new(expected: &'static str, found: &str) -> Self {
        Self { expected, found: found.to_owned() }
    }
}

/// Reads and writes a type as a TOML string, by its `FromStr` and `Display`.
macro_rules! written_as_string {
    ($($type:ty),+) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}

written_as_string!(AbsolutePath, SocketPath, Program, Timeout, Rlimit, Capability, ImagePattern);

/// A path that means the same from every working directory. UTF-8, as TOML is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AbsolutePath(PathBuf);

impl FromStr for AbsolutePath {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(Unfit::new("an absolute path", text));
        }
        Ok(Self(text.into()))
    }
}

impl Deref for AbsolutePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for AbsolutePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(formatter)
    }
}

/// A path that a unix socket can be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketPath(AbsolutePath);

impl FromStr for SocketPath {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        // unix(7): sun_path has 108 bytes, the last of them NUL.
        if text.len() > 107 {
            return Err(Unfit::new("the path of a socket, at most 107 bytes", text));
        }
        text.parse().map(Self)
    }
}

impl Deref for SocketPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An executable: an absolute path, or a bare name to be looked up in `$PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program(PathBuf);

impl FromStr for Program {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let bare = !text.is_empty() && !text.contains(['/', '\0']);
        if !bare && text.parse::<AbsolutePath>().is_err() {
            return Err(Unfit::new("an absolute path, or a name without `/`", text));
        }
        Ok(Self(text.into()))
    }
}

impl AsRef<Path> for Program {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(formatter)
    }
}

/// How long something outside may take; never zero. Written as `500ms`, `10s` or `4m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timeout(Duration);

impl Timeout {
    pub(super) const fn seconds(seconds: NonZeroU32) -> Self {
        Self(Duration::from_secs(seconds.get() as u64))
    }

    pub(super) const fn minutes(minutes: NonZeroU32) -> Self {
        Self(Duration::from_secs(60 * minutes.get() as u64))
    }

    pub(crate) fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Timeout {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let unfit = || Unfit::new("a time above zero such as `500ms`, `10s` or `4m`", text);
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(unfit)?;
        let (number, unit) = text.split_at(digits);
        let number: u32 = number.parse().map_err(|_| unfit())?;
        let duration = match unit {
            "ms" => Duration::from_millis(number.into()),
            "s" => Duration::from_secs(number.into()),
            "m" => Duration::from_secs(u64::from(number) * 60),
            _ => return Err(unfit()),
        };
        if duration.is_zero() { Err(unfit()) } else { Ok(Self(duration)) }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match (millis % 60_000, millis % 1000) {
            (0, _) => write!(formatter, "{}m", millis / 60_000),
            (_, 0) => write!(formatter, "{}s", millis / 1000),
            _ => write!(formatter, "{millis}ms"),
        }
    }
}

/// A resource limit, `SOFT:HARD`, or one number for both; `unlimited` is a number here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rlimit {
    soft: u64,
    hard: u64,
}

impl Rlimit {
    const UNLIMITED: u64 = u64::MAX;

    /// Both limits are `soft` where the hard one would be below it.
    pub(super) const fn new(soft: u64, hard: u64) -> Self {
        Self { soft, hard: if hard < soft { soft } else { hard } }
    }

    /// `u64::MAX` (RLIM_INFINITY) is unlimited.
    pub(crate) fn soft(self) -> u64 {
        self.soft
    }

    /// `u64::MAX` (RLIM_INFINITY) is unlimited.
    pub(crate) fn hard(self) -> u64 {
        self.hard
    }
}

impl FromStr for Rlimit {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let unfit = || Unfit::new("`SOFT:HARD`, the soft limit not above the hard one", text);
        let number = |text: &str| match text {
            "unlimited" => Ok(Self::UNLIMITED),
            number => number.parse().map_err(|_| unfit()),
        };
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard { Err(unfit()) } else { Ok(Self::new(soft, hard)) }
    }
}

impl fmt::Display for Rlimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: u64| match value {
            Self::UNLIMITED => "unlimited".to_owned(),
            number => number.to_string(),
        };
        write!(formatter, "{}:{}", number(self.soft), number(self.hard))
    }
}

/// A capability that the kernel knows, in the kernel's spelling: `CAP_CHOWN`. Read with or without
/// the prefix, in any case, as the CRI and the OCI between them write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Capability(String);

impl FromStr for Capability {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let upper = text.to_ascii_uppercase();
        let name = format!("CAP_{}", upper.strip_prefix("CAP_").unwrap_or(&upper));
        match name.parse::<caps::Capability>() {
            Ok(_) => Ok(Self(name)),
            Err(_) => Err(Unfit::new("the name of a capability, such as `CHOWN`", text)),
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Which images are meant: one whole name, `beginning*` or `*part*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImagePattern(String);

impl FromStr for ImagePattern {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let beginning = text.strip_suffix('*').unwrap_or(text);
        let literal = match beginning.strip_prefix('*') {
            Some(part) if text.len() > 1 && text.ends_with('*') => part,
            Some(_) | None => beginning,
        };
        if text.is_empty() || literal.contains('*') {
            return Err(Unfit::new("an image's name, `beginning*` or `*part*`", text));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Most processes that a container may have. Zero would mean none, so it cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PidsLimit {
    #[default]
    Unlimited,
    Most(NonZeroU32),
}

impl<'de> Deserialize<'de> for PidsLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PidsLimitVisitor)
    }
}

struct PidsLimitVisitor;

impl Visitor<'_> for PidsLimitVisitor {
    type Value = PidsLimit;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number above zero, or `unlimited`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PidsLimit, E> {
        match text {
            "unlimited" => Ok(PidsLimit::Unlimited),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<PidsLimit, E> {
        u32::try_from(number)
            .ok()
            .and_then(NonZeroU32::new)
            .map(PidsLimit::Most)
            .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Signed(number), &self))
    }
}

impl Serialize for PidsLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unlimited => serializer.serialize_str("unlimited"),
            Self::Most(most) => serializer.serialize_u32(most.get()),
        }
    }
}

/// An optional value as a string that is empty where there is none: TOML has no null, and a
/// drop-in must be able to take back what an earlier file set.
pub(super) mod optional {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};

    pub(in crate::config) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: fmt::Display>,
    {
        match String::deserialize(deserializer)?.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(serde::de::Error::custom),
        }
    }

    pub(in crate::config) fn serialize<S: Serializer, T: fmt::Display>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str(""),
        }
    }
}

/// A list of directories to search, which needs one at least.
pub(super) fn at_least_one<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<AbsolutePath>, D::Error> {
    let directories = Vec::deserialize(deserializer)?;
    if directories.is_empty() {
        return Err(D::Error::custom("expected at least one directory, found an empty list"));
    }
    Ok(directories)
}

#[cfg(test)]
#[path = "values_tests.rs"]
mod tests;
