//! The opened image: the [`Image`] contract, answered by this folder's parts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::changing::ChangingTables;
use super::compress::ClusterEncoder;
use super::crypt::{Crypt, PLAIN};
use super::layout::{compatible, incompatible};
use super::map::{DATA_FILE, IMAGE};
use super::tables::{Geometry, Tables};
use crate::format::deflate::DecodedCluster;
use crate::format::info::{Qcow2Info, SpecificInfo};
use crate::format::{
    Amendment, BackingRef, BitmapStore, CheckReport, Encoder, Extent, Grant, Granularity, Image,
    ImageInfo, Level, Repair, Resize, SnapshotStore, StorageId, Watcher, ZeroSpace,
};
use crate::num::GuestOffset;
use crate::storage::Storage;
use crate::{Error, Result};

/// An opened qcow2 image.
#[derive(Debug)]
pub struct Qcow2Image {
    pub(super) file: Arc<dyn Storage>,
    pub(super) data_file: Option<Arc<dyn Storage>>,
    pub(super) geometry: Geometry,
    pub(super) version: u32,
    /// Whoever changes the tables has this first ([`ChangingTables`]).
    pub(super) changes: Mutex<()>,
    pub(super) tables: RwLock<Tables>,
    pub(super) size: AtomicU64,
    pub(super) writable: bool,
    /// Unfinished private target: no barriers.
    pub(super) scratch: bool,
    /// Why guest data cannot be read although the header can (encryption, missing data file).
    pub(super) unreadable: Option<String>,
    /// Whether the file looks preallocated without data; found out when first asked.
    pub(super) preallocated: OnceLock<bool>,
    /// The compressed cluster read last.
    pub(super) decoded: DecodedCluster,
    /// How guest data are encrypted.
    pub(super) crypt: Option<Crypt>,
    /// Enabled bitmaps.
    pub(super) recorder: super::bitmap::Recorder,
}

impl Qcow2Image {
    pub(super) fn read_tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For bringing slices of tables into memory, also while a flush waits: nothing that is or will be on
    /// disk may be changed through this.
    pub(super) fn cached_tables(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// For changing tables.
    pub(super) fn write_tables(&self) -> ChangingTables<'_> {
        ChangingTables::of(self)
    }

    pub(super) fn unreadable(&self) -> bool {
        self.unreadable.is_some()
    }

    pub(super) fn unreadable_error(&self) -> Error {
        Error::unsupported(self.unreadable.clone().unwrap_or_default()).at_path(self.file.name())
    }

    /// Where guest data go.
    pub(super) fn data_storage(&self) -> (StorageId, &Arc<dyn Storage>) {
        match &self.data_file {
            Some(file) => (DATA_FILE, file),
            None => (IMAGE, &self.file),
        }
    }

    /// Where guest bytes go: the file that has them, or the plaintext in front of it.
    pub(super) fn guest_storage(&self) -> StorageId {
        if self.crypt.is_some() { PLAIN } else { self.data_storage().0 }
    }

    /// Guest data clusters of a preallocated image may be holes in the host's file; then those count as
    /// zeroes. The heuristic (many more clusters referenced than stored) is QEMU's.
    pub(super) fn probe_holes(&self) -> bool {
        // A hole of an encrypted file is no zero.
        self.crypt.is_none() && self.preallocated.get().copied().unwrap_or(false)
    }

    /// Finds out whether the image was preallocated without writing data.
    pub(super) fn detect_preallocation(&self) -> Result<bool> {
        if let Some(&known) = self.preallocated.get() {
            return Ok(known);
        }
        let mut tables = self.write_tables();
        let found = if self.data_file.is_some() {
            // Host and guest offsets are the same there: nothing is preallocated beyond the file.
            false
        } else {
            let cluster = self.geometry.cluster();
            let stored = self.file.allocated()?.unwrap_or(u64::MAX) / cluster;
            let threshold = (stored.saturating_mul(10) / 9).max(stored.saturating_add(2));
            let end = self.file.len()?.div_ceil(cluster);
            let counted = tables.refs.count_used(&*self.file, end, threshold)?;
            counted >= threshold
        };
        drop(tables);
        Ok(*self.preallocated.get_or_init(|| found))
    }
}

