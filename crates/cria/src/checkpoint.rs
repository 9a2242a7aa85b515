//! One small JSON file per sandbox and container, replaced by rename.
//!
//! A record is written before the memory changes (so that a crash can only lose what nobody was
//! told), without fsync: a crash of the daemon needs none, and after a power cut every container
//! is gone anyway. Only the daemon's end syncs what was written. Records only gain fields; a reader keeps those it does not know.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

/// The newest form of the records this release can read.
const VERSION: u64 = 1;

/// Why a record could not be read. The caller decides what becomes of its resources.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("cannot read record {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("record {path} is damaged")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("record {path} is of form {found}, newer than this release's {VERSION}")]
    Newer { path: PathBuf, found: u64 },
}

/// A record together with its version, as it stands in the file.
#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u64,
    #[serde(flatten)]
    record: &'a T,
}

/// A value that is on disk before it is in memory. Readers never wait for the disk.
pub(crate) struct Checkpoint<T> {
    path: PathBuf,
    value: Arc<watch::Sender<T>>,
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Written since it was last synced.
    unsynced: Arc<AtomicBool>,
}

impl<T: Clone + Serialize + Send + Sync + 'static> Checkpoint<T> {
    /// Makes the object's directory, and in it its first record.
    pub(crate) async fn create(path: PathBuf, value: T) -> io::Result<Self> {
        let (to, first) = (path.clone(), value.clone());
        spawn_blocking(move || {
            to.parent().map_or(Ok(()), fs_err::create_dir_all)?;
            write(&to, &first)
        })
        .await??;
        let created = Self::loaded(path, value);
        created.unsynced.store(true, Ordering::Release);
        Ok(created)
    }

    /// A record that was read from `path`.
    pub(crate) fn loaded(path: PathBuf, value: T) -> Self {
        Self {
            path,
            value: Arc::new(watch::Sender::new(value)),
            writing: Arc::default(),
            unsynced: Arc::default(),
        }
    }

    pub(crate) fn get(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<T> {
        self.value.subscribe()
    }

    /// Changes the record, then the memory.
    pub(crate) async fn change(&self, change: impl FnOnce(&mut T)) -> io::Result<()> {
        self.save(change, io::Result::is_ok).await
    }

    /// Changes the memory even where the disk refuses: for facts that are true all the same and
    /// that another file holds (an exit). The error is the caller's to tell. Of what was removed
    /// meanwhile, with its directory, nothing is to be kept.
    pub(crate) async fn note(&self, change: impl FnOnce(&mut T)) -> io::Result<()> {
        match self.save(change, |_written| true).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            saved => saved,
        }
    }

    /// A write that was begun goes on without its caller: until it has ended, and the memory is
    /// what the disk is, no other may begin. `remembers`: whether to, after such a write.
    async fn save(
        &self,
        change: impl FnOnce(&mut T),
        remembers: fn(&io::Result<()>) -> bool,
    ) -> io::Result<()> {
        let one_writer = Arc::clone(&self.writing).lock_owned().await;
        let mut value = self.value.borrow().clone();
        change(&mut value);
        let (path, memory) = (self.path.clone(), Arc::clone(&self.value));
        let unsynced = Arc::clone(&self.unsynced);
        let saved = spawn_blocking(move || {
            let written = write(&path, &value);
            if remembers(&written) {
                unsynced.store(true, Ordering::Release);
                memory.send_replace(value);
            }
            drop(one_writer);
            written
        });
        saved.await?
    }

    /// Has the disk hold what was written since the last time. For the daemon's end: no RPC waits
    /// for it.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let path = self.path.clone();
        spawn_blocking(move || sync(&path)).await?
    }
}

