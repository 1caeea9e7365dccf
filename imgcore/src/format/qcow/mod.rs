//! qcow: the first format of QEMU, version 1.
//!
//! A header, an *L1 table* whose entries lead to *L2 tables*, whose entries lead to clusters: plain,
//! compressed (raw deflate), or encrypted by the legacy AES. See [`layout`] for where the fields are
//! described. Nothing counts references; unused space is what nothing leads to.
//!
//! | | read | write | create |
//! | --- | --- | --- | --- |
//! | plain, compressed, on a backing file | y | y | y |
//! | encrypted | y | y | only when asked for |
//!
//! The format of a backing file is not recorded, so it is probed.
//!
//! # Order of writes
//!
//! From one flush to the next:
//!
//! 1. Clusters and compressed streams go behind the end of the file, where nothing leads to. Flush.
//! 2. New L2 tables, and the changed sectors of others. Flush.
//! 3. The changed sectors of L1. Flush.
//!
//! After a crash between any two writes each entry leads to a complete cluster or to what was there before;
//! what nothing leads to is lost until `check -r leaks` gives it back. Zeroing happens in the clusters.
//! Encrypted clusters are rewritten in their place, sector by sector. See [`resize`] for that order.
//!
//! # Locks
//!
//! `flushing`, then `state`. No lock is held while data are read or written; `state` is held while tables
//! are read.

mod check;
mod create;
mod header;
mod image;
mod layout;
mod resize;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::deflate::Deflater;
use super::{
    BackingRef, CheckReport, CreateContext, CreateOptions, Driver, Encoded, Encoder, Extent, Grant,
    Granularity, Image, ImageInfo, Level, MeasureSource, Measurement, OpenContext, OptionSpec,
    Repair, Resize, SpecificInfo, StorageId, Watcher, ZeroSpace, info,
};
use crate::Result;
use crate::num::GuestOffset;
use crate::storage::Storage;
use image::{PLAIN, QcowImage};

/// The driver.
pub struct QcowDriver;

impl Driver for QcowDriver {
    fn name(&self) -> &'static str {
        "qcow"
    }

    /// 100 for magic and version, 0 otherwise.
    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        let found = head.len() >= size_of::<layout::Header>()
            && head[..4] == layout::MAGIC.to_be_bytes()
            && head[4..8] == layout::VERSION.to_be_bytes();
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

    fn resolve_options(&self, options: &mut CreateOptions, _size: u64) -> Result<()> {
        create::encrypted(options).map(drop)
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

/// Compresses clusters.
struct ClusterEncoder(Deflater);

impl Encoder for ClusterEncoder {
    fn encode(&mut self, _at: GuestOffset, unit: &[u8], out: &mut Vec<u8>) -> Result<Encoded> {
        self.0.deflate(unit, out)
    }
}

impl Image for QcowImage {
    fn format_name(&self) -> &'static str {
        "qcow"
    }

    fn virtual_size(&self) -> u64 {
        self.read_state().geometry.size
    }

    fn granularity(&self) -> Granularity {
        let cluster = self.read_state().geometry.cluster();
        let plain = !self.encrypted();
        Granularity {
            allocation: cluster,
            zero: Some(cluster),
            discard: Some(cluster).filter(|_| plain),
            encode: Some(cluster).filter(|_| plain),
            append_only: false,
        }
    }

    fn storage(&self, id: StorageId) -> &Arc<dyn Storage> {
        match &self.keyed {
            Some(keyed) if id == PLAIN => &keyed.storage,
            _ => &self.storage,
        }
    }

    fn backing(&self) -> Option<BackingRef> {
        let state = self.read_state();
        state
            .geometry
            .backing
            .as_ref()
            .map(|(_, name)| BackingRef { name: name.clone(), format: None })
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.locate(at.0, len)
    }

    fn read_encoded(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.read_clusters(at.0, buf)
    }

    fn prepare_write(&self, at: GuestOffset, len: u64) -> Result<Grant> {
        self.grant(at.0, len)
    }

    fn prepare_encoded(&self, at: GuestOffset, encoded_len: u64) -> Result<Grant> {
        self.grant_packed(at.0, encoded_len)
    }

    fn commit_write(&self, grant: Grant) -> Result<()> {
        self.link(&grant)
    }

    fn abort_write(&self, grant: Grant) {
        self.give_back(&grant);
    }

    fn encoder(&self, level: Level) -> Option<Box<dyn Encoder>> {
        if self.encrypted() {
            return None;
        }
        Some(Box::new(ClusterEncoder(Deflater::new(level))))
    }

    fn write_zeroes(&self, at: GuestOffset, len: u64, space: ZeroSpace) -> Result<()> {
        self.zero(at.0, len, space)
    }

    fn discard(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.give_space(at.0, len)
    }

    fn flush(&self) -> Result<()> {
        self.write_back()?;
        self.storage.flush()
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
        let encrypt = g.encrypted.then(|| serde_json::json!({ "format": "aes" }));
        let qcow = info::QcowInfo {
            l1_offset: g.l1,
            l1_entries: g.l1_entries(),
            l2_entries: 1 << g.l2_bits,
            encrypt,
        };
        Ok(ImageInfo {
            cluster_size: Some(g.cluster()),
            encrypted: g.encrypted,
            dirty: Some(false),
            specific: Some(SpecificInfo::Qcow(qcow)),
            ..ImageInfo::default()
        })
    }

    fn zero_init(&self) -> bool {
        self.storage.zero_init()
    }

    fn encrypts(&self) -> bool {
        self.encrypted()
    }
}