impl Image for Qcow2Image {
    fn format_name(&self) -> &'static str {
        "qcow2"
    }

    fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn granularity(&self) -> Granularity {
        let zero = (self.version >= 3).then(|| self.geometry.subcluster());
        Granularity {
            allocation: self.geometry.cluster(),
            zero,
            discard: Some(self.geometry.cluster()),
            encode: self.compressible().then(|| self.geometry.cluster()),
            append_only: false,
        }
    }

    fn storage(&self, id: StorageId) -> &Arc<dyn Storage> {
        match (&self.data_file, &self.crypt, id) {
            (Some(file), _, DATA_FILE) => file,
            (_, Some(crypt), PLAIN) => crypt.plain(),
            _ => &self.file,
        }
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        std::iter::once(&self.file).chain(&self.data_file).collect()
    }

    fn backing(&self) -> Option<BackingRef> {
        let tables = self.read_tables();
        let name = tables.header.backing_name.clone()?;
        Some(BackingRef { name, format: tables.header.backing_format.clone() })
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.map_range(at, len)
    }

    fn prepare_status(&self) -> Result<()> {
        self.detect_preallocation().map(drop)
    }

    fn read_encoded(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.read_clusters(at.0, buf)
    }

    fn note_write(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.record_write(at.0, len)
    }

    fn prepare_write(&self, at: GuestOffset, len: u64) -> Result<Grant> {
        let grant = self.grant_clusters(at.0, len)?;
        if let Some(keyed) = self.crypt.as_ref().and_then(Crypt::guest_keyed) {
            keyed.granted(grant.offset.0, grant.len, grant.at.0);
        }
        Ok(grant)
    }

    fn prepare_encoded(&self, at: GuestOffset, encoded_len: u64) -> Result<Grant> {
        self.grant_compressed(at.0, encoded_len)
    }

    fn commit_write(&self, grant: Grant) -> Result<()> {
        self.forget_grant(&grant);
        self.link_grant(&grant)
    }

    fn abort_write(&self, grant: Grant) {
        self.forget_grant(&grant);
        self.drop_grant(&grant);
    }

    fn encoder(&self, level: Level) -> Option<Box<dyn Encoder>> {
        if !self.compressible() || !self.writable {
            return None;
        }
        let compression = self.read_tables().header.compression;
        Some(Box::new(ClusterEncoder::new(compression, level)))
    }

    fn write_zeroes(&self, at: GuestOffset, len: u64, space: ZeroSpace) -> Result<()> {
        self.zero_range(at.0, len, space)
    }

    fn discard(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.discard_range(at.0, len)
    }

    fn release_unused(&self) -> Result<()> {
        self.release_clusters()
    }

    fn flush(&self) -> Result<()> {
        self.flush_image()
    }

    fn close(&self) -> Result<()> {
        drop(self.finish_recording()?);
        self.close_image()
    }

    fn resize(&self, request: Resize) -> Result<()> {
        self.resize_with_bitmaps(request)
    }

    fn check(&self, repair: Repair, watcher: &dyn Watcher) -> Option<Result<CheckReport>> {
        Some(self.check_image(repair, watcher))
    }

    fn bitmaps(&self) -> Option<&dyn BitmapStore> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn SnapshotStore> {
        Some(self)
    }

    fn amend(&self, request: &Amendment<'_>, watcher: &dyn Watcher) -> Result<()> {
        self.amend_image(request, watcher)
    }

    fn make_empty(&self) -> Result<()> {
        self.drop_all_mappings()
    }

    fn set_backing(&self, backing: Option<&BackingRef>) -> Result<()> {
        let mut tables = self.write_tables();
        self.check_usable(&tables)?;
        if tables.geometry.external_raw && backing.is_some() {
            return Err(Error::invalid(
                "Cannot set a backing file on an image whose data file must stay valid as a raw image",
            ));
        }
        // Mappings that make the new view right must be on disk before the name changes.
        self.flush_tables(&mut tables)?;
        let old = tables.header.clone();
        tables.header.backing_name = backing.map(|b| b.name.clone()).filter(|n| !n.is_empty());
        tables.header.backing_format = backing.and_then(|b| b.format.clone());
        let written = tables.header.write(&*self.file).and_then(|()| self.barrier());
        if written.is_err() {
            tables.header = old;
        }
        written
    }

    fn info(&self) -> Result<ImageInfo> {
        let tables = self.read_tables();
        let h = &tables.header;
        let v3 = h.version >= 3;
        let specific = Qcow2Info {
            compat: if v3 { "1.1" } else { "0.10" }.to_owned(),
            data_file: h.has(incompatible::DATA_FILE).then(|| h.data_file.clone()).flatten(),
            data_file_raw: h.has(incompatible::DATA_FILE).then_some(self.geometry.external_raw),
            extended_l2: v3.then_some(self.geometry.extended),
            lazy_refcounts: v3.then_some(h.compatible & compatible::LAZY_REFCOUNTS != 0),
            corrupt: v3.then_some(h.has(incompatible::CORRUPT)),
            refcount_bits: 1 << h.refcount_order,
            encrypt: super::crypt::details(h, &self.file)?,
            bitmaps: self.bitmap_details(&tables)?,
            compression_type: h.compression.name().to_owned(),
        };
        Ok(ImageInfo {
            cluster_size: Some(self.geometry.cluster()),
            encrypted: h.crypt_method != 0,
            compressed: None,
            dirty: Some(h.has(incompatible::DIRTY)),
            vm_state_offset: Some(self.vm_state_offset(&tables)),
            specific: Some(SpecificInfo::Qcow2(specific)),
        })
    }

    fn encrypts(&self) -> bool {
        self.crypt.is_some()
    }

    fn zeroes_are_quick(&self, space: ZeroSpace) -> bool {
        // See `zero_external`.
        let outside = self.data_file.as_ref().filter(|_| self.crypt.is_none());
        self.version >= 3 && outside.is_none_or(|file| file.zeroes_are_quick(space.into()))
    }

    fn zero_init(&self) -> bool {
        // A preallocated image on a device would show what the device held.
        let (_, data) = self.data_storage();
        let shown = data.zero_init() && self.crypt.is_none();
        shown || self.read_tables().l1.iter().all(|&e| e == 0)
    }
}

impl Qcow2Image {
    /// Whether clusters may be compressed.
    fn compressible(&self) -> bool {
        self.data_file.is_none() && self.crypt.is_none()
    }

    /// A granted place is not written to any more.
    fn forget_grant(&self, grant: &Grant) {
        if let Some(keyed) = self.crypt.as_ref().and_then(Crypt::guest_keyed) {
            keyed.done(grant.offset.0);
        }
    }

    /// Guest offset behind the disk at which VM state is stored.
    pub(super) fn vm_state_offset(&self, tables: &Tables) -> u64 {
        let g = &self.geometry;
        g.l1_entries(tables.header.size).saturating_mul(g.l2_span())
    }
}
