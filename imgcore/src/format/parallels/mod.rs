//! Parallels: the disks of Parallels Desktop and its sisters.
//!
//! A header, the *block allocation table* of 32-bit entries (one for each cluster of the guest's disk), and
//! the clusters. See [`layout`] for the specification. The two magics differ in what an entry counts. A
//! `.hdd` folder ([`bundle`]) has a descriptor that names image files, one for each snapshot.
//!
//! | | read | write | create |
//! | --- | --- | --- | --- |
//! | `WithouFreSpacExt` | y | y | y |
//! | `WithoutFreeSpace` | y | y | |
//! | with dirty bitmaps or other features ([`extension`]) | y | | |
//! | bundles, also with snapshots | y | | |
//!
//! # Order of writes
//!
//! Before the first change of the table the header says that the image is in use. From one flush to the
//! next:
//!
//! 1. Clusters go to places that nothing leads to. Flush.
//! 2. The changed sectors of the table. Flush.
//!
//! Closing flushes, cuts the file behind the last cluster, and clears the mark. After a crash between any two
//! writes each entry leads to a complete cluster or to what was there before, so the mark costs the next
//! writer a look at the table and nothing else (other programs may have written in another order); places
//! that nothing leads to are used again. Zeroing happens in the clusters. See [`resize`] for that order.
//!
//! # Locks
//!
//! `flushing`, then `state`. No lock is held while data are read or written; `state` is held while a page of
//! the table is read.

mod bundle;
mod check;
mod create;
mod extension;
mod header;
mod image;
mod layout;
mod resize;
mod space;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::{
    CheckReport, CreateContext, CreateOptions, Driver, Extent, Grant, Granularity, Image,
    ImageInfo, MeasureSource, Measurement, OpenContext, OptionSpec, Repair, Resize, SpecificInfo,
    StorageId, Watcher, ZeroSpace, info,
};
use crate::Result;
use crate::num::GuestOffset;
use crate::storage::Storage;
use image::ParallelsImage;

/// The driver.
pub struct ParallelsDriver;

impl Driver for ParallelsDriver {
    fn name(&self) -> &'static str {
        "parallels"
    }

    /// 100 for magic and version, or for the descriptor of a bundle; 0 otherwise.
    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        if header::is_magic(head) || bundle::is_descriptor(head) { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        if let Some((name, _)) = cx.options.first() {
            return Err(super::options::unknown("parallels", name));
        }
        let mut head = vec![0; super::PROBE_LEN];
        cx.storage.read_at(0, &mut head)?;
        if bundle::is_descriptor(&head) {
            return bundle::open(&cx).map(|image| Box::new(image) as Box<dyn Image>);
        }
        image::open(&cx).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        create::OPTIONS
    }

    fn create(&self, cx: &CreateContext<'_>) -> Result<()> {
        create::create(cx)
    }

    fn measure(
        &self,
        options: &CreateOptions,
        mut source: MeasureSource<'_>,
    ) -> Result<Measurement> {
        create::measure(options, &mut source)
    }
}

impl Image for ParallelsImage {
    fn format_name(&self) -> &'static str {
        "parallels"
    }

    fn virtual_size(&self) -> u64 {
        self.read_state().geometry.size
    }

    fn granularity(&self) -> Granularity {
        let cluster = self.read_state().geometry.cluster;
        Granularity {
            allocation: cluster,
            zero: Some(cluster),
            discard: Some(cluster),
            encode: None,
            append_only: false,
        }
    }

    fn storage(&self, _id: StorageId) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.locate(at.0, len)
    }

    fn prepare_write(&self, at: GuestOffset, len: u64) -> Result<Grant> {
        self.grant(at.0, len)
    }

    fn commit_write(&self, grant: Grant) -> Result<()> {
        self.link(&grant)
    }

    fn abort_write(&self, grant: Grant) {
        self.give_back(&grant);
    }

    fn write_zeroes(&self, at: GuestOffset, len: u64, space: ZeroSpace) -> Result<()> {
        self.zero(at.0, len, space)
    }

    fn discard(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.zero(at.0, len, ZeroSpace::Unmap)
    }

    fn flush(&self) -> Result<()> {
        self.write_back()?;
        self.storage.flush()
    }

    fn close(&self) -> Result<()> {
        self.finish()
    }

    fn resize(&self, request: Resize) -> Result<()> {
        resize::resize(self, request)
    }

    fn check(&self, repair: Repair, watcher: &dyn Watcher) -> Option<Result<CheckReport>> {
        Some(check::check(self, repair, watcher))
    }

    fn info(&self) -> Result<ImageInfo> {
        let state = self.read_state();
        let g = &state.geometry;
        let own = info::ParallelsInfo {
            cluster_size: Some(g.cluster),
            entries_count: Some((if g.ext { "clusters" } else { "sectors" }).to_owned()),
            table_entries: Some(g.entries),
            data_offset: Some(g.data),
            in_use: Some(g.in_use),
            cylinders: Some(g.cylinders),
            heads: Some(g.heads),
            bitmaps: Some(self.features.bitmaps.clone()).filter(|b| !b.is_empty()),
            unknown_features: Some(self.features.unknown).filter(|&n| n > 0),
            bundle: None,
        };
        Ok(ImageInfo { specific: Some(SpecificInfo::Parallels(own)), ..ImageInfo::default() })
    }

    fn zero_init(&self) -> bool {
        self.storage.zero_init()
    }
}
