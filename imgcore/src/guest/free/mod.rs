//! Which bytes of a volume hold nothing, told by the file system's own metadata.
//!
//! [`open`] looks at a volume and gives a [`FreeMap`], or an error of the kind `Unsupported` or `Corrupt`
//! whose hint says what to do first (replay the journal, run a check, shut Windows down completely).
//! [`ranges`] lists the free ranges in order, in bounded memory.
//!
//! # Trust
//!
//! Freeing a block that is in use destroys data, so the metadata must prove to be whole:
//!
//! * the file system was left cleanly: nothing waits in a journal, no error is marked, no system is
//!   hibernated on it;
//! * every checksum there is gets checked, and where there are none, counters and copies are compared with
//!   what was read;
//! * nothing is used before all of it was read: callers run through the list once, and only when that ends
//!   without an error a second time, to act. [`Summary::of`] is the first run.
//!
//! Blocks that the file system keeps for itself (tables, journals, boot code) are not told as free.

pub(super) mod bitmap;
mod lvm;
#[cfg(test)]
mod tests;

pub use lvm::unused_extents;

use super::content::{self, Content};
use super::volume::Volume;
use super::{btrfs, exfat, ext, fat, ntfs, swap, xfs};
use crate::{Error, Result};

/// Free bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeRange {
    /// First byte, in the volume.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// Where a reader of free ranges stands. Each file system uses the fields in its own way; all zero at the
/// beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// The group, or the piece of a table.
    pub(crate) step: u64,
    /// A place within it.
    pub(crate) inner: u64,
    /// What was counted within it.
    pub(crate) counted: u64,
    /// A sum over what was told, where a second list must say the same.
    pub(crate) digest: u64,
}

/// The free space of one volume.
pub trait FreeMap: std::fmt::Debug + Send + Sync {
    /// What it is, as people call it (`ext4`, `XFS`).
    fn kind(&self) -> &'static str;

    /// Bytes of a block or cluster.
    fn unit(&self) -> u64;

    /// The bytes that the file system manages, from the volume's beginning on.
    fn managed(&self) -> u64;

    /// The next ranges, sorted, all behind those told before; `None` at the end. May be empty. Bounded: no
    /// more than some megabytes.
    ///
    /// # Errors
    /// When something cannot be read or does not fit together: nothing of the volume may be trusted then.
    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>>;

    /// Called after the last range with the sum of all.
    ///
    /// # Errors
    /// When that is not what the file system counted itself.
    fn finish(&self, _free: u64) -> Result<()> {
        Ok(())
    }
}

/// The map of a volume with the signatures that [`content::probe`] found.
///
/// # Errors
/// `Unsupported` when free space is not known or not to be trusted, with a hint that says what to do;
/// `Corrupt` when the metadata contradict themselves.
pub fn open(volume: &Volume, found: &[Content]) -> Result<Box<dyn FreeMap>> {
    let content = match found {
        [] => return Err(Error::unsupported("holds no file system that is known here")),
        [one] => *one,
        [Content::Swap, Content::Hibernation] | [Content::Hibernation, Content::Swap] => {
            Content::Hibernation
        }
        [a, b, ..] => {
            return Err(Error::unsupported(format!(
                "looks like {} and like {}",
                a.describe(),
                b.describe()
            ))
            .hint("remove the signature that is left over from an earlier use: wipefs"));
        }
    };
    match content {
        Content::Ext => Ok(Box::new(ext::ExtFree::open(volume)?)),
        Content::Btrfs => Ok(Box::new(btrfs::BtrfsFree::open(volume)?)),
        Content::Xfs => Ok(Box::new(xfs::XfsFree::open(volume)?)),
        Content::Ntfs => Ok(Box::new(ntfs::NtfsFree::open(volume)?)),
        Content::Fat => Ok(Box::new(fat::FatFree::open(volume)?)),
        Content::ExFat => Ok(Box::new(exfat::ExFatFree::open(volume)?)),
        Content::Swap => Ok(Box::new(swap::Swap::open(volume)?)),
        Content::Hibernation => Err(Error::unsupported("holds a hibernated system")
            .hint("start the guest and shut it down instead of hibernating it")),
        Content::Luks | Content::BitLocker => Err(Error::unsupported(format!(
            "is {}: what is free is known only inside",
            content.describe()
        ))
        .hint("trim it in the guest: fstrim, with discards allowed through the encryption")),
        other => Err(Error::unsupported(format!(
            "holds {}, whose free space is not read here",
            other.describe()
        ))
        .hint("trim it in the guest (fstrim), with a disk that passes discards on")),
    }
}

/// [`open`] after a look at the signatures.
///
/// # Errors
/// As [`open`], and when the volume cannot be read.
pub fn of_volume(volume: &Volume) -> Result<Box<dyn FreeMap>> {
    open(volume, &content::probe(volume)?)
}

/// All free ranges, sorted, joined where they touch, each inside the managed part of the volume.
pub fn ranges(map: &dyn FreeMap) -> Ranges<'_> {
    Ranges {
        map,
        cursor: Cursor::default(),
        batch: Vec::new().into_iter(),
        open: None,
        end: 0,
        free: 0,
        done: false,
    }
}

/// See [`ranges`]. After an error nothing more comes.
#[derive(Debug)]
pub struct Ranges<'a> {
    map: &'a dyn FreeMap,
    cursor: Cursor,
    batch: std::vec::IntoIter<FreeRange>,
    /// The last range, which may still grow.
    open: Option<FreeRange>,
    /// Where the last range ended.
    end: u64,
    free: u64,
    done: bool,
}

impl Ranges<'_> {
    fn advance(&mut self) -> Result<Option<FreeRange>> {
        loop {
            for range in self.batch.by_ref() {
                if range.len == 0 {
                    continue;
                }
                let end = range.at.checked_add(range.len);
                let Some(end) = end.filter(|&e| e <= self.map.managed() && range.at >= self.end)
                else {
                    return Err(Error::corrupt("free blocks are out of order or out of range")
                        .at_offset(range.at));
                };
                self.end = end;
                self.free += range.len;
                match &mut self.open {
                    Some(open) if open.at + open.len == range.at => open.len += range.len,
                    open => {
                        if let Some(full) = open.replace(range) {
                            return Ok(Some(full));
                        }
                    }
                }
            }
            match self.map.batch(&mut self.cursor)? {
                Some(batch) => self.batch = batch.into_iter(),
                None => {
                    self.done = true;
                    self.map.finish(self.free)?;
                    return Ok(self.open.take());
                }
            }
        }
    }
}

impl Iterator for Ranges<'_> {
    type Item = Result<FreeRange>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance();
        self.done |= next.is_err();
        next.transpose()
    }
}

/// What a complete run over the free ranges found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Free bytes.
    pub free: u64,
    /// Number of ranges.
    pub ranges: u64,
}

impl Summary {
    /// Runs through all ranges, which proves that they can be trusted, and tells each.
    ///
    /// # Errors
    /// When the file system cannot be trusted, or `tell` fails.
    pub fn of(map: &dyn FreeMap, tell: &mut dyn FnMut(FreeRange) -> Result<()>) -> Result<Summary> {
        let mut sum = Summary::default();
        for range in ranges(map) {
            let range = range?;
            sum.free += range.len;
            sum.ranges += 1;
            tell(range)?;
        }
        Ok(sum)
    }
}

/// The file system was not left cleanly.
pub(super) fn unclean(what: &str, remedy: &str) -> Error {
    Error::unsupported(what).hint(remedy)
}
