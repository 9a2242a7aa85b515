//! Certificates for servers on loopback, made by the `openssl` command, as an administrator would.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A certificate that vouches for itself and for nothing else, and its key.
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// `NAME.crt` and `NAME.key` in `folder`.
    #[track_caller]
    pub fn make(folder: &Path, name: &str) -> Self {
        let made = Self {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={name}")])
            .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
            // No server may show an authority's own, says rustls.
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-out".as_ref(), made.certificate.as_os_str()])
            .args(["-keyout".as_ref(), made.key.as_os_str()])
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        made
    }
}
