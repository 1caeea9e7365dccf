//! Whether an image can fit, before its first byte is written.

use std::path::Path;

use crate::{Error, Result};

/// Bytes that this user may still write to the file system of `folder`; `None` where that cannot be
/// known.
pub fn free_space(folder: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    stat.blocks_available().checked_mul(stat.fragment_size())
}

/// Refuses a job that must fail: `needed` bytes will surely be written for `target`.
pub fn ensure_space(target: &str, folder: &Path, needed: u64) -> Result<()> {
    match free_space(folder) {
        Some(free) if free < needed => Err(no_space(target, folder, needed, free)),
        _ => Ok(()),
    }
}

/// The refusal, with the numbers.
pub fn no_space(target: &str, folder: &Path, needed: u64, free: u64) -> Error {
    let human = crate::opts::human::size;
    Error::errno(libc::ENOSPC)
        .context(format!(
            "'{target}' needs at least {} ({needed} bytes), but only {} ({free} bytes) are free in \
             '{}'",
            human(needed),
            human(free),
            folder.display()
        ))
        .at_path(target)
        .hint("free some space, or choose a target on another file system")
}
