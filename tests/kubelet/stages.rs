//! The order of things: single pods, then restarts, then what takes long, then the end.

use std::thread;

use harness::Registry;

use crate::cases::{self, Case};
use crate::process::Kubelet;
use crate::report::Report;
use crate::runtime::Runtime;
use crate::site::Site;

pub struct Stages<'a> {
    pub site: &'a Site,
    pub report: &'a Report,
    pub registry: &'a Registry,
    pub private: &'a Registry,
    // Dropped in this order: the kubelet would bring back the pods that go with the runtime.
    pub kubelet: Kubelet,
    pub runtime: Runtime,
}

impl Stages<'_> {
    pub fn run(mut self) {
        self.side_by_side(&cases::single_pods());
        self.kubelet.stop();
    }

    fn side_by_side(&self, cases: &[Case]) {
        thread::scope(|scope| {
            for case in cases.iter().filter(|case| case.is_wanted()) {
                scope.spawn(|| self.try_one(case));
            }
        });
    }

    fn try_one(&self, case: &Case) {
        if case.cria_only && !self.site.is_cria {
            return self.report.not_asked(case.name);
        }
        self.report.row(case.name, || (case.check)(self.site));
    }
}
