//! What the kernel counts of one process.

/// Ticks of `/proc/<pid>/stat` per second: fixed for user space on Linux.
const TICKS: f64 = 100.0;

/// User and system time together, in seconds.
pub(crate) fn processor_time(pid: i32) -> f64 {
    let stat = read(pid, "stat");
    // The name may hold anything; after it come plain fields, the state first.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS
}

/// Has the kernel count the highest resident set from now on.
pub(crate) fn reset_peak(pid: i32) {
    fs_err::write(format!("/proc/{pid}/clear_refs"), "5").expect("the daemon runs");
}

/// The highest resident set since then, in MiB.
pub(crate) fn peak_mib(pid: i32) -> f64 {
    let status = read(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes: Option<f64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(f64::NAN) / 1024.0
}

fn read(pid: i32, file: &str) -> String {
    fs_err::read_to_string(format!("/proc/{pid}/{file}")).expect("the daemon runs")
}

#[cfg(test)]
mod tests {
    use super::{peak_mib, processor_time, reset_peak};

    #[test]
    fn a_process_has_used_time_and_memory() {
        let own = std::process::id().try_into().expect("pids are positive");
        assert!(processor_time(own) >= 0.0 && processor_time(own) < 3600.0);
        assert!(peak_mib(own) > 0.5);
        let much = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(peak_mib(own) > 64.0);
        drop(much);
        reset_peak(own);
        assert!(peak_mib(own) < 64.0);
    }
}
