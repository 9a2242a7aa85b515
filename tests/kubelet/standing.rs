//! Pods that are there from the first moment and through all restarts, and what is seen of them
//! at the end: the images that stay and go, the log's lines, a graceful end.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cria_proto::{ImageStatusRequest, ListImagesRequest};
use flate2::read::GzDecoder;
use harness::cri::image_spec;
use harness::wait::{after, within};
use serde_json::json;

use super::{Case, case};
use crate::images::Images;
use crate::site::{LIMIT, Site, read, with};

pub(crate) const CASES: &[Case] = &[
    case("image garbage collection: unused gone, used kept", image_collection),
    case("a pod from before the restarts ends gracefully", graceful_after_all),
    case("log rotation: no line lost, none torn, none twice", rotation),
];

/// Those that are ended on the way.
pub(crate) const ENDED: [&str; 2] = ["leaver", "enduring"];

/// The first pass that frees an image comes five minutes after the kubelet's start. It frees nothing
/// if a container goes while it looks (it asks for the status of each that it has listed, in the same
/// moment in which the kubelet removes dead ones): then the next one counts.
const COLLECTION: Duration = Duration::from_secs(2 * 5 * 60 + 60);

/// Two thousand lines in a second, until it is told to end.
const CHATTY: &str = "n=0; until [ -e /host/stop ]; do \
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
    for j in 1 2 3 4 5; do n=$((n + 1)); \
    echo \"line $n of a log that is rotated while it is written\"; done; done; sleep 0.05; done; \
    echo \"end of $n\"; sleep 10000";

/// Waits for a file of its name, then ends with a code of its own.
const LEAVER: &str = "until [ -e /host/leave ]; do sleep 0.05; done; echo leaves; exit 42";

/// Puts them up.
pub(crate) fn apply(site: &Site) -> Result<()> {
    fs_err::create_dir_all(site.scratch.join("standing"))?;
    site.apply("chatty", on_host(site, CHATTY));
    site.apply("leaver", with(on_host(site, LEAVER), json!({ "restartPolicy": "Never" })));
    let willing = "trap 'echo the last line; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let spec =
        json!({ "terminationGracePeriodSeconds": 60, "containers": [site.sh("main", willing)] });
    site.apply("enduring", spec);

    let of = |image: &str| json!({ "containers": [with(site.sh("main", "sleep 10000"), json!({ "image": image }))] });
    site.apply("uses-image", of(&site.images.used));
    site.apply("used-image-once", of(&site.images.unused[0]));
    let list = json!({ "volumeMounts": [{ "name": "image", "mountPath": "/image" }] });
    let image = json!({ "reference": site.images.used_as_volume, "pullPolicy": "IfNotPresent" });
    let spec = json!({
        "volumes": [{ "name": "image", "image": image }],
        "containers": [with(site.sh("main", "sleep 10000"), list)],
    });
    site.apply("uses-image-volume", spec);
    site.cri.pull(&site.images.unused[1]);
    Ok(())
}

/// Ends the pod whose image is to go.
pub(crate) fn release_image(site: &Site) -> Result<()> {
    let pod = site.ready("used-image-once")?;
    site.remove("used-image-once");
    site.await_gone(&pod)
}

fn on_host(site: &Site, script: &str) -> serde_json::Value {
    let folder = site.scratch.join("standing");
    let list = json!({ "volumeMounts": [{ "name": "host", "mountPath": "/host" }] });
    json!({
        "volumes": [{ "name": "host", "hostPath": { "path": folder, "type": "Directory" } }],
        "containers": [with(site.sh("main", script), list)],
    })
}

