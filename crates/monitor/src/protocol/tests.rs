//! Round trips of every message, and the promise that no bytes whatever make a reader panic.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;

use super::codec::Writer;
use super::*;
use crate::socket;

fn fd() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

/// Messages hold descriptors and cannot be compared; their debug text can, with every number of
/// a descriptor replaced by the file behind it.
fn shape(message: impl std::fmt::Debug) -> String {
    let text = format!("{message:?}");
    let mut shape = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("fd: ") {
        let (before, after) = rest.split_at(at + 4);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap();
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", &after[..digits])).unwrap().ino();
        shape += &format!("{before}inode {inode}");
        rest = &after[digits..];
    }
    shape + rest
}

prop_compose! {
    fn create()(
        texts in prop::collection::vec(".{0,40}", 8),
        bools in prop::array::uniform4(any::<bool>()),
        log in prop::option::of("/[a-z/]{0,300}"),
        oom_score_adj in -1000..=1000,
        deadline in any::<u32>(),
    ) -> Create {
        Create {
            id: texts[0].clone(),
            bundle: texts[1].clone().into(),
            run_dir: texts[2].clone().into(),
            runtime: OciRuntime {
                path: texts[3].clone().into(),
                arguments: texts[4..].to_vec(),
                deadline: Duration::from_millis(deadline.into()),
            },
            log: log.map(Into::into),
            terminal: bools[0],
            stdin: bools[1],
            stdin_once: bools[2],
            cgroup: ContainerCgroup {
                oom_counter: Some(texts[5].clone().into()),
                processes: None,
                kill: Some(texts[6].clone().into()),
                freezer: Some("".into()),
            },
            own_pid_namespace: bools[3],
            oom_score_adj,
            join_cgroups: texts.iter().map(Into::into).collect(),
        }
    }
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![
        any::<u8>().prop_map(Status::Code),
        any::<u8>().prop_map(Status::Signal),
        Just(Status::Unknown),
    ]
}

prop_compose! {
    fn exit()(
        status in status(),
        oom_killed: bool,
        started_at_ns: i64,
        finished_at_ns: i64,
        log_bytes_lost: u64,
    ) -> Exit {
        Exit { status, oom_killed, started_at_ns, finished_at_ns, log_bytes_lost }
    }
}

fn descriptors(which: [bool; 5]) -> Descriptors {
    let [init, stdout, stderr, terminal, stdin] = which.map(|there| there.then(fd));
    Descriptors { init, stdout, stderr, terminal, stdin }
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![Just(Target::Init), any::<u64>().prop_map(Target::Exec)]
}

fn exec() -> impl Strategy<Value = Exec> {
    let fields = (any::<u64>(), any::<[bool; 6]>(), prop::option::of(any::<u32>()));
    fields.prop_map(|(exec, [terminal, stdin, stdout, stderr, dies, program], timeout)| Exec {
        exec,
        process: fd(),
        terminal,
        stdin: stdin.then(fd),
        stdout: stdout.then(fd),
        stderr: stderr.then(fd),
        timeout: timeout.map(|ms| Duration::from_millis(ms.into())),
        dies_with_connection: dies,
        program: program.then(fd),
    })
}

