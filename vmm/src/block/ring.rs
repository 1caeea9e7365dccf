//! Requests to the kernel in batches, through io_uring.
//!
//! Reads, writes, `fdatasync` and `fallocate` are put on a ring that is shared with the kernel; one call hands
//! all of them over, and the ring's descriptor is readable when some are done. What a request needs until
//! then (guest memory, a buffer) belongs to the ring meanwhile.
//!
//! # Confinement
//!
//! System call filters do not see what a ring is asked to do. So a ring is made before the process is
//! confined, is limited to the six operations named here for ever (`IORING_REGISTER_RESTRICTIONS`), and only
//! then enabled. A confined thread may enter its ring; it can neither make another one nor open files or
//! sockets through it.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use imgcore::graph::runs::Direction;
use imgcore::storage::AlignedBuf;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, register::Restriction, squeue};

use super::vector::GuestPieces;
use crate::mem::Memory;
use crate::num::{index, len_u64};
use crate::{Error, Result};

/// Requests of one ring that may be at the kernel at a time.
pub const ENTRIES: u32 = 256;

/// Where the kernel finds, or leaves, the bytes of a transfer.
pub struct Buffers {
    list: Vec<libc::iovec>,
    keep: Keep,
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffers").field("pieces", &self.list.len()).finish_non_exhaustive()
    }
}

enum Keep {
    /// Keeps guest memory mapped.
    Guest(#[allow(dead_code)] Arc<Memory>),
    Own(AlignedBuf),
}

// SAFETY: the addresses in the list lie in memory that `keep` owns, wherever the object is.
unsafe impl Send for Buffers {}

impl Buffers {
    /// `len` bytes of guest memory, from `offset` on in `pieces`. `None` when the pieces are those of
    /// another memory.
    pub fn guest(
        memory: &Arc<Memory>,
        pieces: &GuestPieces<'_>,
        offset: u64,
        len: u64,
    ) -> Option<Self> {
        let list = pieces.addresses(memory, offset, len)?.into_vec();
        Some(Buffers { list, keep: Keep::Guest(memory.clone()) })
    }

