//! Creating images.

use std::fmt::Write;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::cid::{content_id, random_cid};
use super::geometry::MAX_DIRECTORY;
use super::layout::{self, SECTOR, SparseHeader};
use super::text::NewDescriptor;
use crate::format::CreateContext;
use crate::num::{checked_round_up, len_u64, round_up, small};
use crate::storage::{Preallocation, Storage};
use crate::{Error, ErrorKind, Result};

/// Guest bytes of an extent in the twoGb subformats.
const PIECE: u64 = 2 << 30;
/// Sectors of a grain.
const GRAIN: u64 = 128;
/// Entries of a grain table.
const GTES: u64 = 512;
/// Sectors of a grain table.
const GT_SECTORS: u64 = GTES * 4 / SECTOR;
/// Where the embedded descriptor is, and its room, in sectors.
const DESCRIPTOR_AT: u64 = 1;
const DESCRIPTOR_ROOM: u64 = 20;
/// Directory entries written at once.
const BATCH: u64 = 64 << 10;

/// The subformats that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subformat {
    MonolithicSparse,
    MonolithicFlat,
    TwoGbSparse,
    TwoGbFlat,
    Stream,
}

impl Subformat {
    const ALL: [Subformat; 5] = [
        Subformat::MonolithicSparse,
        Subformat::MonolithicFlat,
        Subformat::TwoGbSparse,
        Subformat::TwoGbFlat,
        Subformat::Stream,
    ];

    fn name(self) -> &'static str {
        match self {
            Subformat::MonolithicSparse => "monolithicSparse",
            Subformat::MonolithicFlat => "monolithicFlat",
            Subformat::TwoGbSparse => "twoGbMaxExtentSparse",
            Subformat::TwoGbFlat => "twoGbMaxExtentFlat",
            Subformat::Stream => "streamOptimized",
        }
    }

    fn flat(self) -> bool {
        matches!(self, Subformat::MonolithicFlat | Subformat::TwoGbFlat)
    }

    fn split(self) -> bool {
        matches!(self, Subformat::TwoGbSparse | Subformat::TwoGbFlat)
    }
}

/// Checked options.
struct Plan<'a> {
    subformat: Subformat,
    adapter: &'a str,
    hw_version: &'a str,
    tools_version: &'a str,
    zero_grain: bool,
    parent: Option<(&'a str, u32)>,
}

/// Creates an empty image.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    let plan = plan(cx)?;
    let size = checked_round_up(cx.size, SECTOR)
        .filter(|&s| i64::try_from(s).is_ok())
        .ok_or_else(|| Error::errno(libc::EFBIG))?;
    let main = cx.files.main()?;
    let embedded = matches!(plan.subformat, Subformat::MonolithicSparse | Subformat::Stream);
    let mut lines = String::new();
    if embedded {
        check_size(size)?;
        // Readers do not use the name of the extent that they are reading already.
        let name = cx.file_name.replace(['"', '\n', '\r'], "_");
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "RW {} SPARSE \"{name}\"", size / SECTOR);
    } else {
        quotable("file name", cx.file_name)?;
        beside(cx, &plan, size, &mut lines)?;
    }
    let text = NewDescriptor {
        cid: random_cid(),
        parent: plan.parent,
        create_type: plan.subformat.name(),
        extents: &lines,
        hw_version: plan.hw_version,
        tools_version: plan.tools_version,
        adapter: plan.adapter,
        size: cx.size,
    }
    .text();
    if !embedded {
        return main.write_at(0, text.as_bytes());
    }
    if len_u64(text.len()) > DESCRIPTOR_ROOM * SECTOR {
        return Err(Error::invalid("the descriptor has no room for names that long"));
    }
    if plan.subformat == Subformat::Stream {
        stream(&*main, size, plan.zero_grain)?;
    } else {
        sparse(&*main, size, plan.zero_grain)?;
    }
    main.write_at(DESCRIPTOR_AT * SECTOR, text.as_bytes())
}

