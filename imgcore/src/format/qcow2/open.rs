//! Opening an image: everything the header points to is checked before it is used.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use super::crypt::KeyOptions;
use super::header::Header;
use super::image::Qcow2Image;
use super::layout::{
    MAX_L1_BYTES, MAX_REFTABLE_BYTES, MAX_SNAPSHOT_BYTES, MAX_SNAPSHOTS, autoclear, incompatible,
};
use super::refcount::Refcounts;
use super::tables::{Geometry, Tables};
use crate::format::deflate::DecodedCluster;
use crate::format::{Access, OpenContext};
use crate::num::small;
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Checks place and size of a table, with QEMU's words.
fn check_table(name: &str, offset: u64, bytes: u64, most: u64, cluster: u64) -> Result<()> {
    if bytes > most {
        return Err(Error::corrupt(format!("{name} too large")).at_offset(offset));
    }
    if offset.checked_add(bytes).is_none_or(|end| end > i64::MAX.unsigned_abs())
        || !offset.is_multiple_of(cluster)
    {
        return Err(Error::corrupt(format!("{name} offset invalid")).at_offset(offset));
    }
    Ok(())
}

/// Reads a table of 64-bit entries.
pub(super) fn read_table(storage: &dyn Storage, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0u8; small(entries * 8)];
    if !bytes.is_empty() {
        storage.read_at(offset, &mut bytes)?;
    }
    Ok(bytes.chunks_exact(8).map(|e| e.iter().fold(0u64, |v, &b| v << 8 | u64::from(b))).collect())
}

/// Checks everything the header says about tables.
fn check_header(h: &Header, file_len: u64, for_check: bool) -> Result<()> {
    let cluster = h.cluster_size();
    let reftable = u64::from(h.reftable_clusters) << h.cluster_bits;
    if h.reftable_clusters == 0 && !for_check {
        return Err(Error::corrupt("Image does not contain a reference count table").at_offset(56));
    }
    check_table("Reference count table", h.reftable_offset, reftable, MAX_REFTABLE_BYTES, cluster)?;
    if h.nb_snapshots > MAX_SNAPSHOTS {
        return Err(Error::corrupt("Too many snapshots").at_offset(60));
    }
    check_table(
        "Snapshot table",
        h.snapshots_offset,
        u64::from(h.nb_snapshots) * 40,
        MAX_SNAPSHOT_BYTES,
        cluster,
    )?;
    let geometry = Geometry::new(h);
    check_table("Active L1 table", h.l1_offset, u64::from(h.l1_size) * 8, MAX_L1_BYTES, cluster)?;
    let needed = geometry.l1_entries(h.size);
    if h.size > i64::MAX.unsigned_abs() || needed > MAX_L1_BYTES / 8 {
        return Err(Error::corrupt("Image is too big").at_offset(24));
    }
    if u64::from(h.l1_size) < needed {
        return Err(Error::corrupt("L1 table is too small").at_offset(36));
    }
    for (what, at, len) in [
        ("Reference count table", h.reftable_offset, reftable),
        ("Active L1 table", h.l1_offset, u64::from(h.l1_size) * 8),
    ] {
        if len > 0 && at >= file_len {
            return Err(Error::corrupt(format!(
                "{what} at {at:#x} lies beyond the end of the image file ({file_len:#x} bytes)"
            ))
            .at_offset(at));
        }
    }
    Ok(())
}

/// Opens an image; see [`crate::format::Driver::open`].
pub fn open(cx: &OpenContext<'_>) -> Result<Qcow2Image> {
    let file = Arc::clone(&cx.storage);
    let name = file.name().to_owned();
    open_named(&file, cx).map_err(|e| e.at_path(name))
}

