//! How a child of ours ended: what the kernel tells its parent, and where another process traces it
//! what the process table says. Of a traced process the tracer is told first, and its parent only
//! when the tracer has taken note or gone: a debugger may stand still for days.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use cria_monitor::exit::Status;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{self, Wait};

/// How the child `pid` ended; None: it has not. One that is traced stays a zombie, whatever `wait`
/// asks for: it is reaped as a stranger's when its tracer lets it go.
pub(super) fn end(pid: i32, pidfd: BorrowedFd<'_>, wait: Wait) -> Option<Status> {
    match sys::wait(Some(pid), wait) {
        Ok(Some((_, status))) => Some(status),
        Ok(None) if has_ended(pidfd) => status_of_zombie(pid),
        Ok(None) => None,
        Err(_) => Some(Status::Unknown),
    }
}

/// With all its threads.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

fn status_of_zombie(pid: i32) -> Option<Status> {
    let status = parse_status(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    // Whom the kernel does not let look is told 0. This link asks for the same right, and says so.
    let may_look = fs::read_link(format!("/proc/{pid}/ns/user")).is_ok();
    Some(if may_look { status } else { Status::Unknown })
}

/// Field 52 of proc_pid_stat(5), of a zombie. The name may hold anything: count from its end.
fn parse_status(stat: &str) -> Option<Status> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    if fields.next() != Some("Z") {
        return None;
    }
    fields.nth(48)?.parse().ok().map(sys::status_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_s_status_is_the_52nd_field_behind_any_name() {
        let stat = |name: &str, state: &str, status: i32| {
            format!("12 ({name}) {state} {}{status} 99\n", "0 ".repeat(48))
        };
        for (text, expected) in [
            (stat("sh", "Z", 7 << 8), Some(Status::Code(7))),
            (stat("a) R (b", "Z", 9), Some(Status::Signal(9))),
            // With a core dump.
            (stat("sh", "Z", 11 | 128), Some(Status::Signal(11))),
            (stat("sh", "S", 9), None),
            ("12 (sh) Z 1 12".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_status(&text), expected, "{text}");
        }
    }
}
