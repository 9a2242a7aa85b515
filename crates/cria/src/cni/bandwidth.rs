//! The pod annotations that limit its traffic, and the quantities in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Kubernetes takes nothing below a kilobit or above a petabit per second.
const REASONABLE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The plugin demands a burst with a rate. The other runtimes pass this one.
const BURST_BITS: u64 = i32::MAX as u64;

/// The `bandwidth` capability: rates in bits per second, bursts in bits; 0 is "no limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Bandwidth {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

impl Bandwidth {
    /// `None` if neither annotation is there; an error names the annotation.
    pub(crate) fn from_annotations(
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, String> {
        let ingress = rate(annotations, INGRESS)?;
        let egress = rate(annotations, EGRESS)?;
        if ingress.is_none() && egress.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            ingress_rate: ingress.unwrap_or(0),
            ingress_burst: ingress.map_or(0, |_| BURST_BITS),
            egress_rate: egress.unwrap_or(0),
            egress_burst: egress.map_or(0, |_| BURST_BITS),
        }))
    }
}

fn rate(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>, String> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    let rate = quantity(text).ok_or_else(|| format!("{key}: {text:?} is not a quantity"))?;
    if !REASONABLE.contains(&rate) {
        return Err(format!("{key}: {text} is not between 1k and 1P"));
    }
    Ok(Some(rate))
}

/// A Kubernetes quantity (`10M`, `1.5Gi`, `1e6`), rounded up to a whole number.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 18 || fraction.contains('.') {
        return None;
    }
    let (multiplier, divisor) = scale(suffix)?;
    let divisor = divisor.checked_mul(10_u128.pow(u32::try_from(fraction.len()).ok()?))?;
    let value = digits.parse::<u128>().ok()?.checked_mul(multiplier)?.div_ceil(divisor);
    value.try_into().ok()
}

/// What a suffix multiplies by and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => return power_of_ten(exponent.strip_prefix(['e', 'E'])?),
    })
}

fn power_of_ten(exponent: &str) -> Option<(u128, u128)> {
    let exponent: i32 = exponent.parse().ok().filter(|exponent| (-18..=18).contains(exponent))?;
    let power = 10_u128.pow(exponent.unsigned_abs());
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1000", Some(1_000)),
            ("10M", Some(10_000_000)),
            ("1.5k", Some(1_500)),
            (".5k", Some(500)),
            ("5.", Some(5)),
            ("1Gi", Some(1 << 30)),
            ("1.5Ki", Some(1_536)),
            ("100m", Some(1)),
            ("1e6", Some(1_000_000)),
            ("12E2", Some(1_200)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1500e-3", Some(2)),
            ("", None),
            (".", None),
            ("M", None),
            ("-1M", None),
            ("1.2.3", None),
            ("1 M", None),
            ("1K", None),
            ("1e99", None),
            ("1e", None),
            ("99999999999999999999", None),
            ("99E", None),
        ] {
            assert_eq!(quantity(text), expected, "{text:?}");
        }
    }

    #[test]
    fn annotations_become_rates_and_unreasonable_ones_are_refused() {
        let of = |ingress: Option<&str>, egress: Option<&str>| {
            let pairs = [(INGRESS, ingress), (EGRESS, egress)];
            let given =
                pairs.into_iter().filter_map(|(key, value)| Some((key.into(), value?.into())));
            Bandwidth::from_annotations(&given.collect())
        };
        assert_eq!(of(None, None), Ok(None));
        let both = of(Some("10M"), Some("1Mi")).unwrap().unwrap();
        assert_eq!((both.ingress_rate, both.egress_rate), (10_000_000, 1_048_576));
        let one = of(None, Some("1k")).unwrap().unwrap();
        assert_eq!((one.ingress_rate, one.ingress_burst), (0, 0));
        assert_eq!((one.egress_rate, one.egress_burst), (1_000, BURST_BITS));
        for wrong in ["999", "2P", "fast", ""] {
            let error = of(Some(wrong), None).unwrap_err();
            assert!(error.starts_with(INGRESS), "{error}");
        }
    }
}
