//! The CRI v1 API of Kubernetes 1.37, generated from `api.proto`.

#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    reason = "generated code spells names out, and brings its own exceptions"
)]
mod generated {
    tonic::include_proto!("runtime.v1");
}

use std::fmt;

pub use generated::*;

/// `api.proto` as it was compiled: a `google.protobuf.FileDescriptorSet`. For tests: the daemon
/// does not use it, and so does not carry it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Without its secrets: requests are printed when they are traced.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_request_has_no_secrets() {
        let secret = || "hunter2".to_owned();
        let auth = AuthConfig {
            username: "me".to_owned(),
            password: secret(),
            auth: secret(),
            server_address: "registry".to_owned(),
            identity_token: secret(),
            registry_token: secret(),
        };
        let request = PullImageRequest { auth: Some(auth), ..Default::default() };
        let printed = format!("{request:?}");
        assert!(printed.contains("\"me\"") && printed.contains("\"registry\""), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}
