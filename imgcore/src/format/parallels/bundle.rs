//! `.hdd` bundles: a folder with `DiskDescriptor.xml` and the image files it names.
//!
//! The descriptor divides the disk into storages (ranges of sectors), and each storage into image files, one
//! for each snapshot: `Compressed` ones are images of this format, `Plain` ones hold the bytes as they are.
//! The snapshots form a tree; the present state is the top of its branch, and what an image file does not
//! hold comes from that of the snapshot below. Facts are from libprlsdk's public samples and from the
//! descriptors themselves; there is no specification. Bundles are read, not written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use roxmltree::{Document, Node};

use super::header::{self, Geometry};
use super::image::{beyond, run, table};
use super::layout::SECTOR;
use crate::format::block_table::BlockTable;
use crate::format::info::{ParallelsBundleInfo, ParallelsFileInfo};
use crate::format::{
    Access, Extent, Granularity, Image, ImageInfo, Mapping, OpenContext, SpecificInfo, StorageId,
    never_written, read_only,
};
use crate::num::{GuestOffset, HostOffset, len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// What the descriptor begins with, behind the XML declaration.
const ROOT: &str = "Parallels_disk_image";
/// Longest descriptor.
const MAX_XML: u64 = 4 << 20;
/// Most image files.
const MAX_FILES: usize = 200;
/// The snapshot that the present state has, where none is named as the top.
const PRESENT: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
/// No snapshot.
const NONE: &str = "{00000000-0000-0000-0000-000000000000}";

/// Whether a file begins as a descriptor.
pub(super) fn is_descriptor(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    text.trim_start_matches('\u{feff}').trim_start().starts_with('<')
        && text.contains(&format!("<{ROOT}"))
}

/// How an image file holds its bytes.
#[derive(Debug)]
enum Kind {
    Plain,
    Expanding { geometry: Box<Geometry>, table: Mutex<BlockTable> },
}

/// One image file of a storage.
#[derive(Debug)]
struct Layer {
    id: StorageId,
    kind: Kind,
}

/// A range of the disk, and its image files, top first.
#[derive(Debug)]
struct Segment {
    start: u64,
    end: u64,
    layers: Vec<Layer>,
}

/// An opened bundle.
#[derive(Debug)]
pub(super) struct BundleImage {
    /// The descriptor, then the image files.
    storages: Vec<Arc<dyn Storage>>,
    segments: Vec<Segment>,
    size: u64,
    info: ParallelsBundleInfo,
}

/// The descriptor's words.
struct Descriptor<'a> {
    name: &'a str,
}

impl Descriptor<'_> {
    fn bad(&self, what: impl Into<String>) -> Error {
        Error::corrupt(what).at_path(self.name)
    }

    fn text<'x>(&self, node: Node<'x, 'x>, name: &str) -> Result<&'x str> {
        child(node, name)
            .and_then(|n| n.text())
            .map(str::trim)
            .ok_or_else(|| self.bad(format!("the descriptor has no '{name}' where one belongs")))
    }

    fn sectors(&self, node: Node<'_, '_>, name: &str) -> Result<u64> {
        let text = child(node, name).and_then(|n| n.text()).unwrap_or_default().trim();
        text.parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(SECTOR))
            .filter(|&n| i64::try_from(n).is_ok())
            .ok_or_else(|| self.bad(format!("'{name}' of the descriptor is no size: '{text}'")))
    }
}

fn child<'x>(node: Node<'x, 'x>, name: &str) -> Option<Node<'x, 'x>> {
    node.children().find(|n| n.has_tag_name(name))
}

