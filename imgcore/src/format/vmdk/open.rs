//! Opening: from the first bytes of a file to an image with all its extents.

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, RwLock};

use super::descriptor::{self, Descriptor, ExtentAccess, ExtentKind, ExtentLine};
use super::geometry::{self, Geometry, TableKind};
use super::grain::GrainCache;
use super::image::{Body, Extent, Tables, VmdkImage};
use super::layout::{self, SECTOR};
use super::staging::Staging;
use super::stream::Stream;
use super::tables::{Cache, Directory};
use crate::format::{Access, OpenContext, StorageId};
use crate::num::{len_u64, round_up, small};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Largest grain that is written: copy-on-write takes a buffer of that size.
const MAX_WRITTEN_GRAIN: u64 = 16 << 20;

/// Opens an image file.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<VmdkImage> {
    if let Some((name, _)) = cx.options.first() {
        return Err(crate::format::options::unknown("vmdk", name));
    }
    if cx.snapshot.is_some() {
        return Err(
            Error::unsupported("VMDK images have no internal snapshots").at_path(cx.storage.name())
        );
    }
    let mut magic = [0; 4];
    cx.storage.read_at(0, &mut magic)?;
    match u32::from_le_bytes(magic) {
        layout::MAGIC_KDMV => open_hosted(cx),
        layout::MAGIC_COWD => Err(one_extent(cx)),
        _ => {
            let len = cx.storage.len()?.min(descriptor::MAX_TEXT);
            open_text(cx, None, len)
        }
    }
}

/// Error for an extent that is opened as if it were a whole disk.
fn one_extent(cx: &OpenContext<'_>) -> Error {
    invalid(&*cx.storage).hint(
        "this file is one extent of a disk; open the small text file that names it (the .vmdk descriptor)",
    )
}

fn invalid(storage: &dyn Storage) -> Error {
    Error::corrupt("invalid VMDK image descriptor").at_path(storage.name())
}

/// A sparse extent with the descriptor inside.
fn open_hosted(cx: &OpenContext<'_>) -> Result<VmdkImage> {
    let storage = &cx.storage;
    let header = geometry::sparse_header(&**storage)?;
    if header.capacity.get() == 0 {
        // The header only leads to a descriptor.
        let place = header
            .descriptor_offset
            .get()
            .checked_mul(SECTOR)
            .zip(header.descriptor_size.get().checked_mul(SECTOR));
        let (offset, size) = place.ok_or_else(|| invalid(&**storage).at_offset(28))?;
        return open_text(cx, Some(offset), size.min(descriptor::MAX_TEXT));
    }
    let g = geometry::hosted(storage)?;
    if g.version == 3 && cx.access == Access::Write && !g.compressed() {
        return Err(Error::new(ErrorKind::ReadOnly, "VMDK version 3 must be read only")
            .at_path(storage.name())
            .at_offset(4)
            .hint(
                "version 3 tracks changed blocks in another file; convert the disk to write to it",
            ));
    }
    let (offset, size) = g.descriptor.ok_or_else(|| one_extent(cx))?;
    let text = read_text(&**storage, offset, size)?;
    let parsed = Descriptor::parse(&text).map_err(|e| {
        if text.trim().is_empty() {
            one_extent(cx)
        } else {
            e.at_path(storage.name()).at_offset(offset)
        }
    })?;
    let parsed = Descriptor {
        create_type: parsed.create_type.or_else(|| Some("monolithicSparse".to_owned())),
        ..parsed
    };
    let extent = Extent {
        start: 0,
        len: g.capacity,
        kind: None,
        access: ExtentAccess::ReadWrite,
        body: Body::Sparse { id: StorageId(0), geometry: g },
    };
    build(cx, vec![Arc::clone(storage)], vec![extent], parsed, Some((offset, size)))
}

fn read_text(storage: &dyn Storage, offset: u64, size: u64) -> Result<String> {
    if offset.checked_add(size).is_none_or(|end| end > round_up(storage.len().unwrap_or(0), SECTOR))
    {
        return Err(Error::corrupt("The descriptor lies outside the file")
            .at_path(storage.name())
            .at_offset(offset));
    }
    let mut bytes = vec![0; small(size.min(descriptor::MAX_TEXT))];
    storage.read_at(offset, &mut bytes)?;
    Ok(descriptor::text(&bytes))
}

