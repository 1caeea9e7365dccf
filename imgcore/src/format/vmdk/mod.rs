//! VMDK: VMware's disks.
//!
//! A disk is a *descriptor* (text) and *extents*: flat files, or sparse ones that hold *grains* (64 KiB,
//! mostly) found through a *grain directory* and *grain tables*. The descriptor is a file of its own, or
//! lies inside the only extent. Facts are from VMware, *Virtual Disk Format 5.0*; what it does not
//! tell (seSparse, zeroed grains, versions 2 and 3) is as products write it and QEMU reads it.
//!
//! | `createType` | extents | read | write | create |
//! | --- | --- | --- | --- | --- |
//! | monolithicSparse, twoGbMaxExtentSparse | `KDMV` | y | y (version 3: no) | y |
//! | monolithicFlat, twoGbMaxExtentFlat, vmfs | flat, `ZERO` | y | y | y (vmfs: no) |
//! | streamOptimized | `KDMV`, compressed | y | once | y |
//! | vmfsSparse | `COWD` | y | y | |
//! | seSparse | seSparse | y | | |
//!
//! # Order of writes
//!
//! Sparse extents, from one flush to the next:
//!
//! 1. The first change of the disk gets a new content id (`CID`) into the descriptor: one sector.
//! 2. Grains go to fresh places at the end of the file, and nothing leads there.
//! 3. Flush; then the changed grain tables, the redundant copy and the primary.
//! 4. Where tables are new: flush; then the directory entries, redundant and primary.
//! 5. Flush.
//!
//! Readers use the primary directory. After a crash between any two writes it leads to complete grains or
//! to what was there before; grains and tables that nothing leads to are lost space at the end of the
//! file. Grains that are zeroed by their table entry (`zeroed_grain=on`) are not used again, so the same
//! holds for them, and for grains that are discarded while space is being released (`sparsify`).
//! `check -r leaks` and the end of such a run give lost space back: see [`leaks`]. Flat extents are written in place.
//!
//! Streams: see [`stream`]. Nothing but a new or empty stream can be written, so there is nothing that a
//! crash could damage; the footer that makes the file readable comes last.
//!
//! # Locks
//!
//! `flushing`, then `tables`, then the storages. `cid` and the grain cache stand alone. No lock is held
//! while data are read or written; `tables` is held while one grain table is read.

mod check;
mod cid;
mod create;
mod descriptor;
mod footer;
mod geometry;
mod grain;
mod image;
mod layout;
mod leaks;
mod open;
mod probe;
mod space;
mod staging;
mod stream;
mod tables;
mod text;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::options::OptionValue;
use super::{
    Access, BackingRef, CheckReport, CreateContext, CreateOptions, Driver, Encoder, Extent, Grant,
    Granularity, Image, ImageInfo, Level, OpenContext, OptionKind, OptionSpec, Repair,
    SpecificInfo, StorageId, Unwatched, Watcher, ZeroSpace, info,
};
use crate::Result;
use crate::num::GuestOffset;
use crate::storage::Storage;
use descriptor::ExtentKind;
use image::{Body, VmdkImage};
use staging::STAGING;

/// The driver.
pub struct VmdkDriver;

const fn option(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind, help, default: None }
}

const OPTIONS: &[OptionSpec] = &[
    option("size", OptionKind::Size, "Virtual disk size"),
    option(
        "adapter_type",
        OptionKind::Text,
        "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
    ),
    option("backing_file", OptionKind::Text, "File name of a base image"),
    option("backing_fmt", OptionKind::Text, "Must be 'vmdk' if present"),
    OptionSpec {
        name: "compat6",
        kind: OptionKind::Bool,
        help: "VMDK version 6 image",
        default: Some("off"),
    },
    OptionSpec {
        name: "hwversion",
        kind: OptionKind::Text,
        help: "VMDK hardware version",
        default: Some("undefined"),
    },
    option("toolsversion", OptionKind::Text, "VMware guest tools version"),
    option(
        "subformat",
        OptionKind::Text,
        "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
    ),
    option(
        "zeroed_grain",
        OptionKind::Bool,
        "Enable efficient zero writes using the zeroed-grain GTE feature",
    ),
];

impl Driver for VmdkDriver {
    fn name(&self) -> &'static str {
        "vmdk"
    }

    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        probe::probe(head)
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        open::open(&cx).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn may_compress(&self) -> bool {
        true
    }

    fn supports_backing(&self) -> bool {
        true
    }

    fn resolve_options(&self, options: &mut CreateOptions, _size: u64) -> Result<()> {
        if options.flag("compat6").is_none() {
            options.set("compat6", OptionValue::Bool(false));
        }
        if options.text("hwversion").is_none() {
            options.set("hwversion", OptionValue::Text("undefined".to_owned()));
        }
        Ok(())
    }

    fn create(&self, cx: &CreateContext<'_>) -> Result<()> {
        create::create(cx)
    }
}

impl VmdkImage {
    /// Largest grain, and whether all grains lie at multiples of that on the guest's disk.
    fn grain_unit(&self) -> Option<(u64, bool)> {
        let unit = self.sparse_extents().map(|s| s.geometry.grain).max()?;
        let regular = self.sparse_extents().all(|s| {
            let grain = s.geometry.grain;
            grain.is_power_of_two() && s.extent.start.is_multiple_of(grain)
        });
        Some((unit, regular))
    }

    fn compressed(&self) -> bool {
        self.sparse_extents().any(|s| s.geometry.compressed())
    }

