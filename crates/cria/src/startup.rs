//! From a configuration to a daemon that serves, and back to nothing.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cria_images::{NodeCredentials, Registries, Store, StoreOptions};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::cgroup::Hierarchy;
use crate::cni::{Cni, CniSettings};
use crate::config::Config;
use crate::container::spec::node::NodeFacts;
use crate::daemon::Daemon;
use crate::disk::DiskMeter;
use crate::error::chain;
use crate::lock::RunLock;
use crate::node::{self, Node};
use crate::oci;
use crate::paths::Paths;
use crate::sandbox::namespaces;
use crate::spawner::Spawner;
use crate::{cri, mounts, programs, reaper, recovery};

/// How often what is new in the image store is flushed to the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// What a former daemon's helpers get to end once they are killed.
const ORPHANS_DEADLINE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT. Containers and their monitors live on.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (node, _lock) = spawn_blocking(move || prepare(config)).await??;
    let node = Arc::new(node);
    info!(
        oci_runtime = %node.oci.path().display(), version = node.oci.version,
        reason = node.oci.reason, cgroup_driver = ?node.cgroup_driver, "node is prepared",
    );
    let daemon = Arc::new(Daemon::new(Arc::clone(&node)));
    recovery::recover(&daemon).await?;
    let listener = listen(node.config.listen.as_ref())?;
    let background = [
        tokio::spawn(sync_images(Arc::clone(&node))),
        tokio::spawn(reaper::reap_strangers(Arc::clone(&daemon))),
        tokio::spawn(beat()),
    ];
    info!(
        socket = %node.config.listen.display(), sandboxes = daemon.sandboxes.all().len(),
        containers = daemon.containers.all().len(), version = env!("CARGO_PKG_VERSION"), "serving",
    );
    notify(&[sd_notify::NotifyState::Ready]);

    let reloading = Arc::clone(&node);
    let stop = async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => reload(&reloading).await,
            }
        }
    };
    cri::serve(daemon, listener, stop).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    background.iter().for_each(tokio::task::JoinHandle::abort);
    info!("stopped; the containers live on");
    Ok(())
}