/// The file, and its name in the directory. One that was removed meanwhile needs neither.
fn sync(path: &Path) -> io::Result<()> {
    match fs_err::File::open(path) {
        Ok(file) => file.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match path.parent() {
        Some(directory) => fs_err::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Replaces the record at `path`: a reader sees the old one or the new one, whole.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&Versioned { version: VERSION, record })?;
    replace(path, &text)
}

/// Writes `content` aside and renames it to `path`.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    fs_err::write(&aside, content).and_then(|()| fs_err::rename(&aside, path)).inspect_err(|_| {
        // A full disk must not keep the half that did fit.
        drop(fs_err::remove_file(&aside));
    })
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ReadError> {
    let text =
        fs_err::read(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    let damaged = |source| ReadError::Damaged { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
    let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found > VERSION {
        return Err(ReadError::Newer { path: path.to_owned(), found });
    }
    serde_json::from_value(value).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        name: String,
        #[serde(flatten)]
        unknown: serde_json::Map<String, serde_json::Value>,
    }

    #[test]
    fn a_record_comes_back_with_the_fields_that_its_reader_does_not_know() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        fs_err::write(&path, r#"{"version": 1, "name": "a", "later": [1, 2]}"#).unwrap();

        let record: Record = read(&path).unwrap();
        write(&path, &record).unwrap();

        let again: serde_json::Value =
            serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        assert_eq!(again["later"], serde_json::json!([1, 2]));
    }

    #[test]
    fn a_newer_record_is_refused_and_a_damaged_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let cases = [
            (r#"{"version": 2, "name": "a"}"#, "newer"),
            (r#"{"version": 1}"#, "damaged"),
            (r#"{"vers"#, "damaged"),
            ("", "damaged"),
        ];
        for (text, word) in cases {
            fs_err::write(&path, text).unwrap();
            let error = read::<Record>(&path).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("record.json"), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn what_was_written_is_synced_once_and_what_was_removed_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let record = Checkpoint::create(path.clone(), serde_json::Map::new()).await.unwrap();
        let unsynced = || record.unsynced.load(Ordering::Acquire);
        for _ in 0..2 {
            assert!(unsynced());
            record.sync().await.unwrap();
            assert!(!unsynced());
            record.note(|value| value.clear()).await.unwrap();
        }
        fs_err::remove_file(path).unwrap();
        record.sync().await.unwrap();
        assert!(
            !Checkpoint::loaded("/none".into(), serde_json::Map::new())
                .unsynced
                .load(Ordering::Acquire),
            "as it was read"
        );
    }

    #[tokio::test]
    async fn what_is_removed_takes_note_without_a_word() {
        let directory = tempfile::tempdir().unwrap();
        let object = directory.path().join("object");
        fs_err::create_dir(&object).unwrap();
        let path = object.join("record.json");
        let record = Checkpoint::create(path, BTreeMap::new()).await.unwrap();
        fs_err::remove_dir_all(&object).unwrap();
        record.note(|value| value.extend([("removing", true)])).await.unwrap();
        assert_eq!(*record.get(), BTreeMap::from([("removing", true)]));
        assert!(!object.exists());
    }

    #[tokio::test]
    async fn a_write_whose_caller_has_gone_ends_before_the_next_one_begins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let record = Checkpoint::create(path.clone(), BTreeMap::new()).await.unwrap();
        // A writer waits here until somebody reads.
        let aside = path.with_extension("new");
        nix::unistd::mkfifo(&aside, nix::sys::stat::Mode::S_IRWXU).unwrap();

        let set = |key| move |value: &mut BTreeMap<_, _>| value.extend([(key, true)]);
        assert!(record.note(set("first")).now_or_never().is_none());
        let mut second = pin!(record.note(set("second")));
        assert!(second.as_mut().now_or_never().is_none());
        let read = spawn_blocking(move || fs_err::read_to_string(aside)).await.unwrap().unwrap();
        assert!(read.contains("first") && !read.contains("second"), "{read}");
        second.await.unwrap();

        let both = BTreeMap::from([("first", true), ("second", true)]);
        assert_eq!(*record.get(), both);
        let on_disk: serde_json::Value = super::read(&path).unwrap();
        assert!(on_disk["first"] == true && on_disk["second"] == true, "{on_disk}");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_record_and_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        fs_err::create_dir(&path).unwrap();
        assert!(write(&path, &serde_json::json!({})).is_err());
        assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 1);
    }
}
