//! Pulls of images that are not there yet, what they cost the daemon, and what it keeps of them.

use std::path::Path;
use std::process::Command;

use cria_proto::{ImageSpec, RemoveImageRequest};

use super::rate::count;
use super::standing::daemon_rss;
use super::{Mark, Row, Value, in_turns};
use crate::images::{Images, Pulled, Shape};
use crate::plan::Plan;
use crate::process;
use crate::sample::{median, timed};
use crate::subject::Subject;

/// One pull.
struct Sample {
    seconds: f64,
    /// Of the daemon's processor time.
    processor: f64,
    /// The daemon's highest resident set in its course.
    peak_mib: f64,
}

pub(super) fn rows(subjects: &[Subject], images: &Images, plan: &Plan) -> Vec<Row> {
    let mut rows = vec![];
    for pulled in &images.pulls {
        plan.progress(&format!("the pull: {}", words(pulled)));
        // The first image again: whoever shares with it must find it.
        let base = (pulled.shape == Shape::Shared).then(|| images.pulls.first()).flatten();
        let samples = in_turns(subjects, plan.rounds, |_, subject| pull(subject, pulled, base));
        let of = |what: fn(&Sample) -> f64| {
            let values = samples.iter().map(|all| all.iter().map(what).collect::<Vec<_>>());
            values.map(|values| Value::middle(&values)).collect()
        };
        let what = words(pulled);
        let row = Row::new(format!("pull of {what}"), "s", of(|sample| sample.seconds));
        rows.push(match mark(pulled, plan) {
            Some(mark) => row.marked(mark),
            None => row,
        });
        rows.push(Row::new("  processor time of the daemon", "s", of(|sample| sample.processor)));
        rows.push(Row::new("  its peak RSS", "MiB", of(|sample| sample.peak_mib)));
    }
    let kept = subjects.iter().map(daemon_rss).collect();
    rows.push(Row::new("daemon RSS after the pulls", "MiB", kept));
    rows
}

fn pull(subject: &Subject, pulled: &Pulled, base: Option<&Pulled>) -> Sample {
    if let Some(base) = base {
        subject.cri().pull(&base.reference);
    }
    process::reset_peak(subject.daemon());
    let before = process::processor_time(subject.daemon());
    let (time, _) = timed(|| subject.cri().pull(&pulled.reference));
    let processor = process::processor_time(subject.daemon()) - before;
    let peak_mib = process::peak_mib(subject.daemon());
    for pulled in [Some(pulled), base].into_iter().flatten() {
        let image = Some(ImageSpec { image: pulled.reference.clone(), ..Default::default() });
        subject.cri().remove_image(RemoveImageRequest { image }).expect("an image is removed");
    }
    Sample { seconds: time.as_secs_f64(), processor, peak_mib }
}

fn words(pulled: &Pulled) -> String {
    let megabytes = count(pulled.bytes) / 1e6;
    match pulled.shape {
        Shape::Gzip => format!("6 layers, {megabytes:.0} MB gzip"),
        Shape::Zstd => format!("6 layers, {megabytes:.0} MB zstd"),
        Shape::Single => format!("1 layer, {megabytes:.0} MB gzip"),
        Shape::Small => format!("40 layers, {megabytes:.0} MB gzip"),
        Shape::Shared => "6 layers, 5 of them held".to_owned(),
        Shape::Files => "1 layer of 10,000 files".to_owned(),
    }
}

fn mark(pulled: &Pulled, plan: &Plan) -> Option<Mark> {
    match pulled.shape {
        Shape::Gzip | Shape::Zstd => Some(Mark::RatioAtMost(0.6)),
        Shape::Single => Some(Mark::RatioAtMost(0.8)),
        Shape::Small => Some(Mark::RatioAtMost(0.5)),
        Shape::Files => Some(Mark::AtMost(tar(&pulled.first_layer, plan))),
        Shape::Shared => None,
    }
}

/// Seconds that GNU tar takes to unpack a layer that it has as a file. (A pull also fetches it,
/// hashes it twice and looks each path up beneath its root.)
fn tar(layer: &Path, plan: &Plan) -> f64 {
    let seconds: Vec<_> = (0..plan.rounds)
        .map(|_| {
            let folder = tempfile::tempdir().expect("the temporary folder is writable");
            let (time, status) = timed(|| {
                let mut tar = Command::new("tar");
                tar.arg("-xzf").arg(layer).arg("-C").arg(folder.path()).status()
            });
            assert!(status.is_ok_and(|status| status.success()), "tar unpacks the layer");
            time.as_secs_f64()
        })
        .collect();
    // As the table shows it.
    (median(&seconds) * 100.0).round() / 100.0
}
