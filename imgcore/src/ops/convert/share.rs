//! Whether blocks of a source can be shared with a new file (reflink).
//!
//! Asked once, before the first chunk, with a file that has no name: what a chunk's allocation looks
//! like must not depend on which thread found out that sharing does not work.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::super::source::{Origin, Walk};
use crate::graph::Node;
use crate::storage::sparse::{self, Outcome};

/// Extents looked at for one to try with.
const TRIES: usize = 64;
/// Block size of the file systems in question, or a multiple of it.
const BLOCK: u64 = 4096;

/// Tries to share one block of `source` with a file in `folder`.
pub(super) fn can_share(source: &Node, folder: &Path) -> bool {
    let Ok(stat) = nix::sys::statfs::statfs(folder) else { return false };
    let kind = stat.filesystem_type();
    if kind != nix::sys::statfs::BTRFS_SUPER_MAGIC && kind != nix::sys::statfs::XFS_SUPER_MAGIC {
        return false;
    }
    let walk = Walk::chain(source);
    let size = source.virtual_size();
    let mut at = 0;
    for _ in 0..TRIES {
        if at >= size {
            return false;
        }
        let Ok(run) = walk.run(at, size - at) else { return false };
        if let (Origin::Plain(id, offset), Some(node)) = (run.origin, walk.image(run.link))
            && offset.0.is_multiple_of(BLOCK)
            && run.len >= BLOCK
            && let Some(file) = node.image().storage(id).as_file()
        {
            return try_block(file, offset.0, folder);
        }
        at += run.len;
    }
    false
}

fn try_block(source: &std::fs::File, offset: u64, folder: &Path) -> bool {
    let nameless = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
        .open(folder);
    let Ok(target) = nameless else { return false };
    matches!(sparse::reflink(source, offset, &target, 0, BLOCK), Ok(Outcome::Done))
}
