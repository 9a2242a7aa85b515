//! Every sandbox and container by id and by name, and the creations under way. No IO.
//!
//! A creation is one object per name: a kubelet that timed out and asks again attaches to the one
//! under way and gets its result the moment it is there. A creation lists what it has made, once
//! that is complete: what it looks at afterwards is younger than the list.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::Error;
use crate::id::SandboxId;

/// What makes a sandbox the same as one asked for before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SandboxKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) attempt: u32,
}

/// What makes a container the same as one asked for before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContainerKey {
    pub(crate) sandbox: SandboxId,
    pub(crate) name: String,
    pub(crate) attempt: u32,
}

/// An object that has an id and a name.
pub(crate) trait Named {
    /// What people call such an object.
    const KIND: &'static str;
    type Id: Clone + Eq + Hash + AsRef<str> + Send + Sync + 'static;
    type Key: Clone + Eq + Hash + Send + Sync + 'static;
    fn id(&self) -> &Self::Id;
    fn key(&self) -> Self::Key;
    /// Whether a repeated creation may return this object: it has not ended.
    fn is_usable(&self) -> bool;
}

/// The objects of one kind.
pub(crate) struct Objects<T: Named> {
    tables: Mutex<Tables<T>>,
}

struct Tables<T: Named> {
    by_id: HashMap<T::Id, Arc<T>>,
    by_key: HashMap<T::Key, T::Id>,
    creating: HashMap<T::Key, watch::Receiver<Creation<T>>>,
}

/// `None` while it is under way.
type Creation<T> = Option<Result<Arc<T>, Arc<Error>>>;

/// What a request to create finds.
enum Claim<T: Named> {
    /// Nothing of this name: the caller makes it.
    Ours(watch::Sender<Creation<T>>, watch::Receiver<Creation<T>>),
    /// Somebody is making it.
    Theirs(watch::Receiver<Creation<T>>),
    Exists(Arc<T>),
}

impl<T: Named> Default for Objects<T> {
    fn default() -> Self {
        let tables =
            Tables { by_id: HashMap::new(), by_key: HashMap::new(), creating: HashMap::new() };
        Self { tables: Mutex::new(tables) }
    }
}

