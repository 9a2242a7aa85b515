//! What pods and containers are asked to be confined by: profiles, labels, groups.

use cria_proto as proto;

use super::known;
use crate::container::config::{SeccompProfile, SelinuxOptions, SupplementalGroupsPolicy};
use crate::error::Error;

pub(super) fn groups_policy(policy: i32) -> Result<SupplementalGroupsPolicy, Error> {
    use proto::SupplementalGroupsPolicy as Theirs;
    Ok(match known::<Theirs>("supplemental_groups_policy", policy)? {
        Theirs::Merge => SupplementalGroupsPolicy::Merge,
        Theirs::Strict => SupplementalGroupsPolicy::Strict,
    })
}

pub(super) fn profile(
    field: &'static str,
    profile: Option<proto::SecurityProfile>,
) -> Result<SeccompProfile, Error> {
    use proto::security_profile::ProfileType;
    let Some(profile) = profile else { return Ok(SeccompProfile::Unconfined) };
    Ok(match known::<ProfileType>(field, profile.profile_type)? {
        ProfileType::RuntimeDefault => SeccompProfile::RuntimeDefault,
        ProfileType::Unconfined => SeccompProfile::Unconfined,
        ProfileType::Localhost if profile.localhost_ref.is_empty() => {
            return Err(Error::invalid(field, "a Localhost profile needs a localhost_ref"));
        }
        ProfileType::Localhost => SeccompProfile::Localhost(profile.localhost_ref),
    })
}

pub(super) fn selinux(options: proto::SeLinuxOption) -> SelinuxOptions {
    SelinuxOptions {
        user: options.user,
        role: options.role,
        kind: options.r#type,
        level: options.level,
    }
}
