//! Where a stream keeps its grain directory: the footer.
//!
//! A stream ends with a footer marker, the footer (a header with the true `gdOffset`) and an
//! end-of-stream marker of one sector each. Files that got trailing bytes on their way (padding of an
//! archive, a copied device) are searched by walking from marker to marker.

use std::sync::Arc;

use zerocopy::FromBytes;

use super::layout::{self, GrainMarker, MetadataMarker, SECTOR, SparseHeader};
use crate::num::round_up;
use crate::storage::Storage;
use crate::{Error, Result};

/// The footer of a stream whose first sector is `header`.
pub(super) fn find(storage: &Arc<dyn Storage>, header: &SparseHeader) -> Result<SparseHeader> {
    let len = storage.len()?;
    if let Some(at) = len.checked_sub(3 * SECTOR)
        && let Some(footer) = at_marker(&**storage, at, len)?
    {
        return Ok(footer);
    }
    walk(&**storage, header, len)?.ok_or_else(|| {
        Error::corrupt("The stream has no footer: the file is truncated")
            .at_path(storage.name())
            .at_offset(len)
            .hint("copy or export the file again; its last bytes are missing")
    })
}

/// The footer, if a footer marker, a footer and an end-of-stream marker are at `at`.
fn at_marker(storage: &dyn Storage, at: u64, len: u64) -> Result<Option<SparseHeader>> {
    if at.checked_add(3 * SECTOR).is_none_or(|end| end > len) {
        // What is beyond the file would read as an end-of-stream marker.
        return Ok(None);
    }
    let mut bytes = [0; 3 * 512];
    storage.read_at(at, &mut bytes)?;
    let (marker, rest) = bytes.split_at(512);
    let (footer, end) = rest.split_at(512);
    let (Ok(marker), Ok(footer), Ok(end)) = (
        MetadataMarker::read_from_bytes(marker),
        SparseHeader::read_from_bytes(footer),
        MetadataMarker::read_from_bytes(end),
    ) else {
        return Ok(None);
    };
    let good = marker.size.get() == 0
        && marker.kind.get() == layout::MARKER_FOOTER
        && footer.magic.get() == layout::MAGIC_KDMV
        && footer.gd_offset.get() != layout::GD_AT_END
        && end.sectors.get() == 0
        && end.size.get() == 0
        && end.kind.get() == layout::MARKER_EOS;
    Ok(good.then_some(footer))
}

/// Follows the markers from the first one on; at most one step per sector of the file.
fn walk(storage: &dyn Storage, header: &SparseHeader, len: u64) -> Result<Option<SparseHeader>> {
    let Some(mut at) = header.overhead.get().checked_mul(SECTOR) else { return Ok(None) };
    let longest = header.grain_size.get().saturating_mul(2 * SECTOR);
    while at < len {
        let mut bytes = [0; 16];
        storage.read_at(at, &mut bytes)?;
        let Ok((marker, kind)) = GrainMarker::read_from_prefix(&bytes) else { return Ok(None) };
        let size = u64::from(marker.size.get());
        if size != 0 {
            if size > longest {
                return Ok(None);
            }
            at = round_up(at.saturating_add(12 + size), SECTOR);
            continue;
        }
        let kind = u32::from_le_bytes([kind[0], kind[1], kind[2], kind[3]]);
        match kind {
            layout::MARKER_FOOTER => return at_marker(storage, at, len),
            layout::MARKER_GT | layout::MARKER_GD => {
                let sectors = marker.lba.get().saturating_add(1);
                at = at.saturating_add(sectors.saturating_mul(SECTOR));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}