fn image_collection(site: &Site) -> Result<()> {
    let is_there = |image: &String| {
        let request = ImageStatusRequest { image: Some(image_spec(image)), ..Default::default() };
        anyhow::Ok(site.cri.image_status(request)?.image.is_some())
    };
    let gone = within(COLLECTION, || {
        after(Duration::from_secs(1));
        let left: Result<Vec<bool>> = site.images.unused.iter().map(is_there).collect();
        left.ok()?.iter().all(|there| !there).then_some(())
    });
    gone.with_context(|| {
        format!("there still: {:?}; the kubelet: {:?}", tags(site), said_of_collection(site))
    })?;
    let Images { used, used_as_volume, busybox, private, .. } = &site.images;
    for image in [used, used_as_volume, busybox, private] {
        ensure!(is_there(image)?, "{image} is used and gone");
    }
    site.ready("uses-image")?;
    ensure!(site.exec("uses-image-volume", "main", "cat /image/mark")? == "used-as-volume");
    Ok(())
}

fn said_of_collection(site: &Site) -> Vec<String> {
    let log = read(&site.kubelet_log).unwrap_or_default();
    let about = ["garbage collect", "Removing image", "monitor images"];
    let said = log.lines().filter(|line| about.iter().any(|words| line.contains(words)));
    said.map(str::to_owned).collect()
}

fn tags(site: &Site) -> Vec<String> {
    let images = site.cri.list_images(ListImagesRequest::default()).unwrap_or_default().images;
    images.into_iter().flat_map(|image| image.repo_tags).collect()
}

fn graceful_after_all(site: &Site) -> Result<()> {
    let pod = site.ready("enduring")?;
    let mut log = File::open(site.log_folder(&pod, "main").join("0.log"))?;
    site.remove("enduring");
    site.await_gone(&pod)?;
    let mut written = String::new();
    log.read_to_string(&mut written)?;
    ensure!(written.ends_with(" stdout F the last line\n"), "{written}");
    Ok(())
}

fn rotation(site: &Site) -> Result<()> {
    let pod = site.ready("chatty")?;
    let folder = site.log_folder(&pod, "main");
    let many = || rotated(&folder).is_ok_and(|files| files.len() >= 10).then_some(());
    within(LIMIT, many).with_context(|| format!("{:?}", rotated(&folder)))?;
    fs_err::write(site.scratch.join("standing/stop"), "")?;
    let current = folder.join("0.log");
    let ended = || read(&current).ok()?.contains(" stdout F end of ").then_some(());
    within(LIMIT, ended).context("its last line is not in 0.log")?;
    // The kubelet compresses one more file at its next look; nothing is under way when two lists
    // of the folder and all that lies between them agree.
    let mut last = anyhow::anyhow!("never counted");
    let counted = within(LIMIT, || match count(&folder) {
        Ok(lines) => Some(lines),
        Err(error) => {
            last = error;
            after(Duration::from_secs(1));
            None
        }
    });
    let lines = counted.with_context(|| format!("{last:#}"))?;
    println!("    {lines} lines over {} files", rotated(&folder)?.len() + 1);
    Ok(())
}

/// The names of the rotated files, oldest first.
fn rotated(folder: &Path) -> Result<BTreeSet<String>> {
    let names = fs_err::read_dir(folder)?.flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("0.log.")).collect())
}

/// How many lines there are, if they are all there, whole and in order.
fn count(folder: &Path) -> Result<u64> {
    let files = rotated(folder)?;
    ensure!(!files.iter().any(|name| name.ends_with(".tmp")), "one is being compressed");
    let mut text = String::new();
    for name in &files {
        let mut file = File::open(folder.join(name))?;
        if name.ends_with(".gz") {
            GzDecoder::new(file).read_to_string(&mut text)?;
        } else {
            file.read_to_string(&mut text)?;
        }
    }
    text += &read(folder.join("0.log"))?;
    ensure!(files == rotated(folder)?, "rotated while it was read");

    let mut number = 0;
    for line in text.lines() {
        let message = line.split_once(" stdout F ").map(|(_, message)| message);
        let message = message.with_context(|| format!("after line {number}: {line:?}"))?;
        if message == format!("end of {number}") {
            return Ok(number);
        }
        number += 1;
        let wanted = format!("line {number} of a log that is rotated while it is written");
        if message != wanted {
            bail!("{message:?} instead of {wanted:?}");
        }
    }
    bail!("no end after line {number}")
}
