//! QED: QEMU's "enhanced disk".
//!
//! A header, an *L1 table* of fixed size whose entries lead to *L2 tables* of the same size, whose entries
//! lead to clusters, or say that a cluster is zero. See [`layout`] for the specification. Nothing counts
//! references: the file ends with its last cluster.
//!
//! | | read | write | create |
//! | --- | --- | --- | --- |
//! | all clusters and table sizes, on a backing file | y | y | y |
//!
//! Of a backing file's format only "raw" is recorded; others are probed.
//!
//! # Order of writes
//!
//! Before the first change of a table the header gets its "need check" bit. From one flush to the next:
//!
//! 1. Clusters go behind the end of the file, where nothing leads to. Flush.
//! 2. New L2 tables, and the changed sectors of others. Flush.
//! 3. The changed sectors of L1. Flush.
//!
//! Closing flushes and then clears the bit. After a crash between any two writes each entry leads to a
//! complete cluster or to what was there before, so the bit costs the next writer a look at the tables and
//! nothing else (other programs may have written in another order); what nothing leads to is a leak until
//! `check -r leaks` moves the last clusters there. Zeroing happens in clusters that have a place. See
//! [`resize`] and [`compact`] for their orders.
//!
//! # Locks
//!
//! `flushing`, then `state`. No lock is held while data are read or written; `state` is held while tables
//! are read.

mod check;
mod compact;
mod create;
mod header;
mod image;
mod layout;
mod resize;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::{
    BackingRef, CheckReport, CreateContext, CreateOptions, Driver, Extent, Grant, Granularity,
    Image, ImageInfo, MeasureSource, Measurement, OpenContext, OptionSpec, Repair, Resize,
    SpecificInfo, StorageId, Watcher, ZeroSpace, info,
};
use crate::Result;
use crate::num::GuestOffset;
use crate::storage::Storage;
use image::QedImage;
use layout::feature;

/// The driver.
pub struct QedDriver;

impl Driver for QedDriver {
    fn name(&self) -> &'static str {
        "qed"
    }

    /// 100 for the magic, 0 otherwise.
    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        let found =
            head.len() >= size_of::<layout::Header>() && head[..4] == layout::MAGIC.to_le_bytes();
        if found { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        image::open(&cx).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        create::OPTIONS
    }

    fn supports_backing(&self) -> bool {
        true
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

impl Image for QedImage {
    fn format_name(&self) -> &'static str {
        "qed"
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

    fn backing(&self) -> Option<BackingRef> {
        let state = self.read_state();
        let raw = state.geometry.features & feature::BACKING_RAW != 0;
        state.geometry.backing.as_ref().map(|(_, name)| BackingRef {
            name: name.clone(),
            format: raw.then(|| "raw".to_owned()),
        })
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

    fn make_empty(&self) -> Result<()> {
        resize::make_empty(self)
    }

    fn set_backing(&self, backing: Option<&BackingRef>) -> Result<()> {
        resize::set_backing(self, backing)
    }

    fn info(&self) -> Result<ImageInfo> {
        let state = self.read_state();
        let g = &state.geometry;
        let qed = info::QedInfo {
            table_size: g.table_size,
            header_size: g.header / g.cluster,
            l1_offset: g.l1,
            need_check: g.features & feature::NEED_CHECK != 0,
            unknown_compatible_features: Some(g.compat_features).filter(|&f| f != 0),
            unknown_autoclear_features: Some(g.autoclear_features).filter(|&f| f != 0),
        };
        Ok(ImageInfo {
            cluster_size: Some(g.cluster),
            dirty: Some(g.features & feature::NEED_CHECK != 0),
            specific: Some(SpecificInfo::Qed(qed)),
            ..ImageInfo::default()
        })
    }

    fn zero_init(&self) -> bool {
        self.storage.zero_init()
    }
}
