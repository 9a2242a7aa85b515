//! How much of what is measured.

use std::io::{self, Write as _};

use clap::ValueEnum as _;

use crate::arguments::{Arguments, Measurement};

pub(crate) struct Plan {
    only: Vec<Measurement>,
    /// Samples of what is measured one at a time.
    pub(crate) samples: usize,
    /// Samples of what takes seconds.
    pub(crate) rounds: usize,
    /// Pods that are up while queries and memory are measured.
    pub(crate) pods: usize,
    /// And while the restart is: no fewer.
    pub(crate) restart_pods: usize,
    /// Pods of one round of the rate.
    pub(crate) burst: usize,
    pub(crate) log_bytes: usize,
    /// Through one streaming session.
    pub(crate) stream_bytes: usize,
    /// Sessions that are open at once.
    pub(crate) sessions: usize,
    pub(crate) layer_bytes: usize,
}

impl Plan {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let only = if arguments.only.is_empty() {
            Measurement::value_variants().to_vec()
        } else {
            arguments.only.clone()
        };
        let mebi = 1 << 20;
        if arguments.quick {
            return Self {
                only,
                samples: 3,
                rounds: 1,
                pods: 8,
                restart_pods: 8,
                burst: 8,
                log_bytes: 4 * mebi,
                stream_bytes: 16 * mebi,
                sessions: 20,
                layer_bytes: 4 * mebi,
            };
        }
        Self {
            only,
            samples: 30,
            rounds: 5,
            pods: 30,
            restart_pods: 50,
            burst: 40,
            log_bytes: 64 * mebi,
            stream_bytes: 256 * mebi,
            sessions: 200,
            layer_bytes: 54 * mebi,
        }
    }

    pub(crate) fn asks_for(&self, measurement: Measurement) -> bool {
        self.only.contains(&measurement)
    }

    /// Says on standard error what is being done: a run takes minutes.
    pub(crate) fn progress(&self, what: &str) {
        // A closed standard error is no reason to stop.
        let _ = writeln!(io::stderr(), "bench: {what}");
    }
}
