//! The pull of a large image that is not there yet.

use cria_proto::{ImageSpec, RemoveImageRequest};

use super::rate::count;
use super::{Row, Value, in_turns};
use crate::images::Images;
use crate::plan::Plan;
use crate::sample::timed;
use crate::subject::Subject;

pub(super) fn row(subjects: &[Subject], images: &Images, plan: &Plan) -> Row {
    plan.progress("the pull");
    let times = in_turns(subjects, plan.rounds, |_, subject| {
        let (time, _) = timed(|| subject.cri().pull(&images.pull));
        let image = Some(ImageSpec { image: images.pull.clone(), ..Default::default() });
        subject.cri().remove_image(RemoveImageRequest { image }).expect("an image is removed");
        time.as_secs_f64()
    });
    let megabytes = count(images.pull_bytes) / 1e6;
    let values = times.iter().map(|times| Value::middle(times)).collect();
    Row::new(format!("pull of 6 layers, {megabytes:.0} MB gzip"), "s", values)
}