/// Everything that blocks before the first request can be answered.
fn prepare(config: Config) -> anyhow::Result<(Node, RunLock)> {
    let paths = Paths {
        root: config.root.to_path_buf(),
        run: config.run_dir.to_path_buf(),
        netns: config.network.netns_dir.to_path_buf(),
    };
    make_directories(&paths)?;
    let lock = RunLock::take(&paths.run)?;
    mounts::make_private(&paths.run).context("cannot make the run directory a private mount")?;
    namespaces::prepare_netns_dir(&paths.netns)
        .with_context(|| format!("cannot prepare {}", paths.netns.display()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let boot_id = node::boot_id().context("cannot learn the boot id")?;
    let cgroups = Hierarchy::detect().context("cannot find the cgroup hierarchy")?;
    let cgroup_driver = node::cgroup_driver(&config);
    let monitor = programs::find_monitor(&config.runtime)
        .context("cannot find cria-monitor: not beside cria, in $PATH or in /usr/libexec/cria")?;
    let oci_runtime = configured_runtime(&config)?;
    let oci = oci::choose(&oci::Probe {
        configured: oci_runtime.as_deref(),
        run: &paths.run,
        state: &paths.oci_state(),
        monitor: &monitor,
        systemd_cgroup: cgroup_driver == crate::cgroup::Driver::Systemd,
        deadline: config.runtime.create_timeout.get(),
        boot_id: &boot_id,
    })?;
    let facts = node::facts(&config, &paths, &cgroups, &oci)?;
    warn_of_limits(&facts);
    let images = open_images(&config, &paths.root, &boot_id)?;
    let cni = Cni::new(CniSettings {
        conf_dir: config.network.cni_conf_dir.to_path_buf(),
        bin_dirs: config.network.cni_bin_dirs.iter().map(|dir| dir.to_path_buf()).collect(),
        deadline: config.network.cni_timeout.get(),
        mark: paths.run.display().to_string() + ":",
    });
    let found = cni.take_over(ORPHANS_DEADLINE).context("a former daemon's plugin does not end")?;
    if found > 0 {
        warn!(found, "a former daemon had left plugins running");
    }
    let monitors = cgroups.monitors().context("cannot make the monitors' cgroup")?;
    let spawner =
        Spawner::start(monitor, monitors.by_thread).context("cannot enter the monitors' cgroup")?;
    let node = Node {
        config,
        paths,
        spawner,
        oci,
        cgroups,
        cgroup_driver,
        monitor_cgroups: monitors.by_process,
        cni,
        images,
        disk: DiskMeter::new(),
        facts,
        boot_id,
    };
    Ok((node, lock))
}

/// The configured OCI runtime, found; none: any that works.
fn configured_runtime(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    let find = |program: &crate::config::Program| {
        programs::find(program.as_ref())
            .with_context(|| format!("cannot find the OCI runtime {program}"))
    };
    config.runtime.oci_runtime.as_ref().map(find).transpose()
}

fn make_directories(paths: &Paths) -> io::Result<()> {
    let all = [
        paths.root.clone(),
        paths.sandboxes(),
        paths.containers(),
        paths.run.clone(),
        paths.sandboxes_run(),
        paths.containers_run(),
        paths.oci_state(),
    ];
    all.iter().try_for_each(fs_err::create_dir_all)?;
    // What is in there is the containers' business, and nobody else's.
    for directory in [&paths.root, &paths.run] {
        fs_err::set_permissions(directory, std::fs::Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// KEP-2033 asks this of every runtime: what the node does not allow is clamped, and said once.
fn warn_of_limits(facts: &NodeFacts) {
    let missing = node::missing_capabilities(facts);
    if !missing.is_empty() {
        warn!(?missing, "this process lacks capabilities: no container can have them");
    }
    if facts.oom_score_adj_floor > -1000 {
        warn!(floor = facts.oom_score_adj_floor, "oom_score_adj of containers is clamped");
    }
}

fn open_images(config: &Config, root: &Path, boot_id: &str) -> anyhow::Result<Store> {
    let (registries, node_credentials) = sources(config)?;
    let options = StoreOptions {
        parallel_layers: config.images.parallel_layers.into(),
        registries: Arc::new(registries),
        node_credentials,
        ..StoreOptions::new(boot_id)
    };
    Ok(Store::open(root, options)?)
}

/// Where images come from, as the files have it now.
fn sources(config: &Config) -> Result<(Registries, NodeCredentials), cria_images::Error> {
    let registries = Registries::load(Some(&config.images.registries_conf))?;
    let credentials = match &config.images.auth_file {
        Some(file) => NodeCredentials::load(file)?,
        None => NodeCredentials::default(),
    };
    Ok((registries, credentials))
}

/// All or nothing: a file with a mistake leaves what stands.
async fn reload(node: &Arc<Node>) {
    let config = node.config.clone();
    match spawn_blocking(move || sources(&config)).await {
        Ok(Ok((registries, credentials))) => {
            node.images.use_sources(Arc::new(registries), credentials);
            info!("registries and credentials are read again");
        }
        Ok(Err(error)) => warn!(error = chain(&error), "nothing is reloaded"),
        Err(error) => warn!(%error, "nothing is reloaded"),
    }
}

async fn sync_images(node: Arc<Node>) {
    loop {
        tokio::time::sleep(SYNC_INTERVAL).await;
        let images = node.images.clone();
        match spawn_blocking(move || images.sync()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = chain(&error), "cannot sync the image store"),
            Err(error) => warn!(%error, "cannot sync the image store"),
        }
    }
}

/// Whoever held the run directory is gone, so a socket that is still there is nobody's.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    let failed = || format!("cannot listen on {}", socket.display());
    if let Some(directory) = socket.parent() {
        fs_err::create_dir_all(directory)?;
    }
    match fs_err::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(failed)?;
    fs_err::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Tells systemd's watchdog, if it wants to know, that tasks still get their turn.
async fn beat() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(limit / 2).await;
    }
}

/// Without systemd there is nobody to tell.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell systemd");
    }
}