/// The present state's snapshots, top first.
fn branch(d: &Descriptor<'_>, root: Node<'_, '_>) -> Result<Vec<String>> {
    let Some(snapshots) = child(root, "Snapshots") else { return Ok(vec![PRESENT.to_owned()]) };
    let mut parents = BTreeMap::new();
    for shot in snapshots.children().filter(|n| n.has_tag_name("Shot")) {
        let id = d.text(shot, "GUID")?.to_ascii_lowercase();
        parents.insert(id, d.text(shot, "ParentGUID")?.to_ascii_lowercase());
    }
    let named = child(snapshots, "TopGUID").and_then(|n| n.text()).map(str::trim);
    let leaf = || {
        let mut leaves = parents.keys().filter(|id| !parents.values().any(|parent| parent == *id));
        leaves.next().filter(|_| leaves.next().is_none()).cloned()
    };
    let present = || parents.contains_key(PRESENT).then(|| PRESENT.to_owned());
    let top = named.map(str::to_ascii_lowercase).or_else(present).or_else(leaf);
    let mut at = top
        .ok_or_else(|| d.bad("the descriptor does not tell which snapshot is the present state"))?;
    let mut all = Vec::new();
    while at != NONE {
        if all.contains(&at) {
            return Err(d.bad(format!("the snapshots of the descriptor are a circle at {at}")));
        }
        let parent = parents.get(&at).cloned();
        all.push(at.clone());
        at = parent
            .ok_or_else(|| d.bad(format!("the descriptor has no snapshot {at}, which it names")))?;
    }
    Ok(all)
}

/// Opens a bundle by its descriptor.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<BundleImage> {
    let name = cx.storage.name().to_owned();
    let d = Descriptor { name: &name };
    if cx.access == Access::Write {
        return Err(never_written().at_path(&name));
    }
    let len = cx.storage.len()?;
    if len > MAX_XML {
        return Err(d.bad(format!("a descriptor of {len} bytes is too long")));
    }
    let mut bytes = vec![0; small(len)];
    cx.storage.read_at(0, &mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| d.bad("the descriptor is not UTF-8"))?;
    let document = Document::parse(text.trim_start_matches('\u{feff}'))
        .map_err(|e| d.bad(format!("the descriptor is no XML: {e}")))?;
    let root = document.root_element();
    if !root.has_tag_name(ROOT) {
        return Err(d.bad("Image not in Parallels format"));
    }
    let parameters = child(root, "Disk_Parameters")
        .ok_or_else(|| d.bad("the descriptor has no 'Disk_Parameters'"))?;
    let engine = child(parameters, "Encryption").and_then(|n| child(n, "Engine"));
    if engine.and_then(|n| n.text()).is_some_and(|id| !id.trim().is_empty() && id.trim() != NONE) {
        return Err(Error::unsupported("encrypted Parallels disks cannot be read").at_path(&name));
    }
    let size = d.sectors(parameters, "Disk_size")?;
    let branch = branch(&d, root)?;
    let mut image = BundleImage {
        storages: vec![Arc::clone(&cx.storage)],
        segments: Vec::new(),
        size,
        info: ParallelsBundleInfo {
            name: child(parameters, "Name").and_then(|n| n.text()).map(str::to_owned),
            snapshots: len_u64(branch.len()) - 1,
            files: Vec::new(),
        },
    };
    let storages = child(root, "StorageData").into_iter().flat_map(|n| n.children());
    for storage in storages.filter(|n| n.has_tag_name("Storage")) {
        image.segment(cx, &d, storage, &branch)?;
    }
    image.segments.sort_by_key(|s| s.start);
    let mut at = 0;
    for segment in &image.segments {
        if segment.start != at {
            return Err(d.bad(format!(
                "the storages of the descriptor leave a gap or overlap at sector {}",
                at / SECTOR
            )));
        }
        at = segment.end;
    }
    if at != size {
        return Err(d.bad(format!(
            "the storages of the descriptor end at sector {}, the disk at {}",
            at / SECTOR,
            size / SECTOR
        )));
    }
    Ok(image)
}

impl BundleImage {
    fn segment(
        &mut self,
        cx: &OpenContext<'_>,
        d: &Descriptor<'_>,
        storage: Node<'_, '_>,
        branch: &[String],
    ) -> Result<()> {
        let (start, end) = (d.sectors(storage, "Start")?, d.sectors(storage, "End")?);
        if end < start {
            return Err(d.bad("a storage of the descriptor ends before it begins"));
        }
        let mut files = BTreeMap::new();
        for file in storage.children().filter(|n| n.has_tag_name("Image")) {
            let id = d.text(file, "GUID")?.to_ascii_lowercase();
            files.insert(id, (d.text(file, "Type")?, d.text(file, "File")?));
        }
        let mut layers = Vec::new();
        for id in branch {
            let Some(&(kind, file)) = files.get(id) else {
                return Err(d.bad(format!("the descriptor names no image file of snapshot {id}")));
            };
            if self.storages.len() > MAX_FILES {
                return Err(d.bad(format!("the descriptor names more than {MAX_FILES} files")));
            }
            layers.push(self.layer(cx, d, (kind, file), end - start)?);
        }
        self.segments.push(Segment { start, end, layers });
        Ok(())
    }

