//! TEMPORARY
use std::path::{Path, PathBuf};
use std::io;
use std::collections::BTreeMap;
use cria_monitor::protocol::ContainerCgroup;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver { Systemd, Cgroupfs }
#[derive(Clone, Debug)]
pub(crate) struct Hierarchy;
impl Hierarchy {
    pub(crate) fn detect() -> io::Result<Self> { Ok(Self) }
    pub(crate) fn check_parent(&self, _driver: Driver, _parent: &str) -> Result<(), io::Error> { Ok(()) }
    fn path(parent: &str, id: &str) -> PathBuf { Path::new("/").join(parent.trim_start_matches('/')).join(id) }
    pub(crate) fn oci_path(&self, _driver: Driver, parent: &str, id: &str) -> String { Self::path(parent, id).display().to_string() }
    pub(crate) fn monitored(&self, _driver: Driver, parent: &str, id: &str) -> ContainerCgroup {
        let p = Self::path(parent, id); let rel = p.strip_prefix("/").expect("absolute");
        ContainerCgroup { oom_counter: Some(Path::new("/sys/fs/cgroup/memory").join(rel).join("memory.oom_control")), processes: Some(Path::new("/sys/fs/cgroup/pids").join(rel).join("cgroup.procs")), kill: None, freezer: Some(Path::new("/sys/fs/cgroup/freezer").join(rel).join("freezer.state")) }
    }
    pub(crate) fn remove_container(&self, _id: &str) -> io::Result<()> { Ok(()) }
    pub(crate) fn remove_own_parent(&self, _parent: &str, _id: &str) -> io::Result<()> { Ok(()) }
    pub(crate) fn write_unified(&self, _parent: &str, _id: &str, _unified: &BTreeMap<String, String>) -> io::Result<()> { Ok(()) }
}
impl Hierarchy { pub(crate) fn facts(&self) -> crate::container::spec::node::CgroupFacts { crate::container::spec::node::CgroupFacts { version: crate::container::spec::node::CgroupVersion::V1, swap: true, hugetlb: false } } }
