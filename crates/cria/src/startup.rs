//! From a configuration to a daemon that serves, and back to nothing.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cria_images::{Limits, Store, StoreOptions, Trust};
use rustix::fs::Mode;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::cgroup::{Hierarchy, scope};
use crate::cni::Cni;
use crate::config::Config;
use crate::container::spec::node::{CgroupVersion, NodeFacts};
use crate::daemon::Daemon;
use crate::disk::DiskMeter;
use crate::error::chain;
use crate::live::Live;
use crate::lock::RunLock;
use crate::node::{self, Node, Settings};
use crate::oci;
use crate::paths::Paths;
use crate::release::VERSION;
use crate::reload::{self, ImageSources, Reloader};
use crate::sandbox::namespaces;
use crate::spawner::Spawner;
use crate::{
    cri, farewell, metrics, mounts, programs, reaper, recovery, streaming, systemd, watch,
};

/// How often what is new in the image store is flushed to the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// What a former daemon's helpers get to end once they are killed.
const ORPHANS_DEADLINE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT. Containers and their monitors live on.
pub(crate) async fn run(config: Config, reloader: Reloader) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (node, _lock) = spawn_blocking(move || prepare(config)).await??;
    let node = Arc::new(node);
    info!(
        oci_runtime = %node.oci.path().display(), version = node.oci.version,
        reason = node.oci.reason, cgroup_driver = ?node.cgroup_driver, "node is prepared",
    );
    let (server, clients) = streaming::listen(&node.settings.get().config.streaming).await?;
    let collectors = metrics::listen(node.settings.get().config.metrics.listen).await?;
    let daemon = Arc::new(Daemon::new(Arc::clone(&node), Arc::clone(&server)));
    recovery::recover(&daemon).await?;
    let socket = node.settings.get().config.listen.clone();
    let listener = listen(socket.as_ref())?;
    let background = [
        tokio::spawn(sync_images(Arc::clone(&node))),
        tokio::spawn(reaper::reap_strangers(Arc::clone(&daemon))),
        tokio::spawn(watch::reload_on_change(Arc::clone(&daemon))),
        tokio::spawn(server.serve(clients)),
        tokio::spawn(metrics::serve(Arc::clone(&daemon), collectors)),
        tokio::spawn(systemd::beat()),
        tokio::spawn(systemd::show_status(Arc::clone(&daemon))),
    ];
    info!(
        socket = %socket.display(), sandboxes = daemon.sandboxes.all().len(),
        containers = daemon.containers.all().len(), version = VERSION, "serving",
    );
    systemd::ready(&daemon);

    let reloading = Arc::clone(&daemon);
    let stop = async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => {
                    systemd::reloading();
                    reloader.reload(&reloading).await;
                    systemd::ready(&reloading);
                }
            }
        }
    };
    cri::serve(Arc::clone(&daemon), listener, stop).await;
    systemd::stopping();
    background.iter().for_each(tokio::task::JoinHandle::abort);
    farewell::take_leave(&daemon).await;
    info!("stopped; the containers live on");
    Ok(())
}

