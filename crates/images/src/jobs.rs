//! Downloads under way, each for all who need what it makes.
//!
//! A job runs in a task of its own, so that whoever started it may go away; it is stopped when the
//! last who waits for it has gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::digest::Digest;
use crate::error::Error;

/// Work that several callers may want done at once.
pub(crate) struct Jobs<T> {
    running: Mutex<HashMap<JobKey, Weak<Job<T>>>>,
}

/// What a job is known by. The same content from two sources is two jobs: whoever waits for one waits
/// for a server that the pull itself has chosen.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct JobKey {
    /// For a layer a registry, since images of many repositories have the same base; for a config the
    /// repository, since to have been given it there is what opens an image.
    pub(crate) source: String,
    pub(crate) blob: Digest,
    /// What becomes of the blob.
    pub(crate) makes: Digest,
}

/// One piece of work under way. It stops when the last who waits for it has gone.
pub(crate) struct Job<T> {
    answer: watch::Receiver<Option<Result<T, Error>>>,
    task: JoinHandle<()>,
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> Default for Jobs<T> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Jobs<T> {
    /// Waits for the job of this key, or starts it. The failure of somebody else's job is
    /// not this caller's: credentials and endpoint were others; it then tries by itself.
    /// For as long as the job is kept, what it made is there for everybody.
    pub(crate) async fn run<F>(
        &self,
        key: JobKey,
        start: impl Fn() -> F,
    ) -> Result<(T, Arc<Job<T>>), Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        loop {
            let (job, is_ours) = self.join(&key, &start);
            let mut answer = job.answer.clone();
            let answer = match answer.wait_for(Option::is_some).await {
                Ok(answer) => answer.clone().expect("just waited for"),
                // The task has panicked: nobody aborts it while we hold it.
                Err(_) => Err(Error::Cancelled { image: key.makes.to_string() }),
            };
            match answer {
                Err(_) if !is_ours => {}
                answer => return answer.map(|made| (made, job)),
            }
        }
    }

    fn join<F>(&self, key: &JobKey, start: impl Fn() -> F) -> (Arc<Job<T>>, bool)
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = running.get(key).and_then(Weak::upgrade) {
            let is_usable = match &*job.answer.borrow() {
                Some(answer) => answer.is_ok(),
                None => !job.task.is_finished(),
            };
            if is_usable {
                return (job, false);
            }
        }
        running.retain(|_, job| job.strong_count() > 0);
        let (sender, answer) = watch::channel(None);
        let work = start();
        let task = async move { drop(sender.send(Some(work.await))) };
        let task = tokio::spawn(task.instrument(tracing::Span::current()));
        let job = Arc::new(Job { answer, task });
        running.insert(key.clone(), Arc::downgrade(&job));
        (job, true)
    }
}
