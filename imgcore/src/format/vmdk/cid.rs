//! Content ids: how a disk notices that its parent is not what it was.
//!
//! A descriptor holds the id of the disk's own content (`CID`), renewed with the first change after each
//! opening, and the id that the parent had when the disk was made on it (`parentCID`).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::descriptor::{MAX_TEXT, NO_PARENT};
use super::image::VmdkImage;
use super::layout::SECTOR;
use crate::format::{Access, Image, SpecificInfo};
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// The content id of an opened VMDK; `None` for other formats.
pub(super) fn content_id(image: &dyn Image) -> Result<Option<u32>> {
    if image.format_name() != "vmdk" {
        return Ok(None);
    }
    Ok(match image.info()?.specific {
        Some(SpecificInfo::Vmdk(vmdk)) => Some(vmdk.cid),
        _ => None,
    })
}

/// A new content id: random, never that of "no parent", always of eight digits.
pub(super) fn random_cid() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    // The keys of a RandomState come from the system's source of randomness.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(0x564d_444b);
    let wide = hasher.finish();
    let low = u32::try_from(wide & 0xffff_ffff).unwrap_or(0);
    (low | 0x1000_0000).min(NO_PARENT - 1)
}

/// Puts another number into the line of `key` and leaves everything else of a descriptor alone. `None`
/// when there is no such line.
///
/// The number of digits stays where possible, so that only one sector of the text changes and a crash
/// cannot leave half of two texts.
pub(super) fn with_id(bytes: &[u8], key: &str, id: u32) -> Option<Vec<u8>> {
    let mut line_start = 0;
    for line in bytes.split(|&b| b == b'\n') {
        if let Some((at, digits)) = number_at(line, key) {
            let start = line_start + at;
            let width = digits.max(8);
            let mut new = bytes[..start].to_vec();
            new.extend_from_slice(format!("{id:0width$x}").as_bytes());
            new.extend_from_slice(&bytes[start + digits..]);
            return Some(new);
        }
        line_start += line.len() + 1;
    }
    None
}

/// Where in a `key = number` line the number is, and how long.
fn number_at(line: &[u8], key: &str) -> Option<(usize, usize)> {
    let equals = line.iter().position(|&b| b == b'=')?;
    if !line[..equals].trim_ascii().eq_ignore_ascii_case(key.as_bytes()) {
        return None;
    }
    let rest = &line[equals + 1..];
    let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'"')).count();
    let digits = rest[blanks..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
    Some((equals + 1 + blanks, digits))
}

impl VmdkImage {
    /// Gives the disk a new content id before its first change, so that children notice.
    pub(super) fn renew_cid(&self) -> Result<()> {
        // The id of an unfinished target is new already.
        if self.cid_renewed.load(Ordering::Acquire) || self.scratch {
            return Ok(());
        }
        let mut current = self.cid.lock().unwrap_or_else(PoisonError::into_inner);
        if self.cid_renewed.load(Ordering::Acquire) {
            return Ok(());
        }
        let cid = random_cid();
        self.store_id("CID", cid)?;
        *current = cid;
        self.cid_renewed.store(true, Ordering::Release);
        Ok(())
    }

    /// Refuses a parent with another content id than the one on which the disk was made.
    pub(super) fn check_parent(&self, below: &dyn Image) -> Result<()> {
        if self.parent_checked.load(Ordering::Acquire) {
            return Ok(());
        }
        let wanted = self.parent_cid.load(Ordering::Acquire);
        let refuse = |what: String, hint: &str| {
            Err(Error::errno(libc::EINVAL)
                .context(what)
                .at_path(self.storages[0].name())
                .hint(hint))
        };
        match content_id(below)? {
            Some(cid) if cid == wanted => {
                self.parent_checked.store(true, Ordering::Release);
                Ok(())
            }
            Some(cid) => refuse(
                format!(
                    "the parent's content id is {cid:08x}, and this disk was made on {wanted:08x}: the parent was changed or is another disk"
                ),
                "use the unchanged parent; what only the parent holds cannot be trusted",
            ),
            None => refuse(
                format!("the file below is {}, which has no content id", below.format_name()),
                "the parent of a VMDK must be a VMDK",
            ),
        }
    }

    /// Records the present content id of the file below, which this disk takes for its parent.
    pub(super) fn adopt_parent(&self, below: &dyn Image) -> Result<()> {
        let Some(cid) = content_id(below)? else { return Ok(()) };
        if self.access == Access::Read {
            return Err(crate::format::read_only("vmdk"));
        }
        let _turn = self.cid.lock().unwrap_or_else(PoisonError::into_inner);
        if self.parent_cid.load(Ordering::Acquire) != cid {
            self.store_id("parentCID", cid)?;
            self.parent_cid.store(cid, Ordering::Release);
        }
        Ok(())
    }

    /// Changes one number of the descriptor on disk.
    fn store_id(&self, key: &str, id: u32) -> Result<()> {
        let main = &*self.storages[0];
        let (offset, room) = match self.descriptor_at {
            Some((offset, room)) => (offset, room.min(MAX_TEXT)),
            None => (0, main.len()?.min(MAX_TEXT)),
        };
        let mut text = vec![0; small(room)];
        main.read_at(offset, &mut text)?;
        let mut new = with_id(&text, key, id).ok_or_else(|| {
            Error::corrupt(format!("the descriptor has no line '{key}=...'")).at_path(main.name())
        })?;
        if self.descriptor_at.is_some() && !fit(&mut new, text.len()) {
            return Err(Error::corrupt("the descriptor has no room for a longer content id")
                .at_path(main.name())
                .at_offset(offset));
        }
        write_changed(main, offset, &text, &new)
    }
}

/// Cuts zeroes at the end of an embedded text that grew; false when it does not fit.
fn fit(text: &mut Vec<u8>, room: usize) -> bool {
    let fits = text.iter().skip(room).all(|&b| b == 0);
    text.truncate(room);
    fits
}

/// Writes only the sectors that differ.
fn write_changed(storage: &dyn Storage, offset: u64, old: &[u8], new: &[u8]) -> Result<()> {
    let sector = small(SECTOR);
    let mut at = offset;
    for (i, piece) in new.chunks(sector).enumerate() {
        let before = old.get(i * sector..old.len().min(i * sector + piece.len()));
        if before != Some(piece) {
            storage.write_at(at, piece)?;
        }
        at += len_u64(piece.len());
    }
    Ok(())
}
