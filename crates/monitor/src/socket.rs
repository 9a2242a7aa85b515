//! Packets over a unix seqpacket socket, for both sides. A packet that is larger than a datagram
//! of few KiB travels in a sealed memfd: a seqpacket ends near 200 KiB, and a large one may not
//! fit beside those under way.

mod sys;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::protocol::Packet;
use crate::protocol::codec::{BODY_IN_MEMFD, HEADER_LEN};

/// What travels in the datagram itself. Every release can receive this much.
const INLINE_BYTES: usize = 4096;
/// No message is near this; a length beyond it is a mistake, not a message.
const MEMFD_BYTES: u64 = 16 << 20;
const MOST_FDS: usize = 16;
const FLAGS_AT: usize = 1;
const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// Sends one packet. A non-blocking socket that is full answers `WouldBlock`, with nothing sent.
pub fn send(socket: BorrowedFd<'_>, packet: &Packet) -> io::Result<()> {
    if packet.bytes.len() <= INLINE_BYTES {
        return send_datagram(socket, &packet.bytes, packet.fds.iter().map(AsFd::as_fd));
    }
    let (header, body) = packet.bytes.split_at(HEADER_LEN);
    let mut header: [u8; HEADER_LEN] =
        header.try_into().expect("split_at gave exactly a header's length");
    header[FLAGS_AT] |= BODY_IN_MEMFD;
    let body = sealed(c"cria-message", body)?;
    send_datagram(socket, &header, packet.fds.iter().map(AsFd::as_fd).chain([body.as_fd()]))
}

/// Receives one packet; `None` at the end of the connection. A non-blocking socket that has
/// nothing answers `WouldBlock`.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let Some(mut packet) = receive_datagram(socket)? else { return Ok(None) };
    if packet.bytes.get(FLAGS_AT).is_some_and(|flags| flags & BODY_IN_MEMFD != 0) {
        let body = packet.fds.pop().ok_or_else(|| invalid("large packet without its memfd"))?;
        packet.bytes.truncate(HEADER_LEN);
        read_sealed(body, &mut packet.bytes)?;
    }
    Ok(Some(packet))
}

/// `content` in a memfd that nobody can change any more.
pub fn sealed(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags)?);
    file.write_all(content)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

fn send_datagram<'a>(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let bytes = [IoSlice::new(bytes)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives the bytes and descriptors of one `recvmsg`, whatever they mean; `None` at the end.
pub fn receive_datagram(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; INLINE_BYTES];
    let mut control = cmsg_space!([RawFd; MOST_FDS]);
    let mut fds = vec![];
    let (length, flags) = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Ok(message) => {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        sys::own_received(&raw, &mut fds);
                    }
                }
                break (message.bytes, message.flags);
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if flags.intersects(MsgFlags::MSG_TRUNC) {
        return Err(invalid("packet longer than any release sends"));
    }
    bytes.truncate(length);
    // A seqpacket socket has no other sign of its end; no side sends empty packets.
    Ok((length > 0).then_some(Packet { bytes, fds }))
}

fn read_sealed(memfd: OwnedFd, bytes: &mut Vec<u8>) -> io::Result<()> {
    let seals = SealFlag::from_bits_retain(fcntl(&memfd, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SEALS) {
        return Err(invalid("large packet in a memfd that is not sealed"));
    }
    let file = File::from(memfd);
    let length = file.metadata()?.len();
    if length > MEMFD_BYTES {
        return Err(invalid("large packet beyond all measure"));
    }
    let start = bytes.len();
    let length = usize::try_from(length).map_err(|_| invalid("large packet"))?;
    bytes.resize(start + length, 0);
    file.read_exact_at(&mut bytes[start..], 0)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