/// Refuses bad options, with QEMU's words.
fn plan<'a>(cx: &'a CreateContext<'_>) -> Result<Plan<'a>> {
    let wrong = |value: &str| Error::invalid(format!("invalid parameter value: {value}"));
    let options = cx.options;
    let subformat = match options.text("subformat") {
        None => Subformat::MonolithicSparse,
        Some(name) => {
            Subformat::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| wrong(name))?
        }
    };
    let adapter = options.text("adapter_type").unwrap_or("ide");
    if !["ide", "buslogic", "lsilogic", "legacyESX"].contains(&adapter) {
        return Err(wrong(adapter));
    }
    let compat6 = options.flag("compat6") == Some(true);
    let hw_version = match options.text("hwversion").filter(|v| *v != "undefined") {
        Some(_) if compat6 => {
            return Err(Error::invalid("compat6 cannot be enabled with hwversion set"));
        }
        Some(version) => version,
        None if compat6 => "6",
        None => "4",
    };
    let tools_version = options.text("toolsversion").unwrap_or("2147483647");
    quotable("hwversion", hw_version)?;
    quotable("toolsversion", tools_version)?;
    let format = options
        .text("backing_fmt")
        .or_else(|| cx.backing.as_ref().and_then(|b| b.format.as_deref()));
    if format.is_some_and(|f| f != "vmdk") {
        return Err(Error::invalid("backing_file must be a vmdk image"));
    }
    // Whether there is anything to reserve is decided with the extents.
    crate::format::options::preallocation(options, &[Preallocation::Falloc, Preallocation::Full])?;
    let zero_grain = options.flag("zeroed_grain") == Some(true);
    if subformat.flat() && cx.backing.is_some() {
        return Err(Error::unsupported("Flat image can't have backing file"));
    }
    if subformat.flat() && zero_grain {
        return Err(Error::unsupported("Flat image can't enable zeroed grain"));
    }
    let parent = match &cx.backing {
        None => None,
        Some(backing) => {
            quotable("backing file name", &backing.name)?;
            Some((backing.name.as_str(), parent_cid(cx, &backing.name)?))
        }
    };
    Ok(Plan { subformat, adapter, hw_version, tools_version, zero_grain, parent })
}

fn parent_cid(cx: &CreateContext<'_>, name: &str) -> Result<u32> {
    let Some(image) = cx.backing_image else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("Could not open '{name}', whose content id the new image must name"),
        ));
    };
    content_id(image)?.ok_or_else(|| Error::invalid("backing_file must be a vmdk image"))
}

/// The descriptor has no way to write these.
fn quotable(what: &str, text: &str) -> Result<()> {
    if text.contains(['"', '\n', '\r', '\0']) {
        return Err(Error::invalid(format!(
            "{what} '{}' has characters that a VMDK descriptor cannot hold",
            text.escape_debug()
        )));
    }
    Ok(())
}

/// Grain tables are bounded, and so is the directory that readers accept.
fn check_size(size: u64) -> Result<()> {
    if size.div_ceil(GRAIN * SECTOR * GTES) > MAX_DIRECTORY {
        return Err(Error::errno(libc::EFBIG).context("L1 size too big"));
    }
    Ok(())
}

/// Creates the extents that are files of their own, and tells the descriptor's lines.
fn beside(cx: &CreateContext<'_>, plan: &Plan<'_>, size: u64, lines: &mut String) -> Result<()> {
    let (stem, suffix) = match cx.file_name.rfind('.') {
        Some(dot) => cx.file_name.split_at(dot),
        None => (cx.file_name, ""),
    };
    let how = crate::format::options::preallocation(
        cx.options,
        &[Preallocation::Falloc, Preallocation::Full],
    )?;
    let piece = if plan.subformat.split() { PIECE } else { u64::MAX };
    let mut left = size;
    let mut number = 0;
    while left > 0 {
        number += 1;
        let here = left.min(piece);
        left -= here;
        let letter = if plan.subformat.flat() { 'f' } else { 's' };
        let name = if plan.subformat.split() {
            format!("{stem}-{letter}{number:03}{suffix}")
        } else {
            format!("{stem}-flat{suffix}")
        };
        let storage = cx.files.beside(&name)?;
        let sectors = here / SECTOR;
        // Writing to a string cannot fail.
        let _ = if plan.subformat.flat() {
            storage.set_len(here, how)?;
            writeln!(lines, "RW {sectors} FLAT \"{name}\" 0")
        } else {
            sparse(&*storage, here, plan.zero_grain)?;
            writeln!(lines, "RW {sectors} SPARSE \"{name}\"")
        };
    }
    Ok(())
}

