//! Images as other tools make and copy them: buildah, umoci, skopeo.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Registry, TestStore};

/// A folder with what the tools need, and the files that every image has below `/made`.
struct Workshop {
    folder: tempfile::TempDir,
    registry: String,
}

impl Workshop {
    fn new(registry: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        fs_err::create_dir_all(made.join("sticky")).unwrap();
        set_mode(&made.join("sticky"), 0o1777);
        fs_err::write(made.join("file"), "hello").unwrap();
        fs_err::hard_link(made.join("file"), made.join("linked")).unwrap();
        std::os::unix::fs::symlink("file", made.join("soft")).unwrap();
        fs_err::write(made.join("suid"), vec![b'x'; 100_000]).unwrap();
        set_mode(&made.join("suid"), 0o4755);
        Self { folder, registry: registry.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path());
        let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        let own = ["--storage-driver", "vfs", "--root", "root", "--runroot", "run"];
        self.run("buildah", &[&own[..], arguments].concat())
    }

    /// Where a tool is to put an image.
    fn target(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.registry)
    }

    fn copy(&self, source: &str, name: &str, options: &[&str]) {
        let own = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        self.run("skopeo", &[&own[..], options, &[source, &self.target(name)]].concat());
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_other_tools_are_pulled_as_they_were_made() {
    let registry = Registry::start().await;
    let shop = Workshop::new(&registry.host);

    shop.run("umoci", &["init", "--layout", "umoci"]);
    shop.run("umoci", &["new", "--image", "umoci:1"]);
    shop.run("umoci", &["insert", "--image", "umoci:1", "made", "/made"]);
    shop.copy("oci:umoci:1", "umoci:oci", &[]);
    shop.copy("oci:umoci:1", "umoci:docker", &["--format", "v2s2"]);

    let container = shop.buildah(&["from", "scratch"]);
    shop.buildah(&["copy", "--quiet", &container, "made", "/made"]);
    for format in ["oci", "docker"] {
        let target = shop.target(&format!("buildah:{format}"));
        let commit = ["commit", "--quiet", "--tls-verify=false", "--format", format];
        shop.buildah(&[&commit[..], &[&container, &target]].concat());
    }
    let plain = ["commit", "--quiet", "--disable-compression", &container];
    shop.buildah(&[&plain[..], &["oci:plain:1"]].concat());
    shop.copy("oci:plain:1", "skopeo:zstd", &["--dest-compress-format", "zstd"]);
    shop.buildah(&[&plain[..], &["local:1"]].concat());
    let push = ["push", "--quiet", "--tls-verify=false", "--compression-format", "zstd:chunked"];
    shop.buildah(&[&push[..], &["local:1", &shop.target("buildah:chunked")]].concat());

    let made = [
        "umoci:oci",
        "umoci:docker",
        "buildah:oci",
        "buildah:docker",
        "skopeo:zstd",
        "buildah:chunked",
    ];
    for name in made {
        let test = TestStore::new(&[&registry.host]);
        let pulled = test.pull(&format!("{}/{name}", registry.host)).await.unwrap();
        let digest = shop.run(
            "skopeo",
            &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &shop.target(name)],
        );
        assert!(pulled.digests[0].ends_with(&digest), "{name}: {digest}, {:?}", pulled.digests);
        let lease = test.store.lease(&pulled.id).unwrap();
        let lower = lease.lower_directories();
        let root = lower.iter().find(|root| root.join("made/file").exists());
        same(&shop.path("made"), &root.unwrap_or_else(|| panic!("{name}")).join("made"), name);
    }
}

/// Content, modes and links of what was made.
fn same(made: &Path, held: &Path, name: &str) {
    for file in ["file", "suid"] {
        let read = |folder: &Path| fs_err::read(folder.join(file)).unwrap();
        assert_eq!(read(made), read(held), "{name}: {file}");
    }
    for file in ["file", "suid", "sticky"] {
        let mode = |folder: &Path| fs_err::metadata(folder.join(file)).unwrap().mode();
        assert_eq!(mode(made), mode(held), "{name}: {file}");
    }
    assert_eq!(fs_err::read_link(held.join("soft")).unwrap(), Path::new("file"), "{name}");
    let inode = |file: &str| fs_err::metadata(held.join(file)).unwrap().ino();
    assert_eq!(inode("file"), inode("linked"), "{name}");
}
