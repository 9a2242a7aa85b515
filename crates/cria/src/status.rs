//! `cria status`: what the running daemon says of itself, for people. It is told over the CRI, in
//! the Status call's own conditions and its `info`, where `crictl info` shows the same.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use cria_images::{PullCounts, PullProgress, Usage};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::cri;

/// A running daemon's answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) version: String,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) images: ImagesStatus,
}

#[derive(Debug, Serialize)]
pub(crate) struct Condition {
    pub(crate) name: String,
    pub(crate) holds: bool,
    /// Why it does not hold; empty if it does.
    pub(crate) why: String,
}

/// The image store and its pulls: the key `images` of the Status call's info.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ImagesStatus {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) pulls: Vec<PullProgress>,
    pub(crate) counts: PullCounts,
}

impl ImagesStatus {
    pub(crate) const KEY: &str = "images";

    pub(crate) fn of(store: &cria_images::Store) -> Self {
        let Usage { bytes, inodes } = store.usage();
        Self { bytes, inodes, pulls: store.pulls(), counts: store.pull_counts() }
    }
}

/// Asks the daemon that listens where the configuration says.
pub(crate) fn ask(config: &Config) -> anyhow::Result<Report> {
    let socket: &Path = config.listen.as_ref();
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    threads
        .block_on(cri::ask_status(socket))
        .with_context(|| format!("no answer from {}", socket.display()))
}

pub(crate) fn render(report: &Report) -> String {
    let mut text = format!("cria {}\n", report.version);
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name:<16}{value}").expect("a string takes everything");
    };
    for condition in &report.conditions {
        let value =
            if condition.holds { "yes".to_owned() } else { format!("no: {}", condition.why) };
        line(&condition.name, &value);
    }
    let ImagesStatus { bytes, inodes, pulls, counts } = &report.images;
    line("images", &format!("{}, {inodes} inodes", size(*bytes)));
    line(
        "pulls",
        &format!(
            "{} succeeded, {} failed, {} given up",
            counts.succeeded, counts.failed, counts.given_up
        ),
    );
    line(
        "",
        &format!(
            "{} layers fetched, {} held already; {} received, {} downloads resumed",
            counts.layers_fetched,
            counts.layers_held,
            size(counts.bytes_received),
            counts.downloads_resumed,
        ),
    );
    for pull in pulls {
        line("pulling", &progress(pull));
    }
    text
}

fn progress(pull: &PullProgress) -> String {
    let PullProgress { image, elapsed_seconds, layers, layers_here, bytes, bytes_here } = pull;
    match layers {
        0 => format!("{image}: asking its registry, for {elapsed_seconds} s"),
        _ => format!(
            "{image}: {layers_here} of {layers} layers, {} of {}, for {elapsed_seconds} s",
            size(*bytes_here),
            size(*bytes),
        ),
    }
}

/// In the largest unit of which there is one.
fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = UNITS.iter().find(|(shift, _)| bytes >> shift > 0);
    let Some((shift, unit)) = fitting else { return format!("{bytes} bytes") };
    let tenths = (bytes >> (shift - 10)) * 10 / 1024;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_units_that_fit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (7 << 30, "7.0 GiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_report_says_what_is_ready_and_how_each_pull_gets_on() {
        let condition = |name: &str, holds, why: &str| Condition {
            name: name.to_owned(),
            holds,
            why: why.to_owned(),
        };
        let pull = |image: &str, layers| PullProgress {
            image: image.to_owned(),
            elapsed_seconds: 12,
            layers,
            layers_here: 3,
            bytes: 90 << 20,
            bytes_here: 45 << 20,
        };
        let report = Report {
            version: "1.2.3".to_owned(),
            conditions: vec![
                condition("RuntimeReady", true, ""),
                condition("NetworkReady", false, "no CNI network"),
            ],
            images: ImagesStatus {
                bytes: 5 << 20,
                inodes: 7,
                pulls: vec![pull("a.example/b:1", 7), pull("a.example/c:1", 0)],
                counts: PullCounts { succeeded: 3, failed: 1, ..PullCounts::default() },
            },
        };
        let expected = "\
cria 1.2.3
RuntimeReady    yes
NetworkReady    no: no CNI network
images          5.0 MiB, 7 inodes
pulls           3 succeeded, 1 failed, 0 given up
                0 layers fetched, 0 held already; 0 bytes received, 0 downloads resumed
pulling         a.example/b:1: 3 of 7 layers, 45.0 MiB of 90.0 MiB, for 12 s
pulling         a.example/c:1: asking its registry, for 12 s
";
        assert_eq!(render(&report), expected);
    }
}
