//! What pods are given: volumes of several kinds, sub paths, variables.

use std::path::Path;

use anyhow::{Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use super::{Case, case};
use crate::site::{Site, ip, read, uid, with};

pub(crate) const CASES: &[Case] = &[
    case("emptyDir shared by containers, on disk and in memory", empty_dirs),
    case("hostPath: folders, files, made and found, read-only", host_paths),
    case("subPath and subPathExpr", sub_paths),
    case("variables from fields and resources", variables),
    case("a downward API volume", downward),
    case("a mount made on the host later is seen inside", propagation),
];

fn mounts(list: Value) -> Value {
    json!({ "volumeMounts": list })
}

fn empty_dirs(site: &Site) -> Result<()> {
    let both = mounts(json!([
        { "name": "disk", "mountPath": "/disk" },
        { "name": "memory", "mountPath": "/memory" },
    ]));
    let writes = "echo by disk > /disk/file; echo by memory > /memory/file; sleep 10000";
    let reads = "until [ -s /memory/file ]; do sleep 0.1; done; cat /disk/file /memory/file; \
                 grep ' /memory ' /proc/mounts | cut -d ' ' -f 3; \
                 df -k /memory | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; echo end; sleep 10000";
    let spec = json!({
        "volumes": [
            { "name": "disk", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
        ],
        "containers": [
            with(site.sh("writes", writes), both.clone()),
            with(site.sh("reads", reads), both),
        ],
    });
    site.apply("empty-dirs", spec);
    site.expect_log("empty-dirs", "reads", &["by disk", "by memory", "tmpfs", "8192"])
}

fn host_paths(site: &Site) -> Result<()> {
    let folder = site.scratch.join("host-paths");
    fs_err::create_dir_all(folder.join("there"))?;
    fs_err::write(folder.join("there/file"), "of the host\n")?;
    let volume = |name: &str, path: &str, kind: &str| json!({ "name": name, "hostPath": { "path": folder.join(path), "type": kind } });
    let list = mounts(json!([
        { "name": "there", "mountPath": "/there", "readOnly": true },
        { "name": "file", "mountPath": "/file" },
        { "name": "made", "mountPath": "/made" },
        { "name": "made-file", "mountPath": "/made-file" },
        { "name": "any", "mountPath": "/any" },
    ]));
    let script = "cat /there/file /file; touch /there/new 2>&- || echo read-only; \
                  echo by pod > /made/file; echo by pod > /made-file; echo by pod > /any/file; \
                  echo end; sleep 10000";
    let spec = json!({
        "volumes": [
            volume("there", "there", "Directory"),
            volume("file", "there/file", "File"),
            volume("made", "made/deep", "DirectoryOrCreate"),
            volume("made-file", "made-file", "FileOrCreate"),
            // Without a type the kubelet makes nothing, and the runtime has to.
            volume("any", "any", ""),
        ],
        "containers": [with(site.sh("main", script), list)],
    });
    site.apply("host-paths", spec);
    site.expect_log("host-paths", "main", &["of the host", "of the host", "read-only"])?;
    for file in ["made/deep/file", "made-file", "any/file"] {
        ensure!(read(folder.join(file))? == "by pod\n", "{file}");
    }
    Ok(())
}

fn sub_paths(site: &Site) -> Result<()> {
    let variable = json!({ "fieldRef": { "fieldPath": "metadata.name" } });
    let more = json!({
        "env": [{ "name": "POD", "valueFrom": variable }],
        "volumeMounts": [
            { "name": "all", "mountPath": "/all" },
            { "name": "all", "mountPath": "/part", "subPath": "a/b" },
            { "name": "all", "mountPath": "/named", "subPathExpr": "of/$(POD)" },
            { "name": "all", "mountPath": "/etc/given", "subPath": "file" },
        ],
    });
    let prepare = with(
        site.sh("prepare", "echo a file > /all/file"),
        mounts(json!([{ "name": "all", "mountPath": "/all" }])),
    );
    let script = "echo 1 > /part/one; echo 2 > /named/two; cd /all; find . -type f | sort; \
                  cat /etc/given; echo end; sleep 10000";
    let spec = json!({
        "volumes": [{ "name": "all", "emptyDir": {} }],
        "initContainers": [prepare],
        "containers": [with(site.sh("main", script), more)],
    });
    site.apply("sub-paths", spec);
    let lines = ["./a/b/one", "./file", "./of/sub-paths-node/two", "a file"];
    site.expect_log("sub-paths", "main", &lines)
}

fn variables(site: &Site) -> Result<()> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let resource = |name: &str, of: &str, unit: &str| json!({ "name": name, "valueFrom": { "resourceFieldRef": { "resource": of, "divisor": unit } } });
    let more = json!({
        "env": [
            field("V1", "metadata.name"),
            field("V2", "metadata.namespace"),
            field("V3", "metadata.uid"),
            field("V4", "status.podIP"),
            field("V5", "spec.nodeName"),
            field("V6", "metadata.labels['test']"),
            resource("V7", "limits.cpu", "1m"),
            resource("V8", "requests.memory", "1Mi"),
            { "name": "V9", "value": "$(V1) and $$(V1)" },
        ],
        "resources": { "limits": { "cpu": "300m", "memory": "64Mi" }, "requests": { "memory": "32Mi" } },
    });
    let script =
        "for n in 1 2 3 4 5 6 7 8 9; do eval echo \\\"\\$V$n\\\"; done; echo end; sleep 10000";
    let spec = json!({ "containers": [with(site.sh("main", script), more)] });
    site.apply("variables", spec);
    let pod = site.ready("variables")?;
    let (uid, ip) = (uid(&pod), ip(&pod));
    site.expect_log(
        "variables",
        "main",
        &[
            "variables-node",
            "default",
            &uid,
            &ip,
            "node",
            "variables",
            "300",
            "32",
            "variables-node and $(V1)",
        ],
    )
}

fn downward(site: &Site) -> Result<()> {
    let item =
        |path: &str, field: &str| json!({ "path": path, "fieldRef": { "fieldPath": field } });
    let list = mounts(json!([{ "name": "told", "mountPath": "/told" }]));
    let script = "cat /told/labels; echo; cat /told/in/name; echo; \
                  touch /told/new 2>&- || echo read-only; echo end; sleep 10000";
    let items = [item("labels", "metadata.labels"), item("in/name", "metadata.name")];
    let spec = json!({
        "volumes": [{ "name": "told", "downwardAPI": { "items": items } }],
        "containers": [with(site.sh("main", script), list)],
    });
    site.apply("downward", spec);
    let lines = ["test=\"downward\"", "downward-node", "read-only"];
    site.expect_log("downward", "main", &lines)
}

fn propagation(site: &Site) -> Result<()> {
    let folder = site.scratch.join("propagation");
    fs_err::create_dir_all(folder.join("point"))?;
    let _mounts = Shared::make(&folder)?;
    let list = mounts(json!([
        { "name": "host", "mountPath": "/seen", "mountPropagation": "HostToContainer" },
        { "name": "host", "mountPath": "/unseen" },
    ]));
    let spec = json!({
        "volumes": [{ "name": "host", "hostPath": { "path": folder, "type": "Directory" } }],
        "containers": [with(site.sh("main", "sleep 10000"), list)],
    });
    site.apply("propagation", spec);
    site.ready("propagation")?;
    let nothing = None::<&str>;
    let point = folder.join("point");
    mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), nothing)?;
    fs_err::write(folder.join("point/file"), "mounted later\n")?;
    ensure!(site.exec("propagation", "main", "cat /seen/point/file")? == "mounted later\n");
    ensure!(site.exec("propagation", "main", "cat /unseen/point/file").is_err());
    Ok(())
}

/// A folder that passes on what is mounted in it, for as long as this lives.
struct Shared<'a>(&'a Path);

impl<'a> Shared<'a> {
    fn make(folder: &'a Path) -> Result<Self> {
        let nothing = None::<&str>;
        mount(Some(folder), folder, nothing, MsFlags::MS_BIND, nothing)?;
        let shared = Self(folder);
        mount(nothing, folder, nothing, MsFlags::MS_SHARED, nothing)?;
        Ok(shared)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // With what is mounted in it; what stays, the node removes.
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}
