//! Images as volumes (KEP-4639), which are on by default.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Case, case, ours};
use crate::site::{Site, status, text, with};

pub(crate) const CASES: &[Case] = &[
    case("image volumes: several, pulled always, read-only", several),
    case("image volumes: one image in several pods, one after the other too", shared),
    case("image volumes: a sub path", sub_path),
    case("image volumes: an image that is nowhere: ErrImagePull, ImagePullBackOff", missing),
    ours("image volumes: a sub path that is not there: ImageVolumeMountFailed", missing_sub_path),
    ours("image volumes: an artifact's files", artifact),
];

fn volume(name: &str, image: &str, policy: &str) -> Value {
    json!({ "name": name, "image": { "reference": image, "pullPolicy": policy } })
}

/// A container that shows what it finds, and then stays.
fn reads(site: &Site, script: &str, mounts: Value) -> Value {
    let script = format!("{script}; echo end; sleep 10000");
    with(site.sh("main", &script), json!({ "volumeMounts": mounts }))
}

fn several(site: &Site) -> Result<()> {
    let mounts = json!([
        { "name": "layers", "mountPath": "/layers" },
        { "name": "busybox", "mountPath": "/busybox" },
        { "name": "layers", "mountPath": "/again/deep" },
    ]);
    let script = "cat /layers/top /layers/folder/bottom /again/deep/top; ls /layers; \
                  /busybox/bin/busybox echo runs; touch /layers/new 2>&- || echo read-only";
    let spec = json!({
        "volumes": [
            volume("layers", &site.images.volume, "Always"),
            volume("busybox", &site.images.always, "IfNotPresent"),
        ],
        "containers": [reads(site, script, mounts)],
    });
    site.apply("image-volumes", spec);
    let lines = ["top", "bottom", "top", "folder", "top", "runs", "read-only"];
    site.expect_log("image-volumes", "main", &lines)?;
    let requests = site.registries.open.requests();
    let asked =
        |line: &&String| line.contains(" /v2/volume/manifests/1 200") && !line.starts_with("PUT");
    ensure!(requests.iter().any(|line| asked(&line)), "{requests:#?}");
    Ok(())
}

fn shared(site: &Site) -> Result<()> {
    let mounts = || json!([{ "name": "image", "mountPath": "/image" }]);
    let spec = || {
        json!({
            "volumes": [volume("image", &site.images.volume, "IfNotPresent")],
            "containers": [reads(site, "cat /image/top", mounts())],
        })
    };
    let names = ["image-volume-1", "image-volume-2", "image-volume-3"];
    names.iter().for_each(|name| site.apply(name, spec()));
    for name in names {
        site.expect_log(name, "main", &["top"])?;
    }
    // What one pod takes away with it is not the others'.
    let first = site.ready(names[0])?;
    site.remove(names[0]);
    site.await_gone(&first)?;
    for name in &names[1..] {
        ensure!(site.exec(name, "main", "cat /image/folder/bottom")? == "bottom\n", "{name}");
    }
    site.apply("image-volume-4", spec());
    site.expect_log("image-volume-4", "main", &["top"])
}

fn sub_path(site: &Site) -> Result<()> {
    let mounts = json!([
        { "name": "image", "mountPath": "/part", "subPath": "folder" },
        { "name": "image", "mountPath": "/all" },
    ]);
    let spec = json!({
        "volumes": [volume("image", &site.images.volume, "IfNotPresent")],
        "containers": [reads(site, "ls /part; cat /part/bottom /all/top", mounts)],
    });
    site.apply("image-sub-path", spec);
    site.expect_log("image-sub-path", "main", &["bottom", "bottom", "top"])
}

fn missing(site: &Site) -> Result<()> {
    let mounts = json!([{ "name": "image", "mountPath": "/image" }]);
    let spec = json!({
        "volumes": [volume("image", &site.images.missing, "IfNotPresent")],
        "containers": [reads(site, "true", mounts)],
    });
    site.apply("missing-volume", spec);
    site.waited_for("missing-volume", "ErrImagePull")?;
    site.waited_for("missing-volume", "ImagePullBackOff")
}

fn missing_sub_path(site: &Site) -> Result<()> {
    let mounts = json!([{ "name": "image", "mountPath": "/part", "subPath": "no/such" }]);
    let spec = json!({
        "volumes": [volume("image", &site.images.volume, "IfNotPresent")],
        "containers": [reads(site, "true", mounts)],
    });
    site.apply("missing-sub-path", spec);
    site.waited_for("missing-sub-path", "CreateContainerError")?;
    site.pod("missing-sub-path", "told why", |pod| {
        let message = text(&status(pod, "main")["state"]["waiting"]["message"]);
        let told = message.contains("ImageVolumeMountFailed") && message.contains("no/such");
        told.then_some(())
    })
}

fn artifact(site: &Site) -> Result<()> {
    let mounts = json!([
        { "name": "image", "mountPath": "/all" },
        { "name": "image", "mountPath": "/part", "subPath": "deep" },
    ]);
    let script = "cat /all/deep/model /part/model /all/readme";
    let spec = json!({
        "volumes": [volume("image", &site.images.artifact, "Always")],
        "containers": [reads(site, script, mounts)],
    });
    site.apply("artifact-volume", spec);
    site.expect_log("artifact-volume", "main", &["weights", "weights", "read me"])
}
