//! The format extension: a cluster with features of newer programs, mostly dirty bitmaps.
//!
//! They are told, and kept: an image with features is not written, because nothing here would keep a bitmap
//! right.

use zerocopy::FromBytes;

use super::header::Geometry;
use super::layout::{self, Bitmap, Extension, Feature, SECTOR};
use crate::format::info::ParallelsBitmapInfo;
use crate::format::uuid::Uuid;
use crate::num::{round_up, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// Features that are looked at; the cluster may be large.
const MAX_FEATURES: u32 = 1024;
/// Bytes of the cluster that are looked at.
const MAX_BYTES: u64 = 16 << 20;

/// What the extension holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Features {
    pub bitmaps: Vec<ParallelsBitmapInfo>,
    /// Others.
    pub unknown: u32,
}

/// Reads the extension, if there is one.
pub(super) fn read(storage: &dyn Storage, g: &Geometry) -> Result<Features> {
    let mut found = Features::default();
    let Some(start) = g.extension else { return Ok(found) };
    let mut bytes = vec![0; small(g.cluster.min(MAX_BYTES))];
    storage.read_at(start, &mut bytes)?;
    let bad = |at: usize, what: String| {
        Error::corrupt(what).at_path(storage.name()).at_offset(start + crate::num::len_u64(at))
    };
    let short = |at: usize| bad(at, "the format extension ends in the middle of a feature".into());
    let (head, _) = Extension::read_from_prefix(&bytes).map_err(|_| short(0))?;
    let magic = head.magic.get();
    if magic != layout::EXTENSION_MAGIC {
        return Err(bad(
            0,
            format!(
                "Wrong parallels Format Extension magic: {magic:#x}, expected: {:#x}",
                layout::EXTENSION_MAGIC
            ),
        ));
    }
    let mut at = size_of::<Extension>();
    for _ in 0..MAX_FEATURES {
        let rest = bytes.get(at..).unwrap_or_default();
        let (feature, data) = Feature::read_from_prefix(rest).map_err(|_| short(at))?;
        if feature.magic.get() == 0 {
            return Ok(found);
        }
        let data = data.get(..small(u64::from(feature.size.get()))).ok_or_else(|| short(at))?;
        if feature.magic.get() == layout::FEATURE_BITMAP {
            let (bitmap, _) = Bitmap::read_from_prefix(data).map_err(|_| short(at))?;
            found.bitmaps.push(ParallelsBitmapInfo {
                id: Uuid::from_le(bitmap.id).to_string(),
                granularity: u64::from(bitmap.granularity.get()) * SECTOR,
                size: bitmap.size.get().saturating_mul(SECTOR),
            });
        } else {
            if feature.flags.get() & layout::FEATURE_NECESSARY != 0 {
                return Err(Error::unsupported(format!(
                    "the image has a feature that must be understood and is not: {:#x}",
                    feature.magic.get()
                ))
                .at_path(storage.name())
                .at_offset(start + crate::num::len_u64(at)));
            }
            found.unknown += 1;
        }
        let padded = round_up(u64::from(feature.size.get()), 8);
        at += size_of::<Feature>() + small(padded);
    }
    Err(bad(at, "the format extension has too many features".to_owned()))
}

impl Features {
    /// Refuses writing where features would become wrong.
    pub fn check_writable(&self, storage: &dyn Storage) -> Result<()> {
        if self.bitmaps.is_empty() && self.unknown == 0 {
            return Ok(());
        }
        let what = if self.bitmaps.is_empty() { "features" } else { "dirty bitmaps" };
        Err(Error::new(
            crate::ErrorKind::ReadOnly,
            format!("the image has {what} in its format extension, which writing would make wrong"),
        )
        .at_path(storage.name())
        .at_offset(56)
        .hint("convert it to a new image, and write to that"))
    }
}