    /// A buffer of the monitor's.
    pub fn own(mut buffer: AlignedBuf) -> Self {
        let bytes = buffer.bytes();
        let list = vec![libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
        Buffers { list, keep: Keep::Own(buffer) }
    }

    /// The buffer, if it is the monitor's.
    pub fn into_own(self) -> Option<AlignedBuf> {
        match self.keep {
            Keep::Own(buffer) => Some(buffer),
            Keep::Guest(_) => None,
        }
    }

    /// Takes `n` bytes away in front.
    fn advance(&mut self, n: usize) {
        let mut skip = n;
        let gone = self.list.iter().take_while(|v| {
            let all = skip >= v.iov_len;
            if all {
                skip -= v.iov_len;
            }
            all
        });
        let gone = gone.count();
        self.list.drain(..gone);
        if let Some(first) = self.list.first_mut() {
            // SAFETY: `skip` is less than this entry's length: `take_while` has stopped at it.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(skip) }.cast();
            first.iov_len -= skip;
        }
    }

    /// What was not filled is zero.
    fn zero(&self) {
        for v in &self.list {
            // SAFETY: the entry lies in memory that `keep` owns. Guest memory may change at any time for
            // all who use it; plain bytes are stored through a raw pointer and no reference is formed.
            unsafe { std::ptr::write_bytes(v.iov_base.cast::<u8>(), 0, v.iov_len) };
        }
    }
}

/// Whether a write is durable when it is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// After a flush.
    Later,
    /// Then and there (`RWF_DSYNC`).
    Now,
}

/// Something for the kernel to do. Its descriptor must stay open until it is done.
#[derive(Debug)]
pub enum Task {
    /// Moves bytes between a file and memory. What lies past the end of a file reads as zeroes.
    Transfer {
        /// The file.
        fd: RawFd,
        /// Where in the file.
        offset: u64,
        /// Which way.
        direction: Direction,
        /// For writes.
        durable: Durable,
        /// Where in memory.
        buffers: Buffers,
    },
    /// `fdatasync`.
    Sync(RawFd),
    /// `fallocate`.
    Fallocate {
        /// The file.
        fd: RawFd,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Task {
    fn entry(&self, slot: usize) -> squeue::Entry {
        match self {
            Task::Transfer { fd, offset, direction, durable, buffers } => {
                let list = buffers.list.as_slice();
                let count = u32::try_from(list.len()).unwrap_or(0);
                let flags = if *durable == Durable::Now { libc::RWF_DSYNC } else { 0 };
                let fd = Fd(*fd);
                match (direction, list) {
                    (Direction::Read, [one]) => {
                        opcode::Read::new(fd, one.iov_base.cast(), short(one.iov_len))
                            .offset(*offset)
                            .build()
                    }
                    (Direction::Write, [one]) => {
                        opcode::Write::new(fd, one.iov_base.cast(), short(one.iov_len))
                            .offset(*offset)
                            .rw_flags(flags)
                            .build()
                    }
                    (Direction::Read, _) => {
                        opcode::Readv::new(fd, list.as_ptr(), count).offset(*offset).build()
                    }
                    (Direction::Write, _) => opcode::Writev::new(fd, list.as_ptr(), count)
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Task::Sync(fd) => opcode::Fsync::new(Fd(*fd)).flags(FsyncFlags::DATASYNC).build(),
            Task::Fallocate { fd, mode, offset, len } => {
                opcode::Fallocate::new(Fd(*fd), *len).offset(*offset).mode(*mode).build()
            }
        }
        .user_data(len_u64(slot))
    }

    /// What the kernel has answered; `None`: not done yet, to be handed over again.
    fn answer(&mut self, result: i32) -> Option<io::Result<()>> {
        if result == -libc::EINTR {
            return None;
        }
        let Ok(moved) = usize::try_from(result) else {
            return Some(Err(io::Error::from_raw_os_error(-result)));
        };
        let Task::Transfer { offset, direction, buffers, .. } = self else { return Some(Ok(())) };
        *offset += len_u64(moved);
        buffers.advance(moved);
        match (buffers.list.is_empty(), moved, direction) {
            (true, ..) => Some(Ok(())),
            (false, 0, Direction::Read) => {
                buffers.zero();
                Some(Ok(()))
            }
            (false, 0, Direction::Write) => Some(Err(io::ErrorKind::WriteZero.into())),
            // The rest of it.
            (false, ..) => None,
        }
    }
}

/// The kernel moves no more than this at once; the rest is handed over again.
fn short(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).min(1 << 30)
}

/// A task that is done.
#[derive(Debug)]
pub struct Done {
    /// As it was given to [`Ring::push`].
    pub token: usize,
    /// How it ended.
    pub result: io::Result<()>,
    /// The task, with its buffers.
    pub task: Task,
}

/// A ring. All of it is used by one thread at a time.
pub struct Ring {
    ring: IoUring,
    /// What the kernel has, and the token of each.
    slots: Vec<Option<(usize, Task)>>,
    free: Vec<usize>,
}

impl Ring {
    /// A ring that can do what is named here, and nothing else.
    ///
    /// # Errors
    /// Names what the host lacks, and what to do.
    pub fn new() -> Result<Self> {
        let ring = Self::build().map_err(|e| refused(&e))?;
        let restrict = || -> io::Result<()> {
            let codes = [
                opcode::Read::CODE,
                opcode::Write::CODE,
                opcode::Readv::CODE,
                opcode::Writev::CODE,
                opcode::Fsync::CODE,
                opcode::Fallocate::CODE,
            ];
            let mut only = codes.map(Restriction::sqe_op);
            ring.submitter().register_restrictions(&mut only)?;
            ring.submitter().register_enable_rings()
        };
        restrict().map_err(|e| refused(&e))?;
        let count = index(ENTRIES.into());
        let slots = std::iter::repeat_with(|| None).take(count).collect();
        Ok(Ring { ring, slots, free: (0..count).rev().collect() })
    }

    fn build() -> io::Result<IoUring> {
        // Completions are noted when the thread enters the kernel, instead of interrupting it (Linux 5.19).
        let coop =
            IoUring::builder().dontfork().setup_r_disabled().setup_coop_taskrun().build(ENTRIES);
        match coop {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().dontfork().setup_r_disabled().build(ENTRIES)
            }
            built => built,
        }
    }

    /// Tasks that can be pushed now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Tasks at the kernel, or about to be.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a task on the ring; [`Ring::submit`] hands it over. `Err` gives it back when there is no room.
    pub fn push(&mut self, token: usize, task: Task) -> std::result::Result<(), Task> {
        let Some(slot) = self.free.pop() else { return Err(task) };
        let entry = task.entry(slot);
        self.slots[slot] = Some((token, task));
        if !self.queue(&entry) {
            self.free.push(slot);
            return match self.slots[slot].take() {
                Some((_, task)) => Err(task),
                None => Ok(()),
            };
        }
        Ok(())
    }

    fn queue(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the descriptor stays open and the memory that the entry names stays mapped and in place
        // until the task is done: both are the contract of `Task`, which its slot owns until then. Lists of
        // addresses live in a `Vec` of the same slot, whose buffer does not move.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Hands over what was pushed.
    ///
    /// # Errors
    /// When the kernel takes nothing more.
    pub fn submit(&mut self) -> Result<()> {
        self.enter(0)
    }

    /// Hands over what was pushed and waits until a task is done, if there is any.
    ///
    /// # Errors
    /// When the kernel takes nothing more.
    pub fn wait(&mut self) -> Result<()> {
        self.enter(usize::from(self.in_flight() > 0))
    }

    fn enter(&mut self, want: usize) -> Result<()> {
        loop {
            if want == 0 && self.ring.submission().is_empty() {
                return Ok(());
            }
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) => {
                    if self.ring.submission().is_empty() {
                        return Ok(());
                    }
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Answers have to be taken first, or memory is short for a moment: either way those that
                    // are at the kernel come back.
                    Some(libc::EBUSY | libc::EAGAIN) if self.in_flight() > 0 => return Ok(()),
                    _ => return Err(Error::io(&e).context("io_uring_enter")),
                },
            }
        }
    }

    /// Takes tasks that are done. What the kernel has done in part is handed over again with the next
    /// [`Ring::submit`].
    pub fn reap(&mut self) -> Vec<Done> {
        let answers: Vec<(u64, i32)> =
            self.ring.completion().map(|c| (c.user_data(), c.result())).collect();
        let mut done = Vec::with_capacity(answers.len());
        for (slot, result) in answers {
            let slot = index(slot);
            let Some((token, mut task)) = self.slots.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            let result = match task.answer(result) {
                Some(result) => result,
                None => {
                    let entry = task.entry(slot);
                    self.slots[slot] = Some((token, task));
                    if self.queue(&entry) {
                        continue;
                    }
                    let Some((_, back)) = self.slots[slot].take() else { continue };
                    task = back;
                    Err(io::Error::from_raw_os_error(libc::EAGAIN))
                }
            };
            self.free.push(slot);
            done.push(Done { token, result, task });
        }
        done
    }
}

impl AsRawFd for Ring {
    /// Readable when tasks are done.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.wait().is_err() {
                // The kernel may still use this memory: it is never given back.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.reap();
        }
    }
}

/// Why there is no ring.
fn refused(e: &io::Error) -> Error {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()
        .filter(|text| text.trim() != "0");
    let hint = match (e.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some(value)) => format!(
            "kernel.io_uring_disabled is {}: set it to 0 (sysctl -w kernel.io_uring_disabled=0), or use \
             aio=threads",
            value.trim()
        ),
        (Some(libc::EPERM | libc::EACCES), None) => {
            "a system call filter or security module of this host or container forbids io_uring: allow \
             it, or use aio=threads"
                .to_owned()
        }
        (Some(libc::ENOSYS), _) => {
            "this kernel was built without io_uring, or a container hides it: use aio=threads".to_owned()
        }
        (Some(libc::EINVAL), _) => {
            "io_uring with restrictions needs Linux 5.10: use aio=threads".to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "raise the limit of locked memory (ulimit -l), or use aio=threads".to_owned()
        }
        _ => "use aio=threads".to_owned(),
    };
    Error::io(e).context("Unable to use io_uring").hint(hint)
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
