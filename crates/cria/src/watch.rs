//! Registries, credentials, certificates (also the streaming server's), policies and their keys are read
//! again when their files change, as by SIGHUP: whoever writes them is seldom whoever may signal cria.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::config::Config;
use crate::daemon::Daemon;
use crate::node::Node;
use crate::reload;

/// Who changes one file changes several: what comes within this time is one change.
const SETTLE: Duration = Duration::from_millis(300);
/// The wait before watching again after that failed.
const PAUSE: Duration = Duration::from_secs(60);

/// Reads the files again whenever they change, for ever.
pub(crate) async fn reload_on_change(daemon: Arc<Daemon>) {
    loop {
        let Err(error) = follow(&daemon).await;
        warn!(%error, "cannot watch the files of registries and certificates; SIGHUP reloads them");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(daemon: &Daemon) -> io::Result<Infallible> {
    loop {
        let mut watch = begin(daemon).await?;
        tokio::select! {
            changed = watch.change() => changed?,
            // The files may be others now.
            () = daemon.reloaded.notified() => {}
        }
    }
}

/// Watches, and reads what may have changed before. Anew after each change, which may have been a
/// directory's coming or going; before the files are read, so that no change falls between; again, if
/// a policy names other keys now.
async fn begin(daemon: &Daemon) -> io::Result<Watch> {
    loop {
        let keys = key_files(&daemon.node).await?;
        let watch = Watch::begin(daemon, &keys)?;
        reload::files_alone(daemon).await;
        if key_files(&daemon.node).await? == keys {
            return Ok(watch);
        }
    }
}

/// As the policies have it that are in the files, which need not be those that hold: one that came
/// before its key holds when that has come.
async fn key_files(node: &Arc<Node>) -> io::Result<BTreeSet<PathBuf>> {
    let node = Arc::clone(node);
    let named =
        spawn_blocking(move || reload::trust_files(&node.settings.get().config).key_files());
    named.await.map_err(io::Error::other)
}

/// Files are replaced by rename, so it is their directories that are watched.
struct Watch {
    changes: EventStream<[u8; 4096]>,
    names: HashMap<WatchDescriptor, Names>,
}

/// Which names in a directory matter.
#[derive(Debug, PartialEq, Eq)]
enum Names {
    All,
    These(Vec<OsString>),
}

impl Names {
    fn of(name: Option<OsString>) -> Self {
        name.map_or(Self::All, |name| Self::These(vec![name]))
    }

    /// One directory may be watched for several reasons.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::These(some), Self::These(others)) => Self::These([some, others].concat()),
        }
    }

    /// Whether a change of `name` matters; without one it is the directory's own.
    fn matter(&self, name: Option<&OsStr>) -> bool {
        match (self, name) {
            (Self::All, _) | (_, None) => true,
            // How volumes of ConfigMaps and Secrets are replaced.
            (Self::These(names), Some(name)) => {
                name == "..data" || names.iter().any(|wanted| wanted == name)
            }
        }
    }
}

impl Watch {
    fn begin(daemon: &Daemon, keys: &BTreeSet<PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let mut names = HashMap::new();
        for (directory, name) in watched(&daemon.node.settings.get().config, keys) {
            match inotify.watches().add(&directory, mask) {
                Ok(watch) => {
                    let former = names.remove(&watch).unwrap_or(Names::These(vec![]));
                    names.insert(watch, former.and(Names::of(name)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { changes: inotify.into_event_stream([0; 4096])?, names })
    }

    /// Waits for a change that matters, and for what comes with it.
    async fn change(&mut self) -> io::Result<()> {
        while !self.next().await? {}
        while let Ok(changed) = tokio::time::timeout(SETTLE, self.next()).await {
            changed?;
        }
        Ok(())
    }

    /// Waits for something to happen, and tells whether it matters.
    async fn next(&mut self) -> io::Result<bool> {
        let event = self.changes.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        // None: events were lost.
        let names = self.names.get(&event.wd);
        Ok(names.is_none_or(|names| names.matter(event.name.as_deref())))
    }
}

/// The directories in which a change may matter; with a name, the change of that name alone.
fn watched(config: &Config, keys: &BTreeSet<PathBuf>) -> Vec<(PathBuf, Option<OsString>)> {
    let (images, streaming) = (&config.images, &config.streaming);
    let mut drop_ins = images.registries_conf.as_os_str().to_owned();
    drop_ins.push(".d");
    let drop_ins = PathBuf::from(drop_ins);
    let (policies, places) = (&*images.namespace_policies_dir, &*images.registries_d);
    let files = [
        Some(&*images.registries_conf),
        images.auth_file.as_deref(),
        Some(&*images.policy_file),
        // Directories, which may come and go.
        Some(&*drop_ins),
        Some(policies),
        Some(places),
        streaming.tls_cert_file.as_deref(),
        streaming.tls_key_file.as_deref(),
    ];
    let files = files.into_iter().flatten().chain(images.certs_dirs.iter().map(|folder| &**folder));
    let files = files.chain(keys.iter().map(PathBuf::as_path));
    let mut watched: Vec<_> = files.filter_map(within).collect();
    watched.extend([policies, places].map(|directory| (directory.to_owned(), None)));
    watched.push((drop_ins, None));
    for certificates in &images.certs_dirs {
        watched.push((certificates.to_path_buf(), None));
        let hosts = fs_err::read_dir(certificates.to_path_buf()).into_iter().flatten();
        let hosts = hosts.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        watched.extend(hosts.map(|host| (host, None)));
    }
    watched
}

/// The directory in which `path` comes and goes, and by what name: where its own is missing, that of
/// the nearest which is there.
fn within(path: &Path) -> Option<(PathBuf, Option<OsString>)> {
    let place = path.ancestors().find(|place| place.parent().is_some_and(Path::is_dir))?;
    Some((place.parent()?.to_owned(), place.file_name().map(OsStr::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_matters_as_a_whole_does_so_whatever_else_is_in_it() {
        let these = |names: &[&str]| Names::These(names.iter().map(OsString::from).collect());
        for (some, others, both) in [
            (these(&["a"]), these(&["b"]), these(&["a", "b"])),
            (these(&["a"]), Names::All, Names::All),
            (Names::All, these(&["a"]), Names::All),
        ] {
            assert_eq!(some.and(others), both);
        }
        for (names, name, matters) in [
            (Names::All, Some("x"), true),
            (these(&["a"]), Some("a"), true),
            (these(&["a"]), Some("x"), false),
            (these(&["a"]), Some("..data"), true),
            (these(&["a"]), None, true),
        ] {
            assert_eq!(names.matter(name.map(OsStr::new)), matters, "{names:?} {name:?}");
        }
    }

    #[test]
    fn what_is_missing_is_awaited_in_the_nearest_directory_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("etc")).unwrap();
        for (path, place, name) in [
            ("etc/policy.json", "etc", "policy.json"),
            ("etc/containers/certs.d", "etc", "containers"),
            ("var/lib/kubelet/config.json", "", "var"),
        ] {
            let place = folder.path().join(place);
            let found = within(&folder.path().join(path)).unwrap();
            assert_eq!(found, (place, Some(name.into())), "{path}");
        }
    }
}