fn adopt() -> impl Strategy<Value = Adopt> {
    (create(), any::<[bool; 6]>(), any::<i32>(), any::<i64>()).prop_map(
        |(container, [killed_by_us, which @ ..], init_pid, started_at_ns)| Adopt {
            container,
            init_pid,
            started_at_ns,
            killed_by_us,
            descriptors: descriptors(which),
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let scopes = prop_oneof![Just(SignalScope::Process), Just(SignalScope::Group)];
    prop_oneof![
        (create(), any::<bool>()).prop_map(|(container, program)| Request::Create {
            container: Box::new(container),
            program: program.then(fd),
        }),
        adopt().prop_map(|adopt| Request::Adopt(Box::new(adopt))),
        (0..5usize).prop_map(|which| match which {
            0 => Request::State,
            1 => Request::Start,
            2 => Request::ReopenLog,
            3 => Request::CloseStdin,
            _ => Request::Release,
        }),
        exec().prop_map(Request::Exec),
        (target(), any::<i32>(), scopes).prop_map(|(target, signal, scope)| Request::Signal {
            target,
            signal,
            scope
        }),
        any::<[bool; 3]>().prop_map(|[stdin, stdout, stderr]| Request::Attach {
            stdin,
            stdout,
            stderr,
            socket: fd(),
        }),
        status().prop_map(|status| Request::InitEnded { status }),
    ]
}

fn from_monitor() -> impl Strategy<Value = FromMonitor> {
    let phase = prop_oneof![Just(Phase::Created), Just(Phase::Running), Just(Phase::Exited)];
    let kind = prop_oneof![
        Just(FailureKind::Refused),
        Just(FailureKind::TimedOut),
        Just(FailureKind::WrongPhase),
        Just(FailureKind::System),
        Just(FailureKind::Unsupported),
    ];
    let state = (phase, any::<i32>(), any::<i64>(), prop::option::of(exit()), any::<[bool; 7]>());
    let reply = prop_oneof![
        Just(()).prop_map(|()| Reply::Done),
        state.prop_map(
            |(phase, init_pid, started_at_ns, exit, [stdin_open, settling, which @ ..])| {
                let descriptors = descriptors(which);
                let state = State {
                    phase,
                    settling,
                    init_pid,
                    started_at_ns,
                    exit,
                    stdin_open,
                    descriptors,
                };
                Reply::State(Box::new(state))
            }
        ),
        any::<i64>().prop_map(|at_ns| Reply::Started { at_ns }),
        (any::<i32>(), any::<[bool; 2]>()).prop_map(|(pid, [tty, pidfd])| {
            let (terminal, process) = (tty.then(fd), pidfd.then(fd));
            Reply::ExecStarted { pid, terminal, process }
        }),
        (kind, ".{0,9000}").prop_map(|(kind, message)| Reply::Failed(Failure { kind, message })),
    ];
    let event = prop_oneof![
        exit().prop_map(Event::Exited),
        (any::<u64>(), status(), any::<bool>())
            .prop_map(|(exec, status, timed_out)| Event::ExecExited { exec, status, timed_out }),
        Just(Event::StdinClosed),
        Just(Event::Settled),
        (any::<u64>(), ".{0,99}").prop_map(|(bytes, error)| Event::LogLost { bytes, error }),
    ];
    prop_oneof![
        (any::<u32>(), reply).prop_map(|(sequence, reply)| FromMonitor::Reply(sequence, reply)),
        event.prop_map(FromMonitor::Event),
    ]
}

/// Through a real socket, so that descriptors and memfds take their real way.
fn through_socket(packet: Packet) -> Packet {
    let (here, there) = nix::sys::socket::socketpair(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::SeqPacket,
        None,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    socket::send(here.as_fd(), &packet).unwrap();
    let received = socket::receive(there.as_fd()).unwrap().unwrap();
    drop(here);
    assert!(socket::receive(there.as_fd()).unwrap().is_none());
    assert_eq!(received.fds.len(), packet.fds.len());
    received
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_arrives_as_it_was_sent(request in request(), sequence: u32) {
        let sent = shape(&request);
        let (number, received) = Request::decode(through_socket(request.encode(sequence))).unwrap();
        prop_assert_eq!(number, sequence);
        prop_assert_eq!(shape(received), sent);
    }

    #[test]
    fn every_reply_and_event_arrives_as_it_was_sent(message in from_monitor()) {
        let sent = shape(&message);
        let received = FromMonitor::decode(through_socket(message.encode())).unwrap();
        prop_assert_eq!(shape(received), sent);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes: Vec<u8>, kind in 0u16..0x210) {
        let mut packets = vec![bytes.clone()];
        let mut framed = Writer::new(kind, 7).finish().bytes;
        framed.extend(&bytes);
        packets.push(framed);
        for bytes in packets {
            let _ = Request::decode(Packet { bytes: bytes.clone(), fds: vec![] });
            let _ = FromMonitor::decode(Packet { bytes, fds: vec![] });
        }
    }

    #[test]
    fn a_damaged_message_is_refused_or_read_but_never_a_panic(
        request in request(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
    ) {
        let mut packet = request.encode(1);
        let at = at.index(packet.bytes.len());
        packet.bytes[at] = byte;
        let cut = cut.index(packet.bytes.len());
        let _ = Request::decode(Packet { bytes: packet.bytes[..cut].to_vec(), fds: vec![] });
        let _ = Request::decode(packet);
    }
}

#[test]
fn unknown_fields_are_skipped_and_missing_ones_have_defaults() {
    let mut writer = Writer::new(7, 3); // attach
    writer.text(999, "from the future");
    writer.fd(4, fd());
    let (sequence, request) = Request::decode(writer.finish()).unwrap();
    assert_eq!(sequence, 3);
    let Request::Attach { stdin: false, stdout: false, stderr: false, .. } = request else {
        panic!("{request:?}");
    };
}

#[test]
fn an_unknown_request_can_be_answered() {
    let error = Request::decode(Writer::new(99, 5).finish()).unwrap_err();
    assert_eq!(error, ProtocolError::UnknownKind { kind: 99, sequence: 5 });
    assert_eq!(error.sequence(), Some(5));
}

#[test]
fn what_an_older_release_says_and_nobody_needs_is_refused_or_skipped() {
    let error = Request::decode(Writer::new(8, 5).finish()).unwrap_err(); // resize
    assert_eq!(error, ProtocolError::UnknownKind { kind: 8, sequence: 5 });
    let mut writer = Writer::new(2, 6); // adopt
    writer.nested(1, |container| {
        container.path(2, Path::new("/bundle"));
        container.path(3, Path::new("/run"));
        container.nested(4, |runtime| runtime.path(1, Path::new("/runc")));
    });
    writer.signed(2, 77);
    writer.bool(5, true); // that the daemon waits for init
    writer.nested(6, |_| {});
    let (_, request) = Request::decode(writer.finish()).unwrap();
    assert!(matches!(request, Request::Adopt(adopt) if adopt.init_pid == 77));
}

#[test]
fn another_version_is_refused_with_its_sequence_number() {
    let mut packet = Request::State.encode(6);
    packet.bytes[0] = 2;
    let error = Request::decode(packet).unwrap_err();
    assert_eq!(error, ProtocolError::Version { version: 2, sequence: 6 });
}

#[test]
fn a_descriptor_that_did_not_come_is_malformed() {
    let mut packet =
        Request::Attach { stdin: true, stdout: true, stderr: true, socket: fd() }.encode(1);
    packet.fds.clear();
    let error = Request::decode(packet).unwrap_err();
    assert_eq!(error, ProtocolError::Malformed { field: "attach.socket", sequence: 1 });
}

#[test]
fn a_large_packet_in_an_unsealed_memfd_is_refused() {
    let (here, there) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let mut header = Request::State.encode(1);
    header.bytes[1] = codec::BODY_IN_MEMFD;
    header.fds.push(File::open("/dev/null").unwrap().into());
    socket::send(here.as_fd(), &header).unwrap();
    assert!(socket::receive(there.as_fd()).is_err());
}