/// Everything that blocks before the first request can be answered.
fn prepare(config: Config) -> anyhow::Result<(Node, RunLock)> {
    // Users of containers read some of the files that are made here.
    rustix::process::umask(Mode::from_raw_mode(0o022));
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
        cgroups: &cgroups,
        deadline: config.runtime.create_timeout.get(),
        boot_id: &boot_id,
    })?;
    let facts = node::facts(&config, &paths, &cgroups, &oci)?;
    warn_of_limits(&facts);
    let image_directory = config.images.directory.as_deref().unwrap_or(&paths.root).to_owned();
    let images = open_images(&config, &image_directory, &boot_id)?;
    let images_mountpoint = mountpoint(&image_directory, &paths.root)
        .with_context(|| format!("cannot look at {}", image_directory.display()))?;
    let cni = Cni::new(reload::cni_settings(&config), paths.run.display().to_string() + ":");
    let found = cni.take_over(ORPHANS_DEADLINE).context("a former daemon's plugin does not end")?;
    if found > 0 {
        warn!(found, "a former daemon had left plugins running");
    }
    let monitors = cgroups.monitors().context("cannot make the monitors' cgroup")?;
    let spawner =
        Spawner::start(monitor, monitors.by_thread).context("cannot enter the monitors' cgroup")?;
    let node = Node {
        settings: Live::new(Settings { config, facts }),
        paths,
        spawner,
        oci,
        cgroups,
        cgroup_driver,
        unit: scope::unit_of(&fs_err::read_to_string("/proc/self/cgroup")?),
        monitor_cgroups: monitors.by_process,
        cni,
        images,
        images_mountpoint,
        disk: DiskMeter::new(),
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
    // Root file systems have set-uid programs, bundles have environments, and everybody may write to a
    // pod's shared memory: what a container is to have of them is mounted for it. One with a user
    // namespace would have to pass through.
    for directory in
        [paths.sandboxes(), paths.sandboxes_run(), paths.containers(), paths.containers_run()]
    {
        fs_err::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// KEP-2033 asks this of every runtime: what the node does not allow is clamped, and said once.
fn warn_of_limits(facts: &NodeFacts) {
    let missing = node::missing_capabilities(facts);
    if !missing.is_empty() {
        warn!(?missing, "this process lacks capabilities: no container can have them");
    }
    if node::no_new_privs() {
        warn!("this process has no_new_privs: every container has it, whatever its pod asks");
    }
    if facts.oom_score_adj_floor > -1000 {
        warn!(floor = facts.oom_score_adj_floor, "oom_score_adj of containers is clamped");
    }
    if !facts.cgroups.hugetlb {
        warn!("there is no hugetlb controller: limits of huge pages are not applied");
    }
    if !facts.cgroups.swap {
        warn!("swap is not accounted: limits of it are not applied");
    }
    if facts.cgroups.version == CgroupVersion::V1 {
        warn!("there is no cgroup v2 to write to: `unified` limits are not applied");
    }
}

/// Two names of one filesystem would be two filesystems to the kubelet.
fn mountpoint(images: &Path, root: &Path) -> io::Result<PathBuf> {
    let device = |path: &Path| Ok::<_, io::Error>(fs_err::metadata(path)?.dev());
    let path = if device(images)? == device(root)? { root } else { images };
    Ok(path.to_owned())
}

fn open_images(config: &Config, root: &Path, boot_id: &str) -> anyhow::Result<Store> {
    fs_err::create_dir_all(root)?;
    fs_err::set_permissions(root, std::fs::Permissions::from_mode(0o711))?;
    let additional = config.images.additional_stores.iter();
    let sources = ImageSources::read(config, &Trust::default())?;
    if let Some(file) = config.images.auth_file.as_ref().filter(|file| !file.exists()) {
        warn!(file = %file.display(), "there is no auth-file yet: pulls without credentials are anonymous");
    }
    if !sources.trust.has_policy() {
        let policy = config.images.policy_file.display();
        info!(%policy, "there is no policy: every image is taken, signed or not");
    }
    let options = StoreOptions {
        parallel_layers: config.images.parallel_layers.into(),
        registries: Arc::new(sources.registries),
        node_credentials: sources.credentials,
        trust: sources.trust,
        additional_stores: additional.map(|directory| directory.to_path_buf()).collect(),
        certificates: sources.certificates,
        pinned: config.images.pinned.iter().map(ToString::to_string).collect(),
        limits: Limits {
            bytes: u64::from(config.images.max_layer_gib.get()) << 30,
            ..Limits::default()
        },
        ..StoreOptions::new(boot_id)
    };
    Ok(Store::open(root, options)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_root_comes_to_a_root_file_system_even_of_an_earlier_release() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let paths = Paths { root: at("root"), run: at("run"), netns: at("netns") };
        let closed = [paths.containers(), paths.containers_run()];
        for path in &closed {
            fs_err::create_dir_all(path).unwrap();
            fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        make_directories(&paths).unwrap();
        let mode = |path: &Path| fs_err::metadata(path).unwrap().permissions().mode() & 0o7777;
        for (path, expected) in [(&closed[0], 0o700), (&closed[1], 0o700), (&paths.root, 0o711)] {
            assert_eq!(mode(path), expected, "{}", path.display());
        }
    }
}
