//! What `make deb`, `make rpm` and the recipe of the node image make: installed, upgraded, removed and purged
//! in a Debian of their own, where no systemd runs. (With one, and with running pods, it is a matter for the
//! virtual machine.)

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use fs_err as fs;
use harness::{Node, tools};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A Debian to install into: what is written is gone when this value is dropped.
struct Root {
    folder: TempDir,
}

impl Root {
    fn new() -> Self {
        let base = said(command("packaging/node-image/build").arg("--base"));
        let root = Self { folder: TempDir::new().expect("a folder") };
        let layers = ["upper", "work", "root"].map(|name| root.folder.path().join(name));
        layers.iter().for_each(|folder| fs::create_dir(folder).expect("a folder"));
        let [upper, work, merged] = layers.each_ref().map(|folder| folder.display());
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", base.trim());
        mount(Some("overlay"), &root.path(), Some("overlay"), MsFlags::empty(), Some(&*options))
            .unwrap_or_else(|error| panic!("{merged}: {error}"));
        root
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn has(&self, path: &str) -> bool {
        self.at(path).symlink_metadata().is_ok()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.path().join(path.trim_start_matches('/'))
    }

    /// Runs a script of sh in there, and answers what it said on both outputs.
    fn run(&self, script: &str) -> String {
        said(&mut inside(&self.path(), script))
    }

    /// Puts `package` where scripts find it as `/tmp/NAME`.
    fn bring(&self, package: &Path) -> String {
        let name = package.file_name().expect("a file").to_str().expect("our own name");
        fs::copy(package, self.at("tmp").join(name)).expect("copied");
        format!("/tmp/{name}")
    }

    /// Everything outside of the package manager's own books that has cria in its name.
    fn traces(&self) -> String {
        self.run("find / -xdev -name '*cria*' -not -path '/tmp/*' -not -path '/var/log/*' | sort")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path(), MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", self.path().display());
        }
    }
}

/// A script in the root filesystem `root`, with mounts and processes of its own that end with it.
fn inside(root: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "chroot"]).arg(root);
    command.args(["sh", "-euc", &format!("mount -t proc proc /proc; exec 2>&1; {script}")]);
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn command(script: &str) -> Command {
    Command::new(tools::workspace().join(script))
}

fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it can be run");
    let out = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {out}{}", String::from_utf8_lossy(&stderr));
    out
}

/// The packages of the binaries under test, in two revisions each.
static DEBS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| packages("deb"));
static RPMS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| packages("rpm"));

fn packages(kind: &str) -> [PathBuf; 2] {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    fs::create_dir_all(&folder).expect("a folder");
    ["1", "2"].map(|revision| {
        let mut build = command(&format!("packaging/{kind}/build"));
        // To unpack is the same either way; to pack, xz takes a hundred times as long.
        build.env("DPKG_DEB_COMPRESSOR_TYPE", "zstd");
        said(build.env("CRIA_REVISION", revision).env("CRIA_PACKAGES", &folder)).trim().into()
    })
}

/// What one finds on a node that has the package.
const INSTALLED: &[&str] = &[
    "/etc/crictl.yaml",
    "/etc/cria/cria.toml",
    "/etc/cria/cria.toml.d",
    "/usr/bin/cria",
    "/usr/lib/modules-load.d/cria.conf",
    "/usr/lib/sysctl.d/50-cria.conf",
    "/usr/lib/systemd/system/cria.service",
    "/usr/lib/tmpfiles.d/cria.conf",
    "/usr/libexec/cria/cria-monitor",
    "/usr/share/bash-completion/completions/cria",
    "/usr/share/cria/cni/10-cria-bridge.conflist",
    "/usr/share/doc/cria/licences.gz",
    "/usr/share/fish/vendor_completions.d/cria.fish",
    "/usr/share/man/man5/cria.toml.5.gz",
    "/usr/share/man/man8/cria.8.gz",
];

const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/cria.service";

fn assert_installed(root: &Root) {
    let absent = |path: &&&str| !root.has(path);
    // The base leaves documentation out, as node images do.
    let documentation = |path: &&&str| path.contains("/man/") || path.contains("/doc/");
    let missing: Vec<_> =
        INSTALLED.iter().filter(|path| !documentation(path)).filter(absent).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(root.run("cria version").starts_with(&format!("cria {VERSION},")));
    let config = root.run("cria config");
    assert!(config.contains("/run/cria/cria.sock"), "{config}");
    assert!(!root.has("/etc/cni/net.d/10-cria-bridge.conflist"), "the example is not active");
}