/// A descriptor that names its extents.
fn open_text(cx: &OpenContext<'_>, offset: Option<u64>, size: u64) -> Result<VmdkImage> {
    let storage = &*cx.storage;
    let start = offset.unwrap_or(0);
    let mut bytes = vec![0; small(size)];
    storage.read_at(start, &mut bytes)?;
    let text = descriptor::text(&bytes);
    let here = |e: Error| e.at_path(storage.name()).at_offset(start);
    let parsed = Descriptor::parse(&text).map_err(here)?;
    parsed.check_create_type().map_err(here)?;
    let lines = descriptor::extents(&text).map_err(here)?;
    let mut storages = vec![Arc::clone(&cx.storage)];
    let mut extents = Vec::with_capacity(lines.len());
    let mut start = 0;
    for line in lines {
        let len = line.len;
        extents.push(open_extent(cx, &line, start, &mut storages)?);
        start += len;
    }
    build(cx, storages, extents, parsed, offset.map(|o| (o, size)))
}

fn open_extent(
    cx: &OpenContext<'_>,
    line: &ExtentLine,
    start: u64,
    storages: &mut Vec<Arc<dyn Storage>>,
) -> Result<Extent> {
    let make =
        |body| Extent { start, len: line.len, kind: Some(line.kind), access: line.access, body };
    if line.kind == ExtentKind::Zero {
        return Ok(make(Body::Zero));
    }
    let access = match line.access {
        ExtentAccess::ReadWrite => cx.access,
        ExtentAccess::ReadOnly => Access::Read,
    };
    let storage = cx.gate.open_storage(&line.file, access)?;
    let id = u32::try_from(storages.len())
        .map_err(|_| Error::new(ErrorKind::TooLarge, "too many extents"))?;
    let body = match line.kind {
        ExtentKind::Flat | ExtentKind::Vmfs | ExtentKind::Zero => {
            let have = storage.len()?;
            if line.offset + line.len > round_up(have, SECTOR) {
                return Err(Error::corrupt(format!(
                    "Extent file '{}' is too short: {} bytes where the descriptor wants {}",
                    line.file,
                    have,
                    line.offset + line.len
                ))
                .at_path(storage.name())
                .at_offset(have)
                .hint("the file is truncated; copy it again"));
            }
            Body::Flat { id: StorageId(id), offset: line.offset }
        }
        _ => Body::Sparse { id: StorageId(id), geometry: extent_geometry(cx, line, &storage)? },
    };
    storages.push(storage);
    Ok(make(body))
}

fn extent_geometry(
    cx: &OpenContext<'_>,
    line: &ExtentLine,
    storage: &Arc<dyn Storage>,
) -> Result<Geometry> {
    let mut magic = [0; 4];
    storage.read_at(0, &mut magic)?;
    let magic = u32::from_le_bytes(magic);
    let g = match line.kind {
        ExtentKind::SeSparse => {
            if cx.access == Access::Write && line.access == ExtentAccess::ReadWrite {
                return Err(Error::new(
                    ErrorKind::ReadOnly,
                    "No write support for seSparse images available",
                )
                .at_path(storage.name()));
            }
            geometry::se_sparse(storage)?
        }
        // Products mix the two names; the magic number decides.
        _ if magic == layout::MAGIC_COWD => geometry::cowd(storage)?,
        _ => geometry::hosted(storage)?,
    };
    if g.version == 3 && cx.access == Access::Write && !g.compressed() {
        return Err(Error::new(ErrorKind::ReadOnly, "VMDK version 3 must be read only")
            .at_path(storage.name())
            .at_offset(4));
    }
    if g.capacity < line.len {
        return Err(Error::corrupt(format!(
            "Extent file '{}' has room for {} bytes of guest data where the descriptor wants {}",
            line.file, g.capacity, line.len
        ))
        .at_path(storage.name()));
    }
    Ok(g)
}

fn build(
    cx: &OpenContext<'_>,
    storages: Vec<Arc<dyn Storage>>,
    extents: Vec<Extent>,
    descriptor: Descriptor,
    descriptor_at: Option<(u64, u64)>,
) -> Result<VmdkImage> {
    if !cx.parent_may_be_missing() {
        descriptor.check_parent().map_err(|e| e.at_path(cx.storage.name()))?;
    }
    let size = extents.last().map_or(0, |e| e.start + e.len);
    let mut tables = Tables { dirs: Vec::new(), cache: Cache::default(), stream: None };
    for extent in &extents {
        let dir = match &extent.body {
            Body::Sparse { id, geometry } => {
                directory(&*storages[small(u64::from(id.0))], geometry, cx.access)?
            }
            _ => Directory::default(),
        };
        tables.dirs.push(dir);
    }
    // A check writes nothing to a stream, finished or not.
    if cx.access == Access::Write && !cx.for_check {
        tables.stream = stream(&extents, &tables)?;
    }
    let staging = Staging::new(cx.storage.name());
    let staging_storage = Arc::<Staging>::clone(&staging);
    Ok(VmdkImage {
        staging,
        staging_storage,
        storages,
        extents,
        size,
        access: cx.access,
        scratch: cx.scratch,
        cid: Mutex::new(descriptor.cid),
        parent_cid: AtomicU32::new(descriptor.parent_cid),
        descriptor,
        descriptor_at,
        tables: RwLock::new(tables),
        flushing: Mutex::new(()),
        cid_renewed: AtomicBool::new(false),
        parent_checked: AtomicBool::new(false),
        releasing: AtomicBool::new(false),
        grains: GrainCache::default(),
    })
}

