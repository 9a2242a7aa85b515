//! Limits of huge pages, on a hierarchy that the test mounts for its node.
//!
//! Apart from the other resources, because the controller leaves the machine's cgroup v2 meanwhile:
//! another node that tries its OCI runtime now would find what holds for this moment only (crun 1.8
//! refuses the hybrid layout if controllers are in its v2 tree).

use std::path::Path;

use cria_proto::*;
use harness::limits::as_seen_from;
use harness::scene::{SOON, Scene};

/// The sizes of huge pages as the CRI names them: `2MB`, `1GB`.
fn page_sizes() -> Vec<String> {
    let folders = Path::new("/sys/kernel/mm/hugepages").read_dir().into_iter().flatten().flatten();
    let kilobytes = folders.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
    });
    kilobytes
        .map(|size| match size {
            1_048_576.. => format!("{}GB", size >> 20),
            1024.. => format!("{}MB", size >> 10),
            _ => format!("{size}KB"),
        })
        .collect()
}

#[test]
fn limits_of_huge_pages_reach_the_kernel_where_it_counts_them() {
    let sizes = page_sizes();
    if sizes.is_empty() {
        println!("not tried: this kernel has no huge pages");
        return;
    }
    let scene = Scene::with(|setup| setup.own_hierarchy("hugetlb"));
    let pod = scene.host("huge");
    let mut config = scene.script("huge", "cat /proc/self/cgroup; echo ready; sleep 1000");
    let limits = |limit: u64| LinuxContainerResources {
        hugepage_limits: sizes
            .iter()
            .map(|page_size| HugepageLimit { page_size: page_size.clone(), limit })
            .collect(),
        ..Default::default()
    };
    config.linux.get_or_insert_default().resources = Some(limits(2 << 30));
    let container = pod.run(config);
    container.await_log("ready", SOON);
    let in_kernel = |size: &str| {
        let (v1, v2) =
            (format!("hugetlb/hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        as_seen_from(&scene.view(), &pod, &container, &v1, &v2)
    };
    for size in &sizes {
        assert_eq!(in_kernel(size), (2_u64 << 30).to_string(), "{size}");
    }
    container.limit(limits(0));
    for size in &sizes {
        assert_eq!(in_kernel(size), "0", "{size}");
    }
    assert_eq!(container.limits().hugepage_limits, limits(0).hugepage_limits);
    assert!(!scene.log().contains("huge pages are not applied"));
}