impl<T: Named + Send + Sync + 'static> Objects<T> {
    pub(crate) fn get(&self, id: &T::Id) -> Option<Arc<T>> {
        self.lock().by_id.get(id).cloned()
    }

    /// By the whole id, or by a prefix that only one object has.
    pub(crate) fn find(&self, prefix: &str) -> Option<Arc<T>> {
        if prefix.is_empty() {
            return None;
        }
        let tables = self.lock();
        let mut matching = tables.by_id.iter().filter(|(id, _)| id.as_ref().starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some((_, object)), None) => Some(Arc::clone(object)),
            _ => None,
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.lock().by_id.values().cloned().collect()
    }

    /// Lists `object`: when it has been created, or recovered.
    pub(crate) fn insert(&self, object: Arc<T>) {
        let mut tables = self.lock();
        tables.by_key.insert(object.key(), object.id().clone());
        tables.by_id.insert(object.id().clone(), object);
    }

    /// Forgets the object, and its name if no younger object has taken it.
    pub(crate) fn remove(&self, object: &T) {
        let mut tables = self.lock();
        tables.by_id.remove(object.id());
        if tables.by_key.get(&object.key()) == Some(object.id()) {
            tables.by_key.remove(&object.key());
        }
    }

    /// The object called `key`: the one that exists, the one somebody is making, or what `create`
    /// makes and lists. `create` runs to its end even if every caller has gone.
    pub(crate) async fn get_or_create<F>(
        self: &Arc<Self>,
        key: T::Key,
        create: impl FnOnce() -> F,
    ) -> Result<Arc<T>, Error>
    where
        F: Future<Output = Result<Arc<T>, Error>> + Send + 'static,
    {
        let mut result = match self.claim(&key)? {
            Claim::Exists(object) => return Ok(object),
            Claim::Theirs(result) => result,
            Claim::Ours(sender, result) => {
                let (objects, creation) = (Arc::clone(self), create());
                tokio::spawn(async move {
                    // A task of its own: should it panic, the name is free again all the same.
                    let outcome = tokio::spawn(creation)
                        .await
                        .unwrap_or_else(|panic| Err(Error::internal("create the object", panic)));
                    objects.finish(&key, outcome, &sender);
                });
                result
            }
        };
        let outcome = result.wait_for(Option::is_some).await;
        let outcome = outcome.map_err(|closed| Error::internal("await the creation", closed))?;
        match outcome.as_ref().expect("wait_for waited for it") {
            Ok(object) => Ok(Arc::clone(object)),
            Err(error) => Err(Error::Shared(Arc::clone(error))),
        }
    }

    fn claim(&self, key: &T::Key) -> Result<Claim<T>, Error> {
        let mut tables = self.lock();
        if let Some(result) = tables.creating.get(key) {
            return Ok(Claim::Theirs(result.clone()));
        }
        let made = tables.by_key.get(key).and_then(|id| tables.by_id.get(id));
        if let Some(object) = made {
            if object.is_usable() {
                return Ok(Claim::Exists(Arc::clone(object)));
            }
            return Err(Error::AlreadyExists {
                kind: T::KIND,
                id: object.id().as_ref().to_owned(),
            });
        }
        let (sender, result) = watch::channel(None);
        tables.creating.insert(key.clone(), result.clone());
        Ok(Claim::Ours(sender, result))
    }

    /// Frees the name, which is that of a listed object now or nobody's; then tells those who wait.
    fn finish(
        &self,
        key: &T::Key,
        outcome: Result<Arc<T>, Error>,
        result: &watch::Sender<Creation<T>>,
    ) {
        self.lock().creating.remove(key);
        result.send_replace(Some(outcome.map_err(Arc::new)));
    }

    fn lock(&self) -> MutexGuard<'_, Tables<T>> {
        // The tables are changed by single calls that do not panic half-way.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    struct Thing {
        id: String,
        usable: AtomicBool,
    }

    impl Named for Thing {
        const KIND: &'static str = "thing";
        type Id = String;
        type Key = &'static str;
        fn id(&self) -> &String {
            &self.id
        }
        fn key(&self) -> &'static str {
            "name"
        }
        fn is_usable(&self) -> bool {
            self.usable.load(Ordering::Relaxed)
        }
    }

    fn thing(id: &str) -> Arc<Thing> {
        Arc::new(Thing { id: id.to_owned(), usable: AtomicBool::new(true) })
    }

    /// What a creation does when all is made.
    fn listed(things: &Objects<Thing>, id: &str) -> Result<Arc<Thing>, Error> {
        let made = thing(id);
        things.insert(Arc::clone(&made));
        Ok(made)
    }

    #[tokio::test]
    async fn a_retry_attaches_to_the_creation_under_way_even_if_the_first_caller_has_gone() {
        let things = Arc::new(Objects::<Thing>::default());
        let (go, made) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let create = || {
            let (go, made, things) = (Arc::clone(&go), Arc::clone(&made), Arc::clone(&things));
            async move {
                made.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                listed(&things, "abc")
            }
        };
        {
            let first = things.get_or_create("name", create);
            tokio::select! {
                biased;
                _ = first => unreachable!("nobody let it go on"),
                () = tokio::task::yield_now() => {}
            }
        }
        let second = things.get_or_create("name", create);
        assert!(things.all().is_empty(), "nothing is listed before it is complete");
        go.notify_one();
        assert_eq!(second.await.unwrap().id, "abc");
        assert_eq!(things.get_or_create("name", create).await.unwrap().id, "abc");
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_failed_creation_frees_the_name_and_an_ended_object_keeps_it() {
        let things = Arc::new(Objects::<Thing>::default());
        let fail = || async { Err(Error::NotFound { kind: "image", id: "x".to_owned() }) };
        let error = things.get_or_create("name", fail).await.err().unwrap();
        assert_eq!(error.to_string(), "no such image: x");

        let create = |id: &'static str| {
            let things = Arc::clone(&things);
            move || async move { listed(&things, id) }
        };
        let made = things.get_or_create("name", create("abc")).await.unwrap();
        made.usable.store(false, Ordering::Relaxed);
        let again = things.get_or_create("name", create("def")).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })));

        things.remove(&made);
        let young = things.get_or_create("name", create("def")).await.unwrap();
        things.remove(&made);
        assert_eq!(things.get_or_create("name", fail).await.unwrap().id, young.id);
    }

    #[tokio::test]
    async fn what_is_listed_can_be_removed_before_its_creation_is_through_and_stays_removed() {
        let things = Arc::new(Objects::<Thing>::default());
        let (go, shown) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (list, wait, tell) = (Arc::clone(&things), Arc::clone(&go), Arc::clone(&shown));
        let creation = things.get_or_create("name", || async move {
            let made = listed(&list, "abc")?;
            tell.notify_one();
            wait.notified().await;
            Ok(made)
        });
        let stop = async {
            shown.notified().await;
            things.remove(&things.get(&"abc".to_owned()).unwrap());
            go.notify_one();
        };
        assert_eq!(tokio::join!(creation, stop).0.unwrap().id, "abc");
        assert!(things.all().is_empty());
    }

    #[test]
    fn an_object_is_found_by_a_prefix_that_only_it_has() {
        let things = Objects::<Thing>::default();
        things.insert(thing("abc"));
        things.insert(thing("abd"));
        assert_eq!(things.find("abc").unwrap().id, "abc");
        assert!(things.find("ab").is_none());
        assert!(things.find("x").is_none());
        assert!(things.find("").is_none());
    }
}
