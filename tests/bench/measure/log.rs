//! How fast a container's output reaches its log file, and in which state.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use harness::cri::container_config;
use harness::wait::within;

use super::{Mark, Row, Value, in_turns};
use crate::images::{Images, LINES, line};
use crate::plan::Plan;
use crate::subject::{Network, Subject};

const LATEST: Duration = Duration::from_secs(120);

struct Written {
    mib_per_second: f64,
    /// Lines of the container that are not one whole line of the log.
    torn: f64,
}

pub(super) fn rows(subjects: &[Subject], images: &Images, plan: &Plan) -> Vec<Row> {
    plan.progress("the log");
    for subject in subjects {
        subject.cri().pull(&images.lines);
    }
    let samples = in_turns(subjects, plan.rounds, |_, subject| write(subject, images, plan));
    let rate = |all: &Vec<Written>| {
        Value::middle(&all.iter().map(|one| one.mib_per_second).collect::<Vec<_>>())
    };
    let torn = |all: &Vec<Written>| Value::one(all.iter().map(|one| one.torn).sum());
    let size = plan.log_bytes >> 20;
    vec![
        Row::new(
            format!("{size} MiB of 100-byte lines to the log"),
            "MiB/s",
            samples.iter().map(rate).collect(),
        )
        .marked(Mark::RatioAtLeast(4.0)),
        Row::new("lines torn or lost", "lines", samples.iter().map(torn).collect())
            .marked(Mark::AtMost(0.0)),
    ]
}

fn write(subject: &Subject, images: &Images, plan: &Plan) -> Written {
    let pod = subject.cri().run_pod(subject.pod("log", Network::Host));
    let program = container_config("log", &images.lines, &["cat", LINES]);
    let file = Path::new(&pod.config.log_directory).join(&program.log_path);
    let container = pod.create(program).expect("a container is created");
    let last = line(images.line_count - 1) + "\n";

    let begun = Instant::now();
    container.start().expect("a container is started");
    // A runtime that tears or loses the last line is timed to the container's end.
    let time = within(LATEST, || ends_with(&file, &last).then(|| begun.elapsed()));
    let time = time.unwrap_or(LATEST);
    container.await_exit(LATEST);
    let torn = images.line_count.saturating_sub(whole_lines(&file));
    super::rate::down(&pod);
    let mib = super::rate::count(plan.log_bytes) / f64::from(1 << 20);
    Written { mib_per_second: mib / time.as_secs_f64(), torn: super::rate::count(torn) }
}

fn ends_with(file: &Path, text: &str) -> bool {
    let tail = || -> std::io::Result<Vec<u8>> {
        let mut file = fs_err::File::open(file)?;
        let length = i64::try_from(text.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-length))?;
        let mut tail = vec![];
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    tail().is_ok_and(|tail| tail == text.as_bytes())
}

/// Records of the log that are the container's next line, whole.
fn whole_lines(file: &Path) -> usize {
    let log = fs_err::read(file).unwrap_or_default();
    let records = log.split(|byte| *byte == b'\n');
    records.filter(|record| is_whole(record)).count()
}

/// `TIME stdout F ` and the line of the number it begins with.
fn is_whole(record: &[u8]) -> bool {
    let record = String::from_utf8_lossy(record);
    let mut fields = record.splitn(4, ' ').skip(1);
    let (Some("stdout"), Some("F"), Some(text)) = (fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    let number = text.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number| text == line(number))
}

#[cfg(test)]
mod tests {
    use super::is_whole;
    use crate::images::line;

    #[test]
    fn a_torn_line_is_not_whole() {
        let text = line(7);
        for (record, whole) in [
            (format!("2026-01-01T00:00:00.1Z stdout F {text}"), true),
            (format!("2026-01-01T00:00:00.1Z stdout P {text}"), false),
            (format!("2026-01-01T00:00:00.1Z stderr F {text}"), false),
            (format!("2026-01-01T00:00:00.1Z stdout F {}", &text[1..]), false),
            (format!("2026-01-01T00:00:00.1Z stdout F {}", &text[..60]), false),
            (String::new(), false),
        ] {
            assert_eq!(is_whole(record.as_bytes()), whole, "{record}");
        }
    }
}
