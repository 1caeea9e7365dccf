//! Leaked space of sparse extents: finding it and giving it back.
//!
//! A grain is leaked when it lies behind the extent's metadata, nothing refers to it (see [`UsedSpace`]),
//! and it holds something. Space that reads as zeroes is no leak, stored or not: products round files up
//! and leave gaps, and copies turn holes into zeroes. Neither is what is left of a gap that is smaller
//! than a grain, except at the end of the file, where a crash cuts grains off.
//!
//! Order of writes when leaks are given back: everything is flushed first, so that no older table whose
//! entries lead to the leaked grains can come back after a power failure; then holes are punched and the
//! file is cut after the last thing used; then it is flushed again. No metadata change, so a crash in
//! between leaves some leaks and nothing else.
//!
//! This looks at the file as it is: nobody else may write to the disk meanwhile.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use super::descriptor::ExtentAccess;
use super::geometry::TableKind;
use super::image::{Body, Sparse, VmdkImage};
use super::space::{Free, UsedSpace};
use crate::format::{Access, Repair, Watcher, check_cancelled};
use crate::num::{len_u64, round_down, round_up, small};
use crate::storage::zero::is_zero;
use crate::storage::{HostKind, Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// Bytes read at once to see whether they are zero.
const PIECE: u64 = 64 << 10;

/// Leaked grains, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leak {
    /// Bytes.
    pub at: u64,
    pub len: u64,
    pub grains: u64,
}

/// What was found; grains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leaks {
    pub left: u64,
    pub fixed: u64,
}

/// Looks through all extents whose leaks can be told, and gives leaked space back if asked. `told` hears
/// of each run of leaked grains.
pub(super) fn search(
    image: &VmdkImage,
    repair: Repair,
    watcher: &dyn Watcher,
    told: &mut dyn FnMut(Sparse<'_>, Leak),
) -> Result<Leaks> {
    let users = users(image)?;
    let mut leaks = Leaks::default();
    if image.access == Access::Write {
        image.write_back()?;
        image.sync()?;
    }
    for sparse in image.sparse_extents() {
        if !tellable(sparse) || !readable_copies(image, sparse) {
            continue;
        }
        if users.get(&Identity::of(&**sparse.storage)?).is_none_or(|&n| n > 1) {
            // Two extents in one file: what one leaks may be the other's.
            continue;
        }
        let found = Search { image, sparse, repair, watcher }.run(told)?;
        match repair {
            Repair::Nothing => leaks.left += found,
            Repair::Leaks | Repair::All => leaks.fixed += found,
        }
    }
    if leaks.fixed > 0 {
        image.sync()?;
    }
    Ok(leaks)
}

/// Why leaks of this image cannot be given back, if that is so.
pub(super) fn not_repairable(image: &VmdkImage) -> Option<Error> {
    if image.sparse_extents().any(tellable) {
        return None;
    }
    let hint = if image.sparse_extents().any(|s| s.geometry.compressed()) {
        "streamOptimized images are written once and not repaired; convert the disk into a new file"
    } else if image.sparse_extents().next().is_some() {
        "space is given back only in files of monolithicSparse, twoGbMaxExtentSparse and vmfsSparse \
         disks that can be written to; convert the disk into a new file"
    } else if image.extents.iter().all(|e| matches!(e.body, Body::Flat { .. } | Body::Zero)) {
        "flat extents have a place for each byte of the disk: there is nothing to repair"
    } else {
        "convert the disk into a new file"
    };
    Some(Error::unsupported("This image format does not support checks").hint(hint))
}

/// Whether it can be said of this kind of extent what is leaked.
pub(super) fn tellable(sparse: Sparse<'_>) -> bool {
    let g = sparse.geometry;
    g.kind == TableKind::Sectors
        && !g.compressed()
        && !g.footer
        && g.version < 3
        && sparse.extent.access == ExtentAccess::ReadWrite
        // A device or a window on a file does not end where the extent does.
        && !sparse.storage.limits().block_device
        && sparse.storage.whole().is_none()
}

/// Whether all tables could be looked at: those of an unreadable redundant directory would seem leaked,
/// and they may be what a recovery needs.
fn readable_copies(image: &VmdkImage, sparse: Sparse<'_>) -> bool {
    let tables = image.read_tables();
    let dir = &tables.dirs[small(u64::from(sparse.number))];
    !dir.gd.is_empty() && dir.rgd.is_empty() == sparse.geometry.rgd.is_none()
}

/// What tells one file from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    /// Device and inode.
    File(u64, u64),
    Name(String),
}