    fn layer(
        &mut self,
        cx: &OpenContext<'_>,
        d: &Descriptor<'_>,
        (kind, file): (&str, &str),
        size: u64,
    ) -> Result<Layer> {
        let storage = cx.gate.open_storage(file, Access::Read)?;
        let (kind, have) = match kind {
            "Plain" => (Kind::Plain, storage.len()?),
            "Compressed" => {
                let geometry = header::geometry(&*storage)?;
                let table = Mutex::new(table(&geometry));
                let have = geometry.size;
                (Kind::Expanding { geometry: Box::new(geometry), table }, have)
            }
            other => {
                return Err(d.bad(format!("unknown type '{other}' of the image file '{file}'")));
            }
        };
        let plain = matches!(kind, Kind::Plain);
        if have != size && !(plain && have > size) {
            return Err(d.bad(format!(
                "'{file}' holds {have} bytes, the descriptor says {size} for its storage"
            )));
        }
        self.info.files.push(ParallelsFileInfo {
            filename: file.to_owned(),
            kind: (if plain { "plain" } else { "expanding" }).to_owned(),
        });
        let id = StorageId(u32::try_from(self.storages.len()).unwrap_or(u32::MAX));
        self.storages.push(storage);
        Ok(Layer { id, kind })
    }

    /// Where bytes of a segment are, as one layer knows: `at` counts from the segment's start.
    fn locate(&self, layer: &Layer, at: u64, len: u64) -> Result<Option<Extent>> {
        let data = |offset: u64, len: u64, probe_holes: bool| {
            let offset = HostOffset(offset);
            let mapping = Mapping::Data { storage: layer.id, offset, in_place: false, probe_holes };
            Extent { len, mapping }
        };
        let Kind::Expanding { geometry: g, table } = &layer.kind else {
            return Ok(Some(data(at, len, true)));
        };
        let storage = self.storage(layer.id);
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let index = at / g.cluster;
        table.fetch(&**storage, index)?;
        let max = (at % g.cluster + len).div_ceil(g.cluster);
        let (entry, n) = run(&table, g.step(), index, max)
            .ok_or_else(|| Error::errno(libc::EIO).at_path(storage.name()).at_offset(at))?;
        let inside = at % g.cluster;
        let len = (n * g.cluster - inside).min(len);
        if entry == 0 {
            return Ok(Some(Extent { len, mapping: Mapping::Backing }));
        }
        if g.place(entry + (n - 1) * g.step()) >= storage.len()? {
            return Err(beyond(&**storage, g, index, entry));
        }
        Ok(Some(data(g.place(entry) + inside, len, false)))
    }
}

impl Image for BundleImage {
    fn format_name(&self) -> &'static str {
        "parallels"
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn granularity(&self) -> Granularity {
        Granularity { allocation: 1, zero: None, discard: None, encode: None, append_only: false }
    }

    fn storage(&self, id: StorageId) -> &Arc<dyn Storage> {
        let index = usize::try_from(id.0).unwrap_or(0);
        self.storages.get(index).unwrap_or(&self.storages[0])
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        self.storages.iter().collect()
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        let segment = self
            .segments
            .iter()
            .find(|s| (s.start..s.end).contains(&at.0))
            .ok_or_else(|| Error::errno(libc::EIO).at_offset(at.0))?;
        let mut len = len.min(segment.end - at.0);
        for layer in &segment.layers {
            if let Some(extent) = self.locate(layer, at.0 - segment.start, len)? {
                if extent.mapping != Mapping::Backing {
                    return Ok(extent);
                }
                len = extent.len;
            }
        }
        Ok(Extent { len, mapping: Mapping::Backing })
    }

    fn write_zeroes(&self, at: GuestOffset, _: u64, _: crate::format::ZeroSpace) -> Result<()> {
        Err(read_only("parallels").at_offset(at.0))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn info(&self) -> Result<ImageInfo> {
        let mut info = ImageInfo::default();
        info.specific = Some(SpecificInfo::Parallels(crate::format::info::ParallelsInfo {
            bundle: Some(self.info.clone()),
            ..crate::format::info::ParallelsInfo::default()
        }));
        Ok(info)
    }
}
