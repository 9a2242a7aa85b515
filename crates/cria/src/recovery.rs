//! At the start: records, monitors and what is left on the node become the registry again.
//!
//! ```text
//! helpers of the former daemon ──▶ awaited, so that nothing finishes behind our back
//! complete records ──────────────▶ listed, with the state that their monitors tell
//! layers that nothing uses ──────▶ removed         ┐
//! unanswered creations ──────────▶ undone          ├ in the background, while we serve
//! removals ──────────────────────▶ continued       │
//! directories without a record ──▶ cleared away    ┘
//! ```
//!
//! In the background nothing listed waits for anything else, lest one process that cannot be killed
//! keep all. What has no record goes containers first: which sandbox is whose is unknown.

use std::collections::HashSet;
use std::iter;
use std::path::Path;
use std::sync::Arc;

use cria_images::{Digest, ImageId, Lease};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::task::spawn_blocking;

use crate::checkpoint::{self, Checkpoint, ReadError};
use crate::container::{self, Container, ImageUse};
use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::id::{ContainerId, SandboxId};
use crate::node::Node;
use crate::paths;
use crate::retry;
use crate::sandbox::state::State;
use crate::sandbox::{self, Sandbox};

/// What was found on the disk.
struct Found {
    sandboxes: Records<SandboxId, sandbox::Record>,
    containers: Records<ContainerId, container::Record>,
}

struct Records<I, R> {
    read: Vec<R>,
    unreadable: Vec<I>,
    /// Something in the run directory, but no record.
    stray: Vec<I>,
}

/// What nobody was ever told of, or nobody can be told of.
struct Unlisted {
    undo: Vec<Arc<Sandbox>>,
    /// With what they may have mounted.
    discard: Vec<(ContainerId, Vec<Lease>)>,
    stray: Vec<SandboxId>,
    unreadable: (Vec<SandboxId>, Vec<ContainerId>),
}

/// Lists everything again. What cannot be gone on with is dealt with in the background.
pub(crate) async fn recover(daemon: &Arc<Daemon>) -> Result<(), Error> {
    let node = Arc::clone(&daemon.node);
    let found = spawn_blocking(move || find(&node.paths))
        .await
        .map_err(|panic| Error::internal("read the records", panic))?;

    collect_network(daemon, &found.sandboxes).await;
    let mut undo = Vec::new();
    for record in found.sandboxes.read {
        let path = daemon.node.paths.sandbox_record(&record.id);
        let sandbox = Arc::new(Sandbox::of(Checkpoint::loaded(path, record)));
        if sandbox.record.get().complete {
            sandbox.recover(&daemon.node).await;
            daemon.sandboxes.insert(sandbox);
        } else {
            undo.push(sandbox);
        }
    }
    let (complete, half_made): (Vec<_>, Vec<_>) =
        found.containers.read.into_iter().partition(|record| record.complete);
    let containers = complete.into_iter().map(|record| recover_container(daemon, record));
    for container in join_all(containers).await {
        daemon.containers.insert(container);
    }
    let half_made = half_made.into_iter().map(|record| {
        let leases = renew_leases(&daemon.node, &record).collect();
        (record.id, leases)
    });
    let stray = found.containers.stray.into_iter().map(|id| (id, vec![]));
    let discard = half_made.chain(stray).collect();

    // Every lease that a readable record speaks of has been renewed: what nothing uses may go.
    let images = daemon.node.images.clone();
    drop(spawn_blocking(move || images.collect()));
    continue_all(daemon);
    let unlisted = Unlisted {
        undo,
        discard,
        stray: found.sandboxes.stray,
        unreadable: (found.sandboxes.unreadable, found.containers.unreadable),
    };
    tokio::spawn(clear_up(Arc::clone(daemon), unlisted));
    Ok(())
}

fn find(paths: &paths::Paths) -> Found {
    Found {
        sandboxes: records(&paths.sandboxes(), &paths.sandboxes_run(), SandboxId::parse, |id| {
            checkpoint::read(&paths.sandbox_record(id))
        }),
        containers: records(
            &paths.containers(),
            &paths.containers_run(),
            ContainerId::parse,
            |id| checkpoint::read(&paths.container_record(id)),
        ),
    }
}

fn records<I: Clone + Eq + std::hash::Hash, R: DeserializeOwned>(
    kept: &Path,
    run: &Path,
    parse: impl Fn(&str) -> Option<I>,
    read: impl Fn(&I) -> Result<R, ReadError>,
) -> Records<I, R> {
    let ids = paths::ids_below(kept, &parse);
    let known: HashSet<I> = ids.iter().cloned().collect();
    let mut stray = paths::ids_below(run, &parse);
    stray.retain(|id| !known.contains(id));
    let mut records = Records { read: Vec::new(), unreadable: Vec::new(), stray };
    for id in ids {
        match read(&id) {
            Ok(record) => records.read.push(record),
            // The crash came between the directory and its first record.
            Err(ReadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                records.stray.push(id);
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "a record is set aside");
                records.unreadable.push(id);
            }
        }
    }
    records
}

/// Has the plugins free what no sandbox holds. Before anything is attached or detached, and only
/// where they speak of it (CNI 1.1).
async fn collect_network(daemon: &Daemon, sandboxes: &Records<SandboxId, sandbox::Record>) {
    let Ok(network) = daemon.node.cni.network().await else { return };
    let records = sandboxes.read.iter();
    let attachments = records.filter_map(|record| Some(&record.network.as_ref()?.attachment));
    let here = attachments.filter(|attachment| attachment.network.name == network.name);
    // What a record that cannot be read is about may be attached here, and have containers that run.
    let attached = here.map(|attachment| &attachment.sandbox).chain(&sandboxes.unreadable);
    if let Err(error) = daemon.node.cni.gc(&network, attached).await {
        tracing::warn!(error = chain(&error), "CNI GC failed");
    }
}