    fn extent_infos(&self) -> Vec<info::VmdkExtentInfo> {
        let name = |id: StorageId| self.storage(id).name().to_owned();
        self.extents
            .iter()
            .map(|e| {
                let (filename, cluster_size, compressed) = match &e.body {
                    Body::Flat { id, .. } => (name(*id), None, None),
                    Body::Zero => (String::new(), None, None),
                    Body::Sparse { id, geometry } => {
                        let compressed = geometry.compressed().then_some(true);
                        (name(*id), Some(geometry.grain), compressed)
                    }
                };
                info::VmdkExtentInfo {
                    filename,
                    format: e.kind.map_or("", ExtentKind::name).to_owned(),
                    virtual_size: e.len,
                    cluster_size,
                    compressed,
                }
            })
            .collect()
    }
}

impl Image for VmdkImage {
    fn format_name(&self) -> &'static str {
        "vmdk"
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn granularity(&self) -> Granularity {
        let plain = Granularity {
            allocation: 1,
            zero: Some(1),
            discard: None,
            encode: None,
            append_only: false,
        };
        let Some((unit, regular)) = self.grain_unit() else { return plain };
        let zeroing = self.sparse_extents().all(|s| s.geometry.zero_grain);
        let compressed = self.compressed();
        // Grains at odd places cannot be locked one by one: a lock takes the whole disk then.
        let allocation = if regular { unit } else { 1 << 62 };
        Granularity {
            allocation,
            zero: (zeroing && regular && !compressed).then_some(unit),
            discard: (regular && self.can_unlink()).then_some(unit),
            encode: (compressed && regular && self.access == Access::Write).then_some(unit),
            append_only: compressed,
        }
    }

    fn storage(&self, id: StorageId) -> &Arc<dyn Storage> {
        self.storage_of(id)
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        self.storages.iter().collect()
    }

    fn backing(&self) -> Option<BackingRef> {
        let name = self.descriptor.parent.clone()?;
        Some(BackingRef { name, format: Some("vmdk".to_owned()) })
    }

    fn check_backing(&self, below: &dyn Image) -> Result<()> {
        self.check_parent(below)
    }

    fn adopt_backing(&self, below: &dyn Image) -> Result<()> {
        self.adopt_parent(below)
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.locate(at.0, len)
    }

    fn read_encoded(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.read_packed(at.0, buf)
    }

    fn note_write(&self, _at: GuestOffset, _len: u64) -> Result<()> {
        if self.access == Access::Read { Ok(()) } else { self.renew_cid() }
    }

    fn prepare_write(&self, at: GuestOffset, len: u64) -> Result<Grant> {
        if self.packed_at(at.0) { self.grant_staged(at.0, len) } else { self.grant(at.0, len) }
    }

    fn prepare_encoded(&self, at: GuestOffset, encoded_len: u64) -> Result<Grant> {
        self.grant_packed(at.0, encoded_len)
    }

    fn commit_write(&self, grant: Grant) -> Result<()> {
        match (grant.storage, self.packed_at(grant.at.0)) {
            (STAGING, _) => self.append_staged(&grant),
            (_, true) => self.link_packed(&grant),
            (_, false) => self.link(&grant),
        }
    }

    fn abort_write(&self, grant: Grant) {
        match (grant.storage, self.packed_at(grant.at.0)) {
            (STAGING, _) => self.drop_staged(&grant),
            (_, true) => self.give_back_packed(&grant),
            (_, false) => self.give_back(&grant),
        }
    }

    fn encoder(&self, level: Level) -> Option<Box<dyn Encoder>> {
        self.granularity().encode?;
        Some(Box::new(grain::GrainEncoder::new(level)))
    }

    fn write_zeroes(&self, at: GuestOffset, len: u64, space: ZeroSpace) -> Result<()> {
        if self.access == Access::Read {
            return Err(super::read_only("vmdk").at_offset(at.0));
        }
        self.zero(at.0, len, space)
    }

    fn discard(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.unlink(at.0, len)
    }

    fn begin_release(&self) {
        self.releasing.store(true, Ordering::Release);
    }

    fn release_unused(&self) -> Result<()> {
        if self.access == Access::Read || leaks::not_repairable(self).is_some() {
            return Ok(());
        }
        leaks::search(self, Repair::Leaks, &Unwatched, &mut |_, _| ()).map(drop)
    }

    fn flush(&self) -> Result<()> {
        self.write_back()?;
        self.sync()
    }

    fn close(&self) -> Result<()> {
        self.finish_stream()?;
        self.flush()
    }

    fn check(&self, repair: Repair, watcher: &dyn Watcher) -> Option<Result<CheckReport>> {
        Some(check::check(self, repair, watcher))
    }

    fn info(&self) -> Result<ImageInfo> {
        let cid = *self.cid.lock().unwrap_or_else(PoisonError::into_inner);
        let vmdk = info::VmdkInfo {
            create_type: self.descriptor.create_type.clone().unwrap_or_default(),
            cid,
            parent_cid: self.parent_cid.load(Ordering::Acquire),
            extents: self.extent_infos(),
        };
        Ok(ImageInfo {
            cluster_size: self.sparse(0).map(|s| s.geometry.grain),
            specific: Some(SpecificInfo::Vmdk(vmdk)),
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }

    fn zero_init(&self) -> bool {
        self.extents.iter().all(|e| match &e.body {
            Body::Flat { id, .. } => self.storage(*id).zero_init(),
            Body::Zero | Body::Sparse { .. } => true,
        })
    }
}
