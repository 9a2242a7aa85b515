//! Identifiers: parsed once at the CRI boundary, so that everything behind it can trust them as
//! file names and cgroup names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 64 lower-case hexadecimal digits, as every client of the CRI expects.
const LENGTH: usize = 64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub(crate) struct $name(String);

        impl $name {
            /// A new random id.
            pub(crate) fn random() -> std::io::Result<Self> {
                random_hex().map(Self)
            }

            /// A whole id; `None` for anything else, also for a prefix.
            pub(crate) fn parse(text: &str) -> Option<Self> {
                is_id(text).then(|| Self(text.to_owned()))
            }

            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A pod sandbox.
    SandboxId
}
id! {
    /// A container.
    ContainerId
}

fn is_id(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0_u8; LENGTH / 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_sixty_four_lower_case_hexadecimal_digits_and_nothing_else() {
        let id = ContainerId::random().unwrap();
        assert_eq!(ContainerId::parse(id.as_str()), Some(id.clone()));
        for wrong in ["", "abc", &id.as_str()[1..], &id.as_str().replace('a', "G"), "../../etc"] {
            if wrong != id.as_str() {
                assert_eq!(ContainerId::parse(wrong), None, "{wrong:?}");
            }
        }
    }
}