fn open_named(file: &Arc<dyn Storage>, cx: &OpenContext<'_>) -> Result<Qcow2Image> {
    let header = Header::read(&**file)?;
    let file_len = file.len()?;
    check_header(&header, file_len, cx.for_check)?;
    let writable = cx.access == Access::Write;
    if writable && header.has(incompatible::CORRUPT) && !cx.for_check {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "qcow2: Image is corrupt; cannot be opened read/write",
        )
        .hint("look at it with 'check', repair it with 'check -r all'"));
    }
    let mut key = KeyOptions::default();
    let mut lazy_asked = None;
    for (option, value) in cx.options {
        match option.as_str() {
            "encrypt.format" => key.format = Some(value.clone()),
            "encrypt.key-secret" => key.key_secret = Some(value.clone()),
            "lazy-refcounts" => {
                let on = crate::opts::bool_option(option, value)?;
                if on && header.version < 3 {
                    return Err(Error::invalid(
                        "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
                    ));
                }
                lazy_asked = Some(on);
            }
            // How much of the tables is kept in memory is decided here, by what the image needs.
            "cache-size"
            | "l2-cache-size"
            | "l2-cache-entry-size"
            | "refcount-cache-size"
            | "cache-clean-interval" => {}
            _ => return Err(crate::format::options::unknown("qcow2", option)),
        }
    }
    super::crypt::check_format(&header, key.format.as_deref())?;
    let mut unreadable = None;
    let data_file = open_data_file(&header, cx, &mut unreadable)?;
    let wanted = !cx.header_only && (!cx.for_check || key.key_secret.is_some());
    let crypt = if wanted && unreadable.is_none() {
        let data = data_file.as_ref().unwrap_or(file);
        super::crypt::unlock(&header, file, data, (cx, &key))?
    } else {
        if header.crypt_method != 0 {
            unreadable.get_or_insert_with(|| "the image is encrypted and was not unlocked".into());
        }
        None
    };
    let l1 = read_table(&**file, header.l1_offset, u64::from(header.l1_size))?;
    let reftable = read_table(
        &**file,
        header.reftable_offset,
        (u64::from(header.reftable_clusters) << header.cluster_bits) / 8,
    )?;
    let refs = Refcounts::new(
        header.cluster_bits,
        header.refcount_order,
        reftable,
        header.reftable_offset,
    );
    let (size, version) = (header.size, header.version);
    let mut tables = Tables::new(header, l1, refs, file_len);
    tables.lazy_asked = lazy_asked;
    let image = Qcow2Image {
        file: Arc::clone(file),
        data_file,
        geometry: tables.geometry,
        version,
        changes: Mutex::new(()),
        tables: RwLock::new(tables),
        size: AtomicU64::new(size),
        writable: writable && cx.snapshot.is_none(),
        scratch: cx.scratch,
        unreadable,
        preallocated: OnceLock::new(),
        decoded: DecodedCluster::default(),
        crypt,
        recorder: super::bitmap::Recorder::default(),
    };
    if let Some(wanted) = &cx.snapshot {
        image.show_snapshot(wanted)?;
    } else if writable && !cx.for_check {
        image.start_writing()?;
    }
    Ok(image)
}

/// The external data file: given by the caller, or named by the image and opened through the gate.
fn open_data_file(
    header: &Header,
    cx: &OpenContext<'_>,
    unreadable: &mut Option<String>,
) -> Result<Option<Arc<dyn Storage>>> {
    if !header.has(incompatible::DATA_FILE) {
        if cx.data_file.is_some() {
            return Err(Error::invalid(
                "'data-file' can only be set for images with an external data file",
            ));
        }
        return Ok(None);
    }
    if let Some(given) = &cx.data_file {
        return Ok(Some(Arc::clone(given)));
    }
    let opened = match &header.data_file {
        None => Err(Error::corrupt("'data-file' is required for this image")),
        Some(_) if cx.header_only => {
            *unreadable = Some("the external data file was not opened".to_owned());
            return Ok(None);
        }
        Some(name) => cx.gate.open_storage(name, cx.access),
    };
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(_) if cx.header_only => {
            *unreadable = Some("'data-file' is required for this image".to_owned());
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Qcow2Image {
    /// First steps of writing: unknown autoclear bits go, because what they promise will not be kept.
    fn start_writing(&self) -> Result<()> {
        let mut tables = self.write_tables();
        if tables.header.has(incompatible::DIRTY) {
            drop(tables);
            return self.repair_dirty();
        }
        let unknown = tables.header.autoclear & !autoclear::KNOWN;
        if unknown != 0 {
            tables.header.autoclear &= autoclear::KNOWN;
            tables.header.write(&*self.file)?;
            self.barrier()?;
        }
        Ok(())
    }
}
