//! Bytes on their way from a process or a pod to a client.
//!
//! Few are read into memory, behind room for a frame's header, and leave with it in one write. Where
//! many come from another socket they stay in the kernel: it hands their pages from there to a pipe and
//! on to the client's socket (splice), and copies nothing.
//!
//! Not so from the pipes of processes. Pages that a program has put there by sendfile or vmsplice are a
//! file's or its own still, and it may write to them once the pipe is empty: what it wrote before would
//! change on its way to a client that does not read at once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// A read of this many bytes is one of many: so is the next.
const MANY: usize = 16 << 10;
/// What the kernel is asked to move at once: a pipe has sixteen slots, each for up to 32 KiB of a socket.
const MOVED: usize = 512 << 10;

#[derive(Debug, Default)]
pub(crate) struct Chunk {
    memory: Vec<u8>,
    /// While many bytes come.
    pipe: Option<Pipe>,
    way: Way,
}

/// How the next bytes are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    /// Into memory: that is where they are wanted.
    #[default]
    Memory,
    /// Into memory, as long as they are few.
    Either,
    /// Into the pipe, as long as they are many.
    Kernel,
}

#[derive(Debug)]
struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
    holds: usize,
}

impl Chunk {
    /// Enough for the longest header of any protocol here.
    pub(crate) const ROOM: usize = 16;
    /// Beyond a pipe's 64 KiB a read gets no more.
    const BYTES: usize = 64 << 10;

    /// For a client whose socket the kernel can move bytes to.
    pub(crate) fn spliced() -> Self {
        Self { way: Way::Either, ..Self::default() }
    }

    /// Reads what `source` has, which does not block; 0 is its end. What was here before is gone.
    pub(crate) fn fill(&mut self, source: impl AsFd) -> io::Result<usize> {
        if self.way == Way::Kernel
            && let moved @ 1.. = self.fill_pipe(&source)?
        {
            return Ok(moved);
        }
        let memory = self.begin();
        let count = rustix::io::read(source, spare_capacity(memory))?;
        self.way = match self.way {
            Way::Memory => Way::Memory,
            Way::Either | Way::Kernel if count >= MANY => Way::Kernel,
            Way::Either | Way::Kernel => Way::Either,
        };
        Ok(count)
    }

    /// Has the kernel move what `source` has; how much that was. 0: only reading tells, for splice does
    /// not pass TCP's urgent mark, and takes it for the end.
    fn fill_pipe(&mut self, source: impl AsFd) -> io::Result<usize> {
        self.memory = Vec::new();
        // What nobody wanted is still in there.
        self.pipe.take_if(|pipe| pipe.holds > 0);
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            None => match Pipe::new() {
                Ok(pipe) => self.pipe.insert(pipe),
                Err(error) => {
                    tracing::debug!(%error, "bytes are copied: there is no pipe to move them by");
                    self.way = Way::Memory;
                    return Ok(0);
                }
            },
        };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(source, None, &pipe.to, None, MOVED, flags) {
            Ok(moved) => pipe.holds = moved,
            Err(Errno::AGAIN) => {}
            // Anything else is the source's, and told once.
            Err(error) => return Err(error.into()),
        }
        Ok(pipe.holds)
    }

    /// Empty, and ready to be read into.
    pub(crate) fn begin(&mut self) -> &mut Vec<u8> {
        self.pipe.take_if(|pipe| pipe.holds > 0);
        if self.memory.capacity() == 0 {
            self.memory.reserve_exact(Self::ROOM + Self::BYTES);
        }
        self.memory.clear();
        self.memory.resize(Self::ROOM, 0);
        &mut self.memory
    }

    /// A stream at rest needs neither memory nor descriptors.
    pub(crate) fn release(&mut self) {
        self.memory = Vec::new();
        self.pipe = None;
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.in_kernel().map_or(self.bytes().len(), |pipe| pipe.holds)
    }

    fn in_kernel(&self) -> Option<&Pipe> {
        self.pipe.as_ref().filter(|pipe| pipe.holds > 0)
    }

    /// Takes the first byte away, which is in memory.
    pub(crate) fn take_first(&mut self) -> Option<u8> {
        (self.memory.len() > Self::ROOM).then(|| self.memory.remove(Self::ROOM))
    }

    /// Those in memory.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.get(Self::ROOM..).unwrap_or_default()
    }

    /// The bytes with `header` right before them; `None`: they are in the kernel.
    pub(crate) fn framed(&mut self, header: &[u8]) -> Option<&[u8]> {
        if self.in_kernel().is_some() {
            return None;
        }
        let start = Self::ROOM - header.len();
        self.memory[start..Self::ROOM].copy_from_slice(header);
        Some(&self.memory[start..])
    }

    /// Moves what is in the kernel to `socket`, as far as it takes it; how much that was.
    pub(crate) fn move_to(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(pipe) = &mut self.pipe else { return Ok(0) };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let moved = splice(&pipe.from, None, socket, None, pipe.holds, flags)?;
        pipe.holds -= moved;
        Ok(moved)
    }

    /// Takes what is in the kernel out of it.
    pub(crate) fn land(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.holds > 0) {
            bytes.reserve_exact(pipe.holds);
            while bytes.len() < pipe.holds {
                rustix::io::read(&pipe.from, spare_capacity(&mut bytes))?;
            }
        }
        Ok(bytes)
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { from, to, holds: 0 })
    }
}

