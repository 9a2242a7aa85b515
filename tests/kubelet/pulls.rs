//! Images as pods ask for them: those that come, and why others do not.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Case, case, ours};
use crate::site::{Site, restarts, status, text, with};

pub(crate) const CASES: &[Case] = &[
    case("an image that is nowhere: ErrImagePull, ImagePullBackOff", missing),
    case("an image that may not be pulled: ErrImageNeverPull", never),
    ours("a registry that is down: RegistryUnavailable", unavailable),
    case("a private image by the node's config.json", private),
    case("imagePullPolicy Always: the registry is asked at every start", always),
    case("image names and digests in a status", identity),
];

fn of_image(site: &Site, image: &str, policy: &str) -> serde_json::Value {
    let more = json!({ "image": image, "imagePullPolicy": policy });
    json!({ "containers": [with(site.sh("main", "sleep 10000"), more)] })
}

fn missing(site: &Site) -> Result<()> {
    site.apply("missing-image", of_image(site, &site.images.missing, "IfNotPresent"));
    site.waited_for("missing-image", "ErrImagePull")?;
    site.waited_for("missing-image", "ImagePullBackOff")
}

fn never(site: &Site) -> Result<()> {
    site.apply("never-pulled", of_image(site, &site.images.missing, "Never"));
    site.waited_for("never-pulled", "ErrImageNeverPull")
}

fn unavailable(site: &Site) -> Result<()> {
    site.apply("registry-down", of_image(site, &site.images.unreachable, "IfNotPresent"));
    site.waited_for("registry-down", "RegistryUnavailable")
}

fn private(site: &Site) -> Result<()> {
    site.apply("private-image", of_image(site, &site.images.private, "Always"));
    site.ready("private-image").map(drop)
}

fn always(site: &Site) -> Result<()> {
    let more = json!({
        "image": site.images.always,
        "imagePullPolicy": "Always",
        "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }],
    });
    let script = "test -e /shared/tried && exit 0; touch /shared/tried; exit 1";
    let spec = json!({
        "restartPolicy": "OnFailure",
        "volumes": [{ "name": "shared", "emptyDir": {} }],
        "containers": [with(site.sh("main", script), more)],
    });
    site.apply("always-pulled", spec);
    site.ended("always-pulled", "Succeeded")?;
    let requests = site.registries.open.requests();
    let of_manifest = |line: &&String| {
        line.contains(" /v2/always/manifests/")
            && line.ends_with(" 200")
            && !line.starts_with("PUT")
    };
    let asked = requests.iter().filter(of_manifest).count();
    ensure!(asked >= 2, "asked {asked} times: {requests:#?}");
    Ok(())
}

fn identity(site: &Site) -> Result<()> {
    site.apply("by-tag", of_image(site, &site.images.pushed.reference, "IfNotPresent"));
    site.apply("by-digest", of_image(site, &site.images.pushed.by_digest, "IfNotPresent"));
    for (name, asked) in
        [("by-tag", &site.images.pushed.reference), ("by-digest", &site.images.pushed.by_digest)]
    {
        let pod = site.ready(name)?;
        let status = status(&pod, "main");
        ensure!(restarts(&pod, "main") == 0);
        ensure!(text(&status["imageID"]).ends_with(&site.images.pushed.by_digest), "{status}");
        // Others say one of the image's tags, whichever was asked for.
        ensure!(!site.is_cria || text(&status["image"]) == *asked, "{status}");
    }
    Ok(())
}