impl Identity {
    fn of(storage: &dyn Storage) -> Result<Identity> {
        let whole = storage.whole().map_or(storage, |(file, _)| file);
        let Some(file) = whole.as_file() else {
            return Ok(Identity::Name(whole.name().to_owned()));
        };
        let m = file.metadata().map_err(|e| Error::io(&e).at_path(whole.name()))?;
        Ok(Identity::File(m.dev(), m.ino()))
    }
}

/// How many parts of the disk are in each file.
fn users(image: &VmdkImage) -> Result<HashMap<Identity, u32>> {
    let mut users = HashMap::new();
    for storage in &image.storages {
        *users.entry(Identity::of(&**storage)?).or_insert(0) += 1;
    }
    Ok(users)
}

/// The search in one extent.
struct Search<'a> {
    image: &'a VmdkImage,
    sparse: Sparse<'a>,
    repair: Repair,
    watcher: &'a dyn Watcher,
}

impl Search<'_> {
    /// The number of leaked grains, which are gone afterwards if that was asked for.
    fn run(&self, told: &mut dyn FnMut(Sparse<'_>, Leak)) -> Result<u64> {
        let storage = self.sparse.storage;
        let len = storage.len()?;
        let used = UsedSpace::of(self.image, self.sparse, len, self.watcher)?;
        let mut count = 0;
        let mut from = 0;
        while let Some(free) = used.free_from(from) {
            let last = free.end == len;
            let mut here = 0;
            self.leaks_in(free, last, |leak| {
                here += leak.grains;
                told(self.sparse, leak);
                if self.repair == Repair::Nothing || last {
                    return Ok(());
                }
                storage.write_zeroes(leak.at, leak.len, ZeroMode::MayUnmap)
            })?;
            count += here;
            if last {
                if here > 0 && self.repair != Repair::Nothing {
                    self.cut(free.start)?;
                }
                break;
            }
            from = free.end;
        }
        Ok(count)
    }

    /// Ends the file after what is used.
    fn cut(&self, len: u64) -> Result<()> {
        let g = self.sparse.geometry;
        let mut tables = self.image.write_tables();
        self.sparse.storage.set_len(len, Preallocation::Off)?;
        let dir = &mut tables.dirs[small(u64::from(self.sparse.number))];
        dir.limit = len;
        dir.next_free = round_up(len.max(g.overhead), g.grain);
        Ok(())
    }

    /// Tells the runs of grains in free space that hold something.
    fn leaks_in(
        &self,
        free: Free,
        last: bool,
        mut each: impl FnMut(Leak) -> Result<()>,
    ) -> Result<()> {
        let grain = self.sparse.geometry.grain;
        let mut buffer = Vec::new();
        let mut open: Option<Leak> = None;
        let mut at = free.start;
        while at < free.end {
            check_cancelled(self.watcher)?;
            let left = free.end - at;
            if left < grain && !last {
                break;
            }
            let host = self.sparse.storage.status(at, left)?;
            let hole = if host.kind == HostKind::Hole { host.len.min(left) } else { 0 };
            // Whole grains of a hole are passed at once.
            let skip = if hole == left { left } else { round_down(hole, grain) };
            let here = grain.min(left);
            if skip == 0 && self.holds_something(at, here, &mut buffer)? {
                let leak = open.get_or_insert(Leak { at, len: 0, grains: 0 });
                leak.len += here;
                leak.grains += 1;
            } else if let Some(leak) = open.take() {
                each(leak)?;
            }
            at += if skip == 0 { here } else { skip };
        }
        open.map_or(Ok(()), each)
    }

    /// Whether any byte of the range is not zero.
    fn holds_something(&self, at: u64, len: u64, buffer: &mut Vec<u8>) -> Result<bool> {
        let storage = self.sparse.storage;
        let end = at + len;
        let mut at = at;
        while at < end {
            let host = storage.status(at, end - at)?;
            let here = host.len.min(end - at).max(1);
            if host.kind == HostKind::Hole {
                at += here;
                continue;
            }
            let here = here.min(PIECE);
            buffer.resize(small(here), 0);
            storage.read_at(at, buffer)?;
            if !is_zero(buffer) {
                return Ok(true);
            }
            at += len_u64(buffer.len());
        }
        Ok(false)
    }
}
