//! Linux swap space: nothing in it outlives a shutdown, except the header in its first page.
//!
//! `mkswap(8)`; the header is `union swap_header` of the kernel's `include/linux/swap.h`. A system that is
//! hibernated replaces the signature, which [`crate::guest::content`] notices.

use crate::guest::content::PAGE_SIZES;
use crate::guest::fields::Fields;
use crate::guest::free::{Cursor, FreeMap, FreeRange};
use crate::guest::volume::Volume;
use crate::{Error, Result};

/// A swap space.
#[derive(Debug)]
pub struct Swap {
    page: u64,
    end: u64,
}

impl Swap {
    /// Reads the header.
    ///
    /// # Errors
    /// When there is none that is known, or it reaches beyond the volume.
    pub fn open(volume: &Volume) -> Result<Self> {
        let mut page = None;
        for size in PAGE_SIZES {
            if volume.len() >= size && volume.read(size - 10, 10)? == b"SWAPSPACE2" {
                page.get_or_insert(size);
            }
        }
        let page = page.ok_or_else(|| {
            Error::unsupported(
                "is a swap space of the old version, or in use by a hibernated system",
            )
        })?;
        let header = volume.read(1024, 12)?;
        let f = Fields(&header);
        // Version, then the number of the last page, in the byte order of the machine.
        let last = match (f.le32(0)?, f.be32(0)?) {
            (1, _) => f.le32(4)?,
            (_, 1) => f.be32(4)?,
            _ => return Err(Error::unsupported("is a swap space of an unknown version")),
        };
        let end = (u64::from(last) + 1) * page;
        if end > volume.len() {
            return Err(Error::corrupt("the swap space reaches beyond its volume")
                .hint("make it anew in the guest: mkswap"));
        }
        Ok(Swap { page, end })
    }
}

impl FreeMap for Swap {
    fn kind(&self) -> &'static str {
        "swap"
    }

    fn unit(&self) -> u64 {
        self.page
    }

    fn managed(&self) -> u64 {
        self.end
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        if cursor.step > 0 {
            return Ok(None);
        }
        cursor.step = 1;
        Ok(Some(vec![FreeRange { at: self.page, len: self.end - self.page }]))
    }
}
