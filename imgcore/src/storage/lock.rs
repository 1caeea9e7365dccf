//! Byte-range locks on image files, by QEMU's protocol.
//!
//! Nobody locks the data. Each permission has two bytes of the file at which a *read* lock stands
//! for a statement of its holder:
//!
//! | permission      | "I use it" | "nobody else may use it" |
//! |-----------------|-----------:|-------------------------:|
//! | consistent read |        100 |                      200 |
//! | write           |        101 |                      201 |
//! | write unchanged |        102 |                      202 |
//! | resize          |        103 |                      203 |
//!
//! Read locks never exclude each other, so everybody first states what he wants and then looks
//! (`F_OFD_GETLK` for a write lock) whether anybody stated the opposite: for each byte `100+i` taken
//! at `200+i`, and for each byte `200+i` taken at `100+i`. Two that come at the same moment see each
//! other and both give up; none slips through.
//!
//! What QEMU 10.0 takes (traced):
//!
//! | use                                             | `100+` | `200+` |
//! |-------------------------------------------------|--------|--------|
//! | raw, read by a device or qemu-io                | 0      |        |
//! | raw, written                                    | 0 1    |        |
//! | raw, resized                                    | 0 1 3  |        |
//! | raw, source of convert                          | 0      | 1 3    |
//! | qcow2, vmdk read (check, compare, convert)      | 0      | 1 3    |
//! | qcow2, vmdk `info` (also `map`'s file node)     |        | 1 3    |
//! | qcow2, vmdk written                             | 0 1 3  | 1 3    |
//! | flat extent of a written vmdk                   | 0 1 3  | 3      |
//! | flat extent of a vmdk that is read              |        | 3      |
//! | file being created (emptied and filled)         | 1 3    | 3      |
//! | anything with `force-share=on` (`-U`); raw info |        |        |
//!
//! Locks belong to the open file description (`F_OFD_*`): they end when the last descriptor of it is
//! closed, and two openings inside one process exclude each other like two processes do. Where the
//! file system has no such locks, none are taken and nothing is said, as with `locking=auto`.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::culprit::{self, Holder};

const USED: i64 = 100;
const UNSHARED: i64 = 200;

/// What can be done with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read, and expect to see what was written.
    Read,
    /// Write.
    Write,
    /// Write what is there already (a copy into an overlay, for example).
    WriteUnchanged,
    /// Change the length.
    Resize,
}

impl Permission {
    const ALL: [Permission; 4] =
        [Permission::Read, Permission::Write, Permission::WriteUnchanged, Permission::Resize];

    const fn index(self) -> i64 {
        match self {
            Permission::Read => 0,
            Permission::Write => 1,
            Permission::WriteUnchanged => 2,
            Permission::Resize => 3,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Permission::Read => "consistent read",
            Permission::Write => "write",
            Permission::WriteUnchanged => "write unchanged",
            Permission::Resize => "resize",
        }
    }
}

/// A set of permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perms(u8);

impl Perms {
    /// Nothing.
    pub const NONE: Perms = Perms(0);
    /// Consistent read.
    pub const READ: Perms = Perms(1);
    /// Write.
    pub const WRITE: Perms = Perms(2);
    /// Write unchanged.
    pub const WRITE_UNCHANGED: Perms = Perms(4);
    /// Resize.
    pub const RESIZE: Perms = Perms(8);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Perms) -> Perms {
        Perms(self.0 | other.0)
    }

    /// This set without the other.
    #[must_use]
    pub const fn without(self, other: Perms) -> Perms {
        Perms(self.0 & !other.0)
    }

    /// Whether it is in the set.
    pub const fn has(self, p: Permission) -> bool {
        self.0 & (1 << p.index()) != 0
    }
}

/// What an opening states: what it uses, and what others must not use meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockSet {
    /// Bytes `100+`.
    pub used: Perms,
    /// Bytes `200+`.
    pub unshared: Perms,
}

const EXCLUSIVE: Perms = Perms::WRITE.and(Perms::RESIZE);
const ALL_WRITING: Perms = Perms::READ.and(EXCLUSIVE);

impl LockSet {
    /// States nothing: `force-share`, and `info` of a raw file.
    pub const FORCE_SHARE: LockSet = LockSet { used: Perms::NONE, unshared: Perms::NONE };
    /// Reads a raw image that others may write.
    pub const RAW_READ: LockSet = LockSet { used: Perms::READ, unshared: Perms::NONE };
    /// Writes a raw image that others may use.
    pub const RAW_WRITE: LockSet =
        LockSet { used: Perms::READ.and(Perms::WRITE), unshared: Perms::NONE };
    /// Changes the length of a raw image.
    pub const RAW_RESIZE: LockSet = LockSet { used: ALL_WRITING, unshared: Perms::NONE };
    /// Reads an image that must hold still: any format with metadata, or a source of conversion.
    pub const STABLE_READ: LockSet = LockSet { used: Perms::READ, unshared: EXCLUSIVE };
    /// Reads metadata only.
    pub const INSPECT: LockSet = LockSet { used: Perms::NONE, unshared: EXCLUSIVE };
    /// Writes an image with metadata.
    pub const EXCLUSIVE_WRITE: LockSet = LockSet { used: ALL_WRITING, unshared: EXCLUSIVE };
    /// Empties a file and fills it anew.
    pub const CREATE: LockSet = LockSet { used: EXCLUSIVE, unshared: Perms::RESIZE };

    fn bytes(self) -> impl Iterator<Item = i64> {
        let used = Permission::ALL.into_iter().filter(move |p| self.used.has(*p));
        let unshared = Permission::ALL.into_iter().filter(move |p| self.unshared.has(*p));
        used.map(|p| USED + p.index()).chain(unshared.map(|p| UNSHARED + p.index()))
    }