fn header(size: u64) -> SparseHeader {
    SparseHeader {
        magic: U32::new(layout::MAGIC_KDMV),
        version: U32::new(1),
        flags: U32::new(layout::FLAG_NEWLINES),
        capacity: U64::new(size / SECTOR),
        grain_size: U64::new(GRAIN),
        descriptor_offset: U64::new(DESCRIPTOR_AT),
        descriptor_size: U64::new(DESCRIPTOR_ROOM),
        gtes_per_gt: U32::new(512),
        rgd_offset: U64::new(0),
        gd_offset: U64::new(0),
        overhead: U64::new(GRAIN),
        unclean_shutdown: 0,
        newlines: layout::NEWLINES,
        compress: U16::new(0),
        pad: [0; 433],
    }
}

/// An empty sparse extent with all its tables made, twice.
fn sparse(storage: &dyn Storage, size: u64, zero_grain: bool) -> Result<()> {
    let tables = size.div_ceil(GRAIN * SECTOR * GTES);
    let directory = (tables * 4).div_ceil(SECTOR);
    let rgd = DESCRIPTOR_AT + DESCRIPTOR_ROOM;
    let gd = rgd + directory + GT_SECTORS * tables;
    let overhead = round_up(gd + directory + GT_SECTORS * tables, GRAIN);
    let mut flags = layout::FLAG_NEWLINES | layout::FLAG_REDUNDANT;
    if zero_grain {
        flags |= layout::FLAG_ZERO_GRAIN;
    }
    let header = SparseHeader {
        version: U32::new(if zero_grain { 2 } else { 1 }),
        flags: U32::new(flags),
        rgd_offset: U64::new(rgd),
        gd_offset: U64::new(gd),
        overhead: U64::new(overhead),
        ..header(size)
    };
    storage.set_len(overhead * SECTOR, Preallocation::Off)?;
    storage.write_at(0, header.as_bytes())?;
    for base in [rgd, gd] {
        for first in (0..tables).step_by(small(BATCH)) {
            let mut bytes = Vec::new();
            for i in first..tables.min(first + BATCH) {
                let sector = u32::try_from(base + directory + i * GT_SECTORS)
                    .map_err(|_| Error::errno(libc::EFBIG))?;
                bytes.extend_from_slice(&sector.to_le_bytes());
            }
            storage.write_at(base * SECTOR + first * 4, &bytes)?;
        }
    }
    Ok(())
}

/// An empty, complete stream.
fn stream(storage: &dyn Storage, size: u64, zero_grain: bool) -> Result<()> {
    let mut flags = layout::FLAG_NEWLINES | layout::FLAG_COMPRESSED | layout::FLAG_MARKERS;
    if zero_grain {
        flags |= layout::FLAG_ZERO_GRAIN;
    }
    let header = SparseHeader {
        version: U32::new(3),
        flags: U32::new(flags),
        gd_offset: U64::new(layout::GD_AT_END),
        compress: U16::new(layout::COMPRESS_DEFLATE),
        ..header(size)
    };
    storage.write_at(0, header.as_bytes())?;
    let gd = vec![0; small(size.div_ceil(GRAIN * SECTOR * GTES))];
    super::stream::write_tail(storage, header, &gd, GRAIN * SECTOR)?;
    Ok(())
}
