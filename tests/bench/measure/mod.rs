//! The measurements: each takes its samples in turns over all subjects and returns rows.

mod life;
mod log;
mod pull;
mod rate;
mod standing;
mod streams;

use crate::arguments::Measurement;
use crate::images::Images;
use crate::plan::Plan;
use crate::sample::{median, quantile};
use crate::subject::{Network, Subject};

pub(crate) struct Table {
    pub(crate) subjects: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

/// One thing measured, of each subject.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<Option<Value>>,
    pub(crate) mark: Option<Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Value {
    pub(crate) typical: f64,
    /// Of nine samples in ten, where there are enough to say.
    pub(crate) p90: Option<f64>,
}

/// What the first subject is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mark {
    AtMost(f64),
    /// Beside the second subject.
    RatioAtMost(f64),
    RatioAtLeast(f64),
}

/// All that the plan asks for.
pub(crate) fn all(subjects: &mut [Subject], images: &Images, plan: &Plan) -> Vec<Row> {
    let mut rows = vec![];
    if plan.asks_for(Measurement::Host) {
        rows.extend(life::rows(subjects, Network::Host, images, plan));
    }
    if plan.asks_for(Measurement::Bridge) {
        rows.extend(life::rows(subjects, Network::Bridge, images, plan));
    }
    if plan.asks_for(Measurement::Rate) {
        rows.push(rate::row(subjects, Network::Host, images, plan));
        rows.push(rate::row(subjects, Network::Bridge, images, plan));
    }
    rows.extend(standing::rows(subjects, images, plan));
    if plan.asks_for(Measurement::Streams) {
        rows.extend(streams::rows(subjects, images, plan));
    }
    if plan.asks_for(Measurement::Log) {
        rows.extend(log::rows(subjects, images, plan));
    }
    if plan.asks_for(Measurement::Pull) {
        rows.extend(pull::rows(subjects, images, plan));
    }
    rows
}

impl Row {
    fn new(what: impl Into<String>, unit: &'static str, values: Vec<Option<Value>>) -> Self {
        Self { what: what.into(), unit, values, mark: None }
    }

    fn marked(mut self, mark: Mark) -> Self {
        self.mark = Some(mark);
        self
    }

    /// The first subject's value over the second's.
    pub(crate) fn ratio(&self) -> Option<f64> {
        match self.values.as_slice() {
            [Some(first), Some(second), ..] if second.typical != 0.0 => {
                Some(first.typical / second.typical)
            }
            _ => None,
        }
    }

    /// Whether the mark is met; nothing where there is no mark, or nothing to hold against it.
    pub(crate) fn met(&self) -> Option<bool> {
        match self.mark? {
            Mark::AtMost(limit) => Some((*self.values.first()?)?.typical <= limit),
            Mark::RatioAtMost(limit) => Some(self.ratio()? <= limit),
            Mark::RatioAtLeast(limit) => Some(self.ratio()? >= limit),
        }
    }
}

impl Value {
    fn one(typical: f64) -> Option<Self> {
        Some(Self { typical, p90: None })
    }

    /// Many samples of what may be one at a time.
    fn spread(samples: &[f64]) -> Option<Self> {
        Some(Self { typical: median(samples), p90: Some(quantile(samples, 0.9)) })
    }

    /// A few samples of what takes long.
    fn middle(samples: &[f64]) -> Option<Self> {
        Self::one(median(samples))
    }
}

/// Takes `count` samples of each subject, in turns.
fn in_turns<S, T>(
    subjects: &[S],
    count: usize,
    mut sample: impl FnMut(usize, &S) -> T,
) -> Vec<Vec<T>> {
    let mut samples: Vec<Vec<T>> = subjects.iter().map(|_| vec![]).collect();
    for round in 0..count {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(sample(round, subject));
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::{Mark, Row, Value};

    #[test]
    fn a_mark_is_held_against_the_value_or_the_ratio_it_names() {
        for (mark, values, met) in [
            (Mark::AtMost(10.0), vec![Value::one(10.0)], Some(true)),
            (Mark::AtMost(10.0), vec![Value::one(10.1), Value::one(1.0)], Some(false)),
            (Mark::AtMost(10.0), vec![None, Value::one(1.0)], None),
            (Mark::RatioAtMost(0.5), vec![Value::one(1.0), Value::one(2.0)], Some(true)),
            (Mark::RatioAtMost(0.5), vec![Value::one(1.1), Value::one(2.0)], Some(false)),
            (Mark::RatioAtMost(0.5), vec![Value::one(1.1)], None),
            (Mark::RatioAtLeast(4.0), vec![Value::one(8.0), Value::one(2.0)], Some(true)),
            (Mark::RatioAtLeast(4.0), vec![Value::one(7.0), Value::one(2.0)], Some(false)),
            (Mark::RatioAtLeast(4.0), vec![Value::one(7.0), Value::one(0.0)], None),
        ] {
            let row = Row::new("", "", values).marked(mark);
            assert_eq!(row.met(), met, "{mark:?} {:?}", row.values);
        }
    }
}