#[test]
fn the_deb_is_installed_upgraded_removed_and_purged() {
    let root = Root::new();
    let [first, second] = DEBS.each_ref().map(|deb| root.bring(deb));

    root.run(&format!("dpkg --install {first}"));
    assert_installed(&root);
    assert!(root.has(ENABLED), "Debian enables what it installs");
    let unit = root.run("systemd-analyze verify --man=no cria.service");
    assert!(!unit.contains("cria.service"), "{unit}");

    let edited = "log-level = \"warn\"\n";
    fs::write(root.at("/etc/cria/cria.toml"), edited).expect("written");
    root.run("systemctl disable cria.service");
    let said = root.run(&format!("dpkg --install {second}"));
    assert!(said.contains("-2) over"), "{said}");
    assert_installed(&root);
    assert_eq!(fs::read_to_string(root.at("/etc/cria/cria.toml")).expect("kept"), edited);
    assert!(!root.has(ENABLED), "an administrator's choice outlives an upgrade");

    fs::create_dir_all(root.at("/var/lib/cria/images")).expect("made");
    fs::write(root.at("/etc/cria/cria.toml.d/50-own.toml"), "").expect("written");
    root.run("dpkg --remove cria");
    for (path, stays) in [
        ("/usr/bin/cria", false),
        ("/usr/libexec/cria", false),
        ("/etc/cria/cria.toml", true),
        ("/var/lib/cria/images", true),
    ] {
        assert_eq!(root.has(path), stays, "{path}");
    }

    root.run("dpkg --purge cria");
    assert_eq!(root.traces(), "", "nothing is left");
    assert!(!root.has("/etc/crictl.yaml"));
}

#[test]
fn a_deb_holds_all_that_a_node_is_to_find_documentation_too() {
    let listed = said(Command::new("dpkg-deb").arg("--contents").arg(&DEBS[0]));
    let held: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    let own = ["/usr/share/doc/cria/copyright", "/usr/share/zsh/vendor-completions/_cria"];
    for path in INSTALLED.iter().chain(&own) {
        let found =
            held.iter().any(|held| held.trim_start_matches('.').trim_end_matches('/') == *path);
        assert!(found, "{path} is not in {listed}");
    }
}

#[test]
fn a_removal_says_how_many_containers_run_on() {
    let root = Root::new();
    let deb = root.bring(&DEBS[0]);
    root.run(&format!("dpkg --install {deb}"));
    // One runs; one has ended, and its monitor waits for a daemon to tell.
    for container in ["aa", "bb"] {
        let folder = root.at("/run/cria/containers").join(container);
        fs::create_dir_all(&folder).expect("made");
        drop(std::os::unix::net::UnixListener::bind(folder.join("monitor.sock")).expect("bound"));
    }
    fs::write(root.at("/run/cria/containers/bb/exit"), "").expect("written");
    let said = root.run("dpkg --remove cria");
    assert!(said.contains("1 containers run on"), "{said}");
}