async fn recover_container(daemon: &Daemon, record: container::Record) -> Arc<Container> {
    let node = &daemon.node;
    let leases: Vec<_> = renew_leases(node, &record).collect();
    let path = node.paths.container_record(&record.id);
    let container = container::recover(node, Checkpoint::loaded(path, record)).await;
    leases.into_iter().for_each(|lease| container.keep(lease));
    container
}

/// Of all that the container mounts.
fn renew_leases(node: &Node, record: &container::Record) -> impl Iterator<Item = Lease> {
    let images = iter::once(&record.image).chain(record.image_volumes.values());
    images.filter_map(|image| {
        renew_lease(node, image)
            .inspect_err(|error| {
                let error = chain(&**error);
                tracing::warn!(container = %record.id, image = image.name, error, "no lease");
            })
            .ok()
    })
}

fn renew_lease(
    node: &Node,
    image: &ImageUse,
) -> Result<Lease, Box<dyn std::error::Error + Send + Sync>> {
    let layers = image.layers.iter().map(|layer| layer.parse());
    let layers: Vec<Digest> = layers.collect::<Result<_, _>>()?;
    let id: Digest = image.id.parse()?;
    Ok(node.images.lease_layers(layers, ImageId::from(id))?)
}

/// What was promised: removals, and pods that were being taken down.
fn continue_all(daemon: &Arc<Daemon>) {
    for container in daemon.containers.all() {
        if container.record.get().removing {
            tokio::spawn(continue_removal(Arc::clone(daemon), container));
        }
    }
    for sandbox in daemon.sandboxes.all() {
        tokio::spawn(continue_taking_down(Arc::clone(daemon), sandbox));
    }
}

async fn clear_up(daemon: Arc<Daemon>, unlisted: Unlisted) {
    for sandbox in unlisted.undo {
        let node = Arc::clone(&daemon.node);
        tokio::spawn(async move { sandbox.undo(&node).await });
    }
    let discard = unlisted.discard.into_iter();
    join_all(discard.map(|(id, leases)| discard_container(&daemon.node, id, leases))).await;
    join_all(unlisted.stray.into_iter().map(|id| discard_sandbox(&daemon, id))).await;
    clear_unreadable(&daemon, unlisted.unreadable).await;
}

async fn discard_container(node: &Arc<Node>, id: ContainerId, leases: Vec<Lease>) {
    let node = Arc::clone(node);
    retry::until_done("clear a container away", id.to_string(), move || {
        let _until_then = &leases;
        let (node, id) = (Arc::clone(&node), id.clone());
        async move { container::discard(&node, &id, None).await }
    })
    .await;
}

/// But not while a container of it lives, whose network it is.
async fn discard_sandbox(daemon: &Daemon, id: SandboxId) {
    let lives = |it: &Arc<Container>| !matches!(it.state(), container::state::State::Exited(_));
    if daemon.containers.all().iter().any(|it| it.sandbox == id && lives(it)) {
        tracing::error!(sandbox = %id, "has containers, but its record cannot be read");
        return;
    }
    let node = Arc::clone(&daemon.node);
    retry::until_done("clear a pod sandbox away", id.to_string(), move || {
        let (node, id) = (Arc::clone(&node), id.clone());
        async move { sandbox::discard(&node, &id).await }
    })
    .await;
}

async fn continue_removal(daemon: Arc<Daemon>, container: Arc<Container>) {
    retry::until_done("continue a removal", container.id.to_string(), move || {
        let (daemon, container) = (Arc::clone(&daemon), Arc::clone(&container));
        async move { daemon.remove_container(&container).await }
    })
    .await;
}

async fn continue_taking_down(daemon: Arc<Daemon>, sandbox: Arc<Sandbox>) {
    retry::until_done("continue to take a pod down", sandbox.id.to_string(), move || {
        let (daemon, sandbox) = (Arc::clone(&daemon), Arc::clone(&sandbox));
        async move {
            let (removing, state) = {
                let record = sandbox.record.get();
                (record.removing, record.state)
            };
            match (removing, state) {
                (true, _) => daemon.remove_sandbox(&sandbox).await,
                (false, State::NotReady) => daemon.stop_sandbox(&sandbox).await,
                (false, State::Ready) => Ok(()),
            }
        }
    })
    .await;
}

/// Nothing is killed for a record that this release cannot read: a container whose monitor answers
/// runs on, unlisted, until somebody mends the record or the node is restarted.
async fn clear_unreadable(
    daemon: &Daemon,
    (sandboxes, containers): (Vec<SandboxId>, Vec<ContainerId>),
) {
    let in_use = join_all(containers.into_iter().map(|id| discard_unless_alive(daemon, id))).await;
    if !in_use.contains(&true) {
        join_all(sandboxes.into_iter().map(|id| discard_sandbox(daemon, id))).await;
    }
}

/// True if it lives.
async fn discard_unless_alive(daemon: &Daemon, id: ContainerId) -> bool {
    let alive = container::is_alive(&daemon.node, &id).await;
    if alive {
        tracing::error!(container = %id, "runs, but its record cannot be read");
    } else {
        discard_container(&daemon.node, id, vec![]).await;
    }
    alive
}