impl From<&[u8]> for Chunk {
    fn from(bytes: &[u8]) -> Self {
        Self { memory: [&[0; Self::ROOM], bytes].concat(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use rustix::net::{SendFlags, send, sockopt};

    use super::*;

    /// A pipe of the kind that processes write to.
    fn source() -> (OwnedFd, File) {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (from, to.into())
    }

    fn is_in_kernel(chunk: &Chunk) -> bool {
        chunk.in_kernel().is_some()
    }

    #[test]
    fn few_bytes_are_read_into_memory_and_many_stay_in_the_kernel() {
        let (from, mut to) = source();
        let mut chunk = Chunk::spliced();
        let cases = [
            (10, false),
            (MANY, false),
            (MANY, true),
            // What it had is all that there was: the next may be few again.
            (MANY - 1, true),
            (10, true),
        ];
        for (number, (count, in_kernel)) in cases.into_iter().enumerate() {
            let sent = vec![u8::try_from(number).unwrap(); count];
            to.write_all(&sent).unwrap();
            assert_eq!(chunk.fill(&from).unwrap(), count);
            assert_eq!((chunk.len(), is_in_kernel(&chunk)), (count, in_kernel), "{number}");
            let bytes = if in_kernel { chunk.land().unwrap() } else { chunk.bytes().to_vec() };
            assert!(bytes == sent, "{number}");
        }
    }

    #[test]
    fn a_source_says_in_either_way_that_it_has_nothing_or_has_ended() {
        let (from, mut to) = source();
        let mut chunk = Chunk::spliced();
        let nothing = |chunk: &mut Chunk| chunk.fill(&from).unwrap_err().kind();
        assert_eq!(nothing(&mut chunk), io::ErrorKind::WouldBlock);
        to.write_all(&[1; MANY]).unwrap();
        chunk.fill(&from).unwrap();
        assert_eq!((chunk.way, nothing(&mut chunk)), (Way::Kernel, io::ErrorKind::WouldBlock));
        drop(to);
        assert_eq!((chunk.way, chunk.fill(&from).unwrap()), (Way::Kernel, 0));
        assert_eq!((chunk.way, chunk.fill(&from).unwrap()), (Way::Either, 0));
    }

    /// A chunk that has taken many bytes of a connection, and waits for more in the kernel.
    fn connection() -> (Chunk, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        let mut chunk = Chunk::spliced();
        theirs.write_all(&[0; 4 * MANY]).unwrap();
        let mut taken = 0;
        while taken < 4 * MANY {
            taken += chunk.fill(&ours).unwrap();
        }
        ours.set_nonblocking(true).unwrap();
        chunk.way = Way::Kernel;
        (chunk, ours, theirs)
    }

    #[test]
    fn a_connection_that_is_reset_is_no_end() {
        let (mut chunk, ours, theirs) = connection();
        sockopt::set_socket_linger(&theirs, Some(std::time::Duration::ZERO)).unwrap();
        drop(theirs);
        assert_eq!(chunk.fill(&ours).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn what_comes_behind_an_urgent_byte_is_read() {
        let (mut chunk, ours, mut theirs) = connection();
        send(&theirs, b"!", SendFlags::OOB).unwrap();
        theirs.write_all(b"after").unwrap();
        assert_eq!(chunk.fill(&ours).unwrap(), 5);
        assert_eq!(chunk.bytes(), b"after");
        drop(theirs);
        assert_eq!(chunk.fill(&ours).unwrap(), 0);
    }

    #[test]
    fn what_nobody_wanted_is_not_read_again() {
        let (from, mut to) = source();
        let mut chunk = Chunk::spliced();
        for byte in 0..4 {
            to.write_all(&[byte; MANY]).unwrap();
            chunk.fill(&from).unwrap();
        }
        assert!(chunk.land().unwrap() == [3; MANY]);
    }

    #[test]
    fn a_source_without_pages_to_give_is_read_all_the_same() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut chunk = Chunk::spliced();
        for byte in 0..3 {
            theirs.send(&[byte; MANY]).unwrap();
            assert_eq!(chunk.fill(&ours).unwrap(), MANY);
            let in_kernel = chunk.land().unwrap();
            assert!([&in_kernel, chunk.bytes()].concat() == [byte; MANY]);
        }
    }

    #[test]
    fn a_client_that_wants_bytes_in_memory_gets_all_of_them_there() {
        let (from, mut to) = source();
        let mut chunk = Chunk::default();
        for _ in 0..3 {
            to.write_all(&[7; MANY]).unwrap();
            chunk.fill(&from).unwrap();
            assert_eq!(
                chunk.framed(b"header"),
                Some([&b"header"[..], &[7; MANY]].concat().as_slice())
            );
        }
    }
}
