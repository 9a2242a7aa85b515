//! Signals by the CRI's names and the kernel's numbers.

use cria_proto as proto;

use crate::signal;

/// The CRI's name for a signal's number; those it has no name for read as the default.
pub(in crate::cri) fn signal(number: i32) -> proto::Signal {
    let same = |theirs: &proto::Signal| signal_number(*theirs) == Some(number);
    let all = (0..).map_while(|value| proto::Signal::try_from(value).ok());
    all.skip(1).find(same).unwrap_or(proto::Signal::RuntimeDefault)
}

/// The kernel's number of a signal that was asked for; none: the image's own.
pub(super) fn signal_number(signal: proto::Signal) -> Option<i32> {
    // `SIGNAL_SIGRTMINPLUS3` is `RTMIN+3` everywhere else.
    let name = signal.as_str_name().trim_start_matches("SIGNAL_SIG");
    signal::number(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_cri_has_a_number_and_comes_back() {
        for value in 1..=65 {
            let signal = proto::Signal::try_from(value).unwrap();
            let number = signal_number(signal).unwrap_or_else(|| panic!("{signal:?}"));
            assert_eq!(signal_number(super::signal(number)), Some(number), "{signal:?}");
        }
        assert_eq!(signal_number(proto::Signal::RuntimeDefault), None);
    }
}