    fn has_byte(self, byte: i64) -> bool {
        self.bytes().any(|b| b == byte)
    }
}

/// A refused lock.
#[derive(Debug)]
pub struct LockConflict {
    permission: Permission,
    wanted: Wanted,
    holders: Vec<Holder>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// To use the permission; somebody does not share it.
    Use,
    /// Not to share the permission; somebody uses it.
    Unshare,
}

impl LockConflict {
    /// The lines below the message; `name` is the image as the user called it.
    pub fn hints(&self, name: &str) -> Vec<String> {
        let mut lines = vec![format!("Is another process using the image [{name}]?")];
        lines.extend(self.holders.iter().map(|h| format!("It is {h}")));
        lines
    }

    /// Who holds the opposing lock, as far as that can be seen.
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }
}

impl fmt::Display for LockConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = if self.wanted == Wanted::Unshare { "shared " } else { "" };
        write!(f, "Failed to get {shared}\"{}\" lock", self.permission.name())
    }
}

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else's lock is in the way.
    Conflict(LockConflict),
    /// A lock of another kind stands on a byte of the protocol, or the system refused.
    System {
        /// The byte.
        byte: i64,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Conflict(c) => c.fmt(f),
            LockError::System { byte, .. } => write!(f, "Failed to lock byte {byte}"),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LockError::Conflict(_) => None,
            LockError::System { error, .. } => Some(error),
        }
    }
}

impl LockError {
    /// As the crate's error; `name` is the image as the user called it.
    pub fn into_error(self, name: &str) -> crate::Error {
        match self {
            LockError::Conflict(c) => crate::Error::new(crate::ErrorKind::Locked, c.to_string())
                .hint(c.hints(name).join("\n"))
                .at_path(name),
            LockError::System { byte, error } => crate::Error::io(&error)
                .context(format!("Failed to lock byte {byte}"))
                .at_path(name),
        }
    }
}

/// The locks of one open file.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    held: LockSet,
    supported: bool,
}

impl FileLock {
    /// Takes the locks of `set` on `file`. The handle shares the open file description of `file`,
    /// which must be open for reading.
    pub fn acquire(file: &File, set: LockSet) -> Result<Self, LockError> {
        let file = file.try_clone().map_err(|error| LockError::System { byte: USED, error })?;
        let mut lock = FileLock { file, held: LockSet::default(), supported: true };
        lock.change(set)?;
        Ok(lock)
    }

    /// What is held; nothing where the file system has no locks.
    pub fn held(&self) -> LockSet {
        if self.supported { self.held } else { LockSet::default() }
    }

    /// Goes over to another set. First adds, then looks, then drops: at no moment is less held than
    /// both sets have in common. On error what was held before is held again.
    pub fn change(&mut self, to: LockSet) -> Result<(), LockError> {
        if !self.supported {
            return Ok(());
        }
        let from = self.held;
        let taken = self.take_new(from, to).and_then(|()| self.look(to));
        let (keep, drop) = if taken.is_ok() { (to, from) } else { (from, to) };
        for byte in drop.bytes().filter(|b| !keep.has_byte(*b)) {
            // Letting go cannot fail in a way that could be helped.
            let _ = set_lock(&self.file, byte, libc::F_UNLCK);
        }
        match taken {
            Ok(()) => self.held = to,
            Err(LockError::System { error, .. }) if no_locks_here(&error) => self.supported = false,
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn take_new(&self, from: LockSet, to: LockSet) -> Result<(), LockError> {
        for byte in to.bytes().filter(|b| !from.has_byte(*b)) {
            set_lock(&self.file, byte, libc::F_RDLCK)
                .map_err(|e| LockError::System { byte, error: e.into() })?;
        }
        Ok(())
    }

    /// Looks for somebody who stated the opposite.
    fn look(&self, set: LockSet) -> Result<(), LockError> {
        for p in Permission::ALL {
            if set.used.has(p) {
                self.look_at(UNSHARED + p.index(), p, Wanted::Use)?;
            }
        }
        for p in Permission::ALL {
            if set.unshared.has(p) {
                self.look_at(USED + p.index(), p, Wanted::Unshare)?;
            }
        }
        Ok(())
    }

    fn look_at(&self, byte: i64, permission: Permission, wanted: Wanted) -> Result<(), LockError> {
        let mut flock = range(byte, libc::F_WRLCK);
        fcntl(self.file.as_fd(), FcntlArg::F_OFD_GETLK(&mut flock))
            .map_err(|e| LockError::System { byte, error: e.into() })?;
        if i32::from(flock.l_type) == libc::F_UNLCK {
            return Ok(());
        }
        let holders = culprit::holders(&self.file, byte);
        Err(LockError::Conflict(LockConflict { permission, wanted, holders }))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // The description may live on in the caller's handle.
        if self.supported {
            for byte in self.held.bytes() {
                let _ = set_lock(&self.file, byte, libc::F_UNLCK);
            }
        }
    }
}

fn set_lock(file: &File, byte: i64, kind: i32) -> Result<(), Errno> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range(byte, kind))).map(drop)
}

pub(super) fn range(byte: i64, kind: i32) -> libc::flock {
    // The kinds and SEEK_SET are 0, 1 and 2: they fit the kernel's short fields.
    let short = |n: i32| libc::c_short::try_from(n).unwrap_or(0);
    libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: byte,
        l_len: 1,
        // Must be zero for these commands.
        l_pid: 0,
    }
}

fn no_locks_here(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL | libc::EBADF)
    )
}

#[cfg(test)]
#[path = "lock_test.rs"]
mod tests;