/// Whether this is a stream to be written, and whether it can be.
fn stream(extents: &[Extent], tables: &Tables) -> Result<Option<Stream>> {
    for (extent, dir) in extents.iter().zip(&tables.dirs) {
        let Body::Sparse { geometry, .. } = &extent.body else { continue };
        if !geometry.compressed() || !geometry.footer {
            continue;
        }
        if extents.len() > 1 || dir.gd.iter().any(|&e| e != 0) {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "a finished streamOptimized image cannot be written to",
            )
            .hint("convert it to monolithicSparse or qcow2 to change it"));
        }
        return Ok(Some(Stream::default()));
    }
    Ok(None)
}

/// Reads a grain directory; the redundant one stands in if the primary makes no sense.
fn directory(storage: &dyn Storage, g: &Geometry, access: Access) -> Result<Directory> {
    if access == Access::Write && g.grain > MAX_WRITTEN_GRAIN {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("grains of {} bytes are too large to be written", g.grain),
        )
        .at_path(storage.name())
        .at_offset(20));
    }
    let len = storage.len()?;
    let redundant = match g.rgd {
        // A redundant directory that cannot be read is as good as none.
        Some(at) => read_directory(storage, g, at, len).ok(),
        None => None,
    };
    let (gd, rgd) = match (read_directory(storage, g, g.gd, len), redundant) {
        (Ok(gd), rgd) => (gd, rgd.unwrap_or_default()),
        (Err(_), Some(rgd)) if access == Access::Read => (rgd, Vec::new()),
        (Err(e), Some(_)) => {
            return Err(e.hint(
                "the redundant grain directory is intact: open for reading and convert the disk",
            ));
        }
        (Err(e), None) => return Err(e),
    };
    Ok(Directory {
        gd,
        rgd,
        next_free: round_up(len.max(g.overhead), if g.compressed() { SECTOR } else { g.grain }),
        limit: len,
        ..Directory::default()
    })
}

/// Reads and checks one grain directory.
fn read_directory(storage: &dyn Storage, g: &Geometry, at: u64, len: u64) -> Result<Vec<u32>> {
    let width = if g.kind == TableKind::Sectors { 4 } else { 8 };
    let bytes = g.gd_len * width;
    let end = at.checked_add(bytes);
    if at < SECTOR || end.is_none_or(|e| e > round_up(len, SECTOR)) {
        return Err(Error::corrupt("Grain directory lies outside the file")
            .at_path(storage.name())
            .at_offset(at));
    }
    let mut raw = vec![0; small(bytes)];
    storage.read_at(at, &mut raw)?;
    let bad = |i: usize| {
        Error::corrupt(format!("Entry {i} of the grain directory leads outside the file"))
            .at_path(storage.name())
            .at_offset(at + len_u64(i) * width)
    };
    let fits = |place: Option<u64>| {
        place
            .and_then(|p| p.checked_add(g.table_bytes()))
            .is_some_and(|end| end <= round_up(len, SECTOR))
    };
    let mut gd = Vec::with_capacity(raw.len() / small(width));
    match g.kind {
        TableKind::Sectors => {
            for (i, &entry) in raw.as_chunks::<4>().0.iter().enumerate() {
                let sector = u32::from_le_bytes(entry);
                if sector != 0 && !fits(Some(u64::from(sector) * SECTOR)) {
                    return Err(bad(i));
                }
                gd.push(sector);
            }
        }
        TableKind::SeSparse { tables, .. } => {
            for (i, &entry) in raw.as_chunks::<8>().0.iter().enumerate() {
                let entry = u64::from_le_bytes(entry);
                let number = entry & 0xffff_ffff;
                let place = number.checked_mul(g.table_bytes()).and_then(|o| o.checked_add(tables));
                gd.push(match (entry >> 32, u32::try_from(number + 1)) {
                    (0, _) if entry == 0 => 0,
                    (0x1000_0000, Ok(number)) if fits(place) => number,
                    _ => return Err(bad(i)),
                });
            }
        }
    }
    Ok(gd)
}
