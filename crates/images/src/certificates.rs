//! `certs.d`: whom to trust, and who to be, at one registry (containers-certs.d(5)).
//!
//! ```text
//! /etc/containers/certs.d/registry.example:5000/ca.crt       trusted besides the system's
//!                                               client.cert  shown to the registry,
//!                                               client.key   with its key
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::{Certificate, Identity};

use crate::error::Error;

/// What the folders held when they were read. Immutable: to reload is to load others.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// By host, with its port, as references write it.
    hosts: Arc<BTreeMap<String, HostCertificates>>,
}

/// What is there for one host.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostCertificates {
    pub(crate) authorities: Vec<Certificate>,
    pub(crate) identity: Option<Identity>,
}

impl Certificates {
    /// Reads the folders of all hosts in `directories`, which need not exist; a host's first folder
    /// counts. A file that cannot be used is an error: less trust than was meant must not go
    /// unnoticed. Blocking.
    pub fn load(directories: &[PathBuf]) -> Result<Self, Error> {
        let mut hosts = BTreeMap::new();
        for directory in directories {
            for folder in entries(directory)? {
                let host = folder.file_name().and_then(OsStr::to_str).map(str::to_owned);
                // No host begins with a dot; what mounted volumes are made of does.
                let host = host.filter(|host| !host.starts_with('.') && folder.is_dir());
                if let Some(host) = host.filter(|host| !hosts.contains_key(host)) {
                    hosts.insert(host, read(&entries(&folder)?)?);
                }
            }
        }
        Ok(Self { hosts: Arc::new(hosts) })
    }

    /// The first of `names` that has a folder, and what is there.
    pub(crate) fn of_host(&self, names: &[String]) -> Option<(&str, &HostCertificates)> {
        let (folder, found) = names.iter().find_map(|name| self.hosts.get_key_value(name))?;
        Some((folder, found))
    }
}

/// What is in `directory`, by name; nothing if it is missing.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let paths = match fs_err::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut paths = paths.map_err(|error| Error::io("read certs.d", error))?;
    paths.sort();
    Ok(paths)
}

fn read(paths: &[PathBuf]) -> Result<HostCertificates, Error> {
    let mut found = HostCertificates::default();
    for path in paths {
        match path.extension().and_then(OsStr::to_str) {
            Some("crt") => {
                let authorities = Certificate::from_pem_bundle(&content(path)?);
                let authorities = authorities.map_err(|_| unusable(path, "no certificates"))?;
                if authorities.is_empty() {
                    return Err(unusable(path, "no certificates"));
                }
                found.authorities.extend(authorities);
            }
            Some("cert") if found.identity.is_none() => {
                let key = path.with_extension("key");
                let pem = [content(path)?, content(&key)?].join(&b'\n');
                let identity = Identity::from_pem(&pem);
                found.identity =
                    Some(identity.map_err(|_| unusable(path, "no certificate with its key"))?);
            }
            Some(_) | None => {}
        }
    }
    Ok(found)
}

fn content(path: &Path) -> Result<Vec<u8>, Error> {
    fs_err::read(path).map_err(|error| Error::io("read certs.d", error))
}

fn unusable(path: &Path, reason: &str) -> Error {
    let key = String::new();
    Error::Config { file: path.to_owned(), line: 1, key, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    #[test]
    fn all_hosts_are_read_or_none_and_the_first_folder_of_a_host_counts() {
        let root = tempfile::tempdir().unwrap();
        let directories = ["first", "second", "missing"].map(|name| root.path().join(name));
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        };
        write("first/a.example:5000/ca.crt", CERTIFICATE);
        write("second/a.example:5000/ca.crt", &CERTIFICATE.repeat(2));
        write("second/docker.io/ca.crt", &CERTIFICATE.repeat(3));
        write("second/README", "no host");
        write("second/..data/ca.crt", "no host");
        let certificates = Certificates::load(&directories).unwrap();
        for (name, authorities) in
            [("a.example:5000", Some(1)), ("a.example", None), ("docker.io", Some(3))]
        {
            let names = ["none.example".to_owned(), name.to_owned()];
            let found = certificates.of_host(&names);
            let found = found.map(|(folder, found)| (folder, found.authorities.len()));
            assert_eq!(found, authorities.map(|count| (name, count)));
        }
        for broken in ["first/b.example/ca.crt", "second/c.example/client.cert"] {
            write(broken, "no certificate");
            assert!(Certificates::load(&directories).is_err(), "{broken}");
            fs_err::remove_file(root.path().join(broken)).unwrap();
        }
    }
}
