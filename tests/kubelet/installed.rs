//! The cria that is installed on this node, as a service of systemd: in a virtual machine, whose
//! files the test may change.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cria_proto::VersionRequest;
use harness::place::Place;
use harness::{Cri, Registry, network, until};

const SOCKET: &str = "/run/cria/cria.sock";
const REGISTRIES: &str = "/etc/containers/registries.conf";
/// Before the package's example in the order of names.
const NETWORK: &str = "/etc/cni/net.d/05-test.conflist";
const READY: Duration = Duration::from_secs(120);

pub(crate) struct Installed {
    cri: Cri,
    place: Place,
    /// What the file of registries held before.
    registries: String,
}

impl Installed {
    /// Tells it of the registries and of the place's network, by a reload.
    pub(crate) fn set_up(registries: &[&Registry]) -> Self {
        let place = Place::take();
        let before = fs_err::read_to_string(REGISTRIES).unwrap_or_default();
        let more: String = registries.iter().map(|registry| known(registry)).collect();
        for folder in [REGISTRIES, NETWORK].map(|path| Path::new(path).parent()) {
            fs_err::create_dir_all(folder.expect("files are in folders")).expect("as root");
        }
        fs_err::write(REGISTRIES, before.clone() + &more).expect("as root");
        let list = network::configure(&place).join("10-test.conflist");
        fs_err::copy(list, NETWORK).expect("as root");
        let installed = Self { cri: Cri::connect(Path::new(SOCKET)), place, registries: before };
        systemctl(&["reload", "cria"]);
        installed.await_ready();
        installed
    }

    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    #[expect(clippy::unused_self, reason = "as those of the other runtimes")]
    pub(crate) fn socket(&self) -> PathBuf {
        SOCKET.into()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// It stays down until [`Installed::resume`].
    #[expect(clippy::needless_pass_by_ref_mut, reason = "as those of the other runtimes")]
    pub(crate) fn kill9(&mut self) {
        systemctl(&["kill", "--kill-whom=main", "--signal=KILL", "cria"]);
        systemctl(&["stop", "cria"]);
    }

    #[expect(clippy::needless_pass_by_ref_mut, reason = "as those of the other runtimes")]
    pub(crate) fn resume(&mut self) {
        systemctl(&["start", "cria"]);
        self.await_ready();
    }

    fn await_ready(&self) {
        until("cria answers", READY, || self.cri.version(VersionRequest::default()).ok());
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // Whatever has failed, the node is to be as it was.
        let _ = self.cri.remove_all_pods();
        let _ = fs_err::write(REGISTRIES, &self.registries);
        let _ = fs_err::remove_file(NETWORK);
        network::take_down(&self.place);
    }
}

fn known(registry: &Registry) -> String {
    let address = registry.address();
    format!("[[registry]]\nprefix = \"{address}\"\nlocation = \"{address}\"\ninsecure = true\n\n")
}

fn systemctl(arguments: &[&str]) {
    let status = Command::new("systemctl").args(arguments).status();
    let status = status.expect("an installed cria is a service of systemd");
    assert!(status.success(), "systemctl {arguments:?}: {status}");
}