#[test]
fn a_purge_unmounts_what_is_cria_s_and_nothing_else() {
    let root = Root::new();
    let deb = root.bring(&DEBS[0]);
    root.run(&format!("dpkg --install {deb}"));
    // The state has a disk of its own, as nodes have it; some data beside it is another's.
    let said = root.run(
        "mount -t tmpfs none /run
         mkdir -p /srv/disk /var/lib/cria /var/lib/cria-data /run/cria /run/netns
         mount --bind /srv/disk /var/lib/cria
         mount -t tmpfs none /var/lib/cria-data
         mount --bind /run/cria /run/cria
         mkdir -p /run/cria/sandboxes/bb /run/cria/containers/aa/rootfs /var/lib/cria/containers/aa/upper
         touch /run/cria/sandboxes/bb/ipc /run/netns/cria-bb /run/netns/cria-of-another
         mount -t tmpfs none /run/cria/containers/aa/rootfs
         mkdir /run/cria/containers/aa/rootfs/deep
         mount -t tmpfs none /run/cria/containers/aa/rootfs/deep
         mount -t tmpfs none /var/lib/cria/containers/aa/upper
         mount --bind /proc/self/ns/ipc /run/cria/sandboxes/bb/ipc
         mount --bind /proc/self/ns/net /run/netns/cria-bb
         mount --bind /proc/self/ns/net /run/netns/cria-of-another
         dpkg --purge cria
         echo left:
         cut -d ' ' -f 5 /proc/self/mountinfo | grep -E 'cria|netns' | sort
         ls -d /run/cria* /run/netns/* /srv/disk/* 2>/dev/null || true",
    );
    let left = said.split_once("left:\n").expect("it ran to the end").1;
    let expected = [
        "/run/netns/cria-of-another",
        "/var/lib/cria",
        "/var/lib/cria-data",
        "/run/netns/cria-of-another",
    ];
    assert_eq!(left.lines().collect::<Vec<_>>(), expected, "{said}");
}

#[test]
fn the_rpm_is_installed_upgraded_and_erased() {
    let [first, second] = &*RPMS;
    let listed = said(Command::new("rpm").arg("-qpl").arg(first));
    for path in INSTALLED {
        assert!(listed.lines().any(|line| line == *path), "{path}: {listed}");
    }
    let configuration = said(Command::new("rpm").arg("-qpc").arg(first));
    assert_eq!(configuration, "/etc/cria/cria.toml\n/etc/crictl.yaml\n");

    let root = Root::new();
    // Debian's libraries and OCI runtimes are in no rpm database.
    let rpm = |arguments: &[&str], package: &Path| {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(root.path()).args(["--dbpath", "/var/lib/rpm", "--nodeps"]);
        said(rpm.args(arguments).arg(package))
    };
    rpm(&["--install"], first);
    assert_installed(&root);
    assert!(root.has(ENABLED), "Debian's presets enable everything");

    let edited = "log-level = \"warn\"\n";
    fs::write(root.at("/etc/cria/cria.toml"), edited).expect("written");
    rpm(&["--upgrade"], second);
    assert_installed(&root);
    assert_eq!(fs::read_to_string(root.at("/etc/cria/cria.toml")).expect("kept"), edited);

    fs::create_dir_all(root.at("/var/lib/cria/images")).expect("made");
    rpm(&["--erase"], Path::new("cria"));
    assert!(!root.has("/usr/bin/cria") && !root.has("/usr/libexec/cria") && !root.has(ENABLED));
    assert!(root.has("/var/lib/cria/images"), "state stays");
    assert!(root.has("/etc/cria/cria.toml.rpmsave"), "and so does what was edited");
}

/// The node image, built by its recipe, and removed with this value.
struct Image {
    folder: TempDir,
}

impl Image {
    fn build() -> Self {
        let folder = TempDir::new().expect("a folder");
        let image = Self { folder };
        said(command("packaging/node-image/build").arg(&DEBS[0]).arg(image.root()));
        image
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Runs a script as on a node that boots the image: nothing of it can be written, /etc, /var and /run
    /// are empty, and systemd-tmpfiles has made what the image says.
    fn run(&self, script: &str) -> String {
        let first_boot = "mount -o remount,ro,bind / 2>/dev/null || mount -o remount,ro /
            for empty in etc var run tmp; do mount -t tmpfs none /$empty; done
            : >/etc/passwd; : >/etc/group
            systemd-tmpfiles --create var.conf cria.conf cria-node.conf 2>/dev/null || true
            systemctl preset-all >/dev/null 2>&1 || true";
        let root = self.root();
        let bound = format!(
            "mount --bind {root} {root} && cd {root} && exec chroot . sh -euc \"$0\"",
            root = root.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &bound]);
        command.arg(format!("mount -t proc proc /proc; exec 2>&1; {first_boot}\n{script}"));
        said(&mut command)
    }
}

#[test]
fn a_node_image_boots_with_nothing_but_its_usr() {
    let image = Image::build();
    let kept = image.root();
    assert!(kept.join(&ENABLED[1..]).symlink_metadata().is_ok(), "enabled in the image");
    assert!(!kept.join("etc/cria/cria.toml").exists(), "configuration is drop-ins");

    let said = image.run("touch /usr/bin/x 2>&1 || true; cria version; systemctl is-enabled cria");
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(said.contains(&format!("cria {VERSION},")), "{said}");
    assert!(said.trim().ends_with("enabled"), "by the preset, in an empty /etc: {said}");

    let config = image.run("cria config");
    assert!(config.contains("oci-runtime = \"/usr/bin/crun\""), "the image's drop-in: {config}");
    let bare = image.run("rm -r /etc/cria; cria config");
    assert!(bare.contains("/run/cria/cria.sock"), "without any file, the defaults: {bare}");

    let folders =
        image.run("stat -c '%a %n' /var/lib/cria /run/cria; ls -d /opt/cni/bin /etc/crictl.yaml");
    let expected = ["711 /var/lib/cria", "711 /run/cria", "/etc/crictl.yaml", "/opt/cni/bin"];
    assert_eq!(folders.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn one_version_is_stated_and_all_agree() {
    assert_eq!(said(&mut command("packaging/version")).trim(), VERSION);
    let program = said(Command::new(tools::binary("cria")).arg("version"));
    assert!(program.starts_with(&format!("cria {VERSION}, for Kubernetes ")), "{program}");

    let deb = said(Command::new("dpkg-deb").arg("--field").arg(&DEBS[0]).arg("Version"));
    assert_eq!(deb.trim(), format!("{VERSION}-1"));
    let rpm = said(Command::new("rpm").args(["-qp", "--queryformat", "%{VERSION}"]).arg(&RPMS[0]));
    assert_eq!(rpm, VERSION);

    let node = Node::setup().start();
    let answer = node.cri().version(cria_proto::VersionRequest::default()).expect("it answers");
    assert_eq!((&*answer.runtime_name, &*answer.runtime_version), ("cria", VERSION));

    // The API that is served is the same release's.
    let minor = VERSION.rsplit_once('.').expect("three numbers").0;
    let proto =
        fs::read_to_string(tools::workspace().join("proto/README.md")).expect("it is there");
    assert!(proto.contains(&format!("**Kubernetes {minor}**")), "proto/README.md");
}
