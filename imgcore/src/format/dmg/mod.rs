//! DMG: macOS disk images (UDIF).
//!
//! A trailer (`koly`) at the end of the file leads to a table (`mish`) for each partition, which lists
//! *chunks*: ranges of sectors that are zero, stored as they are, or packed. What no chunk covers is zero.
//! Read only: UDRO, UDCO (ADC), UDZO (zlib), UDBZ (bzip2), ULFO (LZFSE), ULMO (lzma).

mod layout;
mod tables;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use zerocopy::FromBytes;

use super::codec::Codec;
use super::packed::{Block, Blocks, Content, PackedImage};
use super::{Access, Driver, Image, ImageInfo, OpenContext, OptionSpec, never_written};
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};
use layout::{Chunk, KOLY, MISH, SECTOR, TRAILER, TableHeader, Trailer};

/// The driver.
pub struct DmgDriver;

/// Most sectors of a packed chunk: 64 MiB.
const MAX_SECTORS: u64 = 131_072;
/// Most packed bytes of a chunk.
const MAX_PACKED: u64 = 64 << 20;
/// How far before the end of the file the trailer is looked for.
const TAIL: u64 = 2 * TRAILER;

impl Driver for DmgDriver {
    fn name(&self) -> &'static str {
        "dmg"
    }

    fn probe(&self, _head: &[u8], name: &str) -> u32 {
        // The magic number is at the other end of the file; QEMU goes by the name, too.
        if name.ends_with(".dmg") { 2 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        if let Some((name, _)) = cx.options.first() {
            return Err(super::options::unknown(self.name(), name));
        }
        if cx.access == Access::Write {
            return Err(never_written());
        }
        open(cx.storage).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        &[]
    }

    fn can_create(&self) -> bool {
        false
    }
}

fn open(storage: Arc<dyn Storage>) -> Result<PackedImage> {
    let (trailer, at) = find_trailer(&*storage)?;
    if trailer.segment_count.get() > 1 {
        return Err(Error::unsupported(format!(
            "this is part {} of {} of a segmented image",
            trailer.segment_number.get(),
            trailer.segment_count.get()
        ))
        .hint("join the parts on macOS: hdiutil convert FIRST.dmg -format UDZO -o WHOLE.dmg"));
    }
    let fork = trailer.data_fork_offset.get();
    let mut chunks = Vec::new();
    for table in tables::read(&*storage, &trailer, at)? {
        parse_table(&table, fork, &mut chunks).map_err(|e| e.at_path(storage.name()))?;
    }
    chunks.sort_by_key(|c| c.start);
    if let Some(pair) = chunks.windows(2).find(|p| p[0].start + p[0].len > p[1].start) {
        return Err(Error::corrupt(format!("two chunks claim sector {}", pair[1].start / SECTOR))
            .at_path(storage.name()));
    }
    let end = chunks.last().map_or(0, |c| c.start + c.len);
    // Some writers leave the count out.
    let size = match trailer.sector_count.get().checked_mul(SECTOR) {
        Some(size) if i64::try_from(size).is_ok() => size.max(end),
        _ => {
            let count = trailer.sector_count.get();
            return Err(Error::corrupt(format!("a disk of {count} sectors is too large"))
                .at_path(storage.name())
                .at_offset(at));
        }
    };
    let info = ImageInfo::default();
    Ok(PackedImage::new("dmg", storage, size, Box::new(Chunks { chunks, size }), info))
}

/// The trailer is the last 512 bytes; a few bytes may follow it.
fn find_trailer(storage: &dyn Storage) -> Result<(Trailer, u64)> {
    let mut head = [0; 8];
    storage.read_at(0, &mut head)?;
    if &head == b"encrcdsa" {
        return Err(Error::unsupported("this DMG is encrypted")
            .at_path(storage.name())
            .hint("decrypt it on macOS: hdiutil convert IN.dmg -format UDZO -o OUT.dmg"));
    }
    let len = storage.len()?;
    let missing =
        || Error::corrupt("Could not locate UDIF trailer in dmg file").at_path(storage.name());
    if len < TRAILER {
        return Err(missing());
    }
    let from = len.saturating_sub(TAIL);
    let mut tail = vec![0; small(len - from)];
    storage.read_at(from, &mut tail)?;
    let last = tail.len() - small(TRAILER);
    let found = (0..=last).rev().find(|&i| tail[i..i + 4] == KOLY).ok_or_else(missing)?;
    let (trailer, _) = Trailer::read_from_prefix(&tail[found..]).map_err(|_| missing())?;
    Ok((trailer, from + len_u64(found)))
}

/// Adds the chunks of one table. `fork`: where the data fork begins.
fn parse_table(bytes: &[u8], fork: u64, chunks: &mut Vec<Block>) -> Result<()> {
    let short = || Error::corrupt("a partition's table ends in the middle");
    let (header, rest) = TableHeader::read_from_prefix(bytes).map_err(|_| short())?;
    if header.magic != MISH {
        return Err(Error::corrupt("a partition's table does not begin with 'mish'"));
    }
    let count = small(u64::from(header.chunks.get()));
    let entries = rest.chunks_exact(size_of::<Chunk>());
    if entries.len() < count {
        return Err(short());
    }
    for (index, entry) in entries.take(count).enumerate() {
        let entry = Chunk::read_from_bytes(entry).map_err(|_| short())?;
        if let Some(block) = parse_chunk(index, &entry, &header, fork)? {
            chunks.push(block);
        }
    }
    Ok(())
}

/// What a chunk stands for; nothing for comments and the terminator.
fn parse_chunk(
    index: usize,
    entry: &Chunk,
    header: &TableHeader,
    fork: u64,
) -> Result<Option<Block>> {
    let kind = entry.kind.get();
    let codec = match kind {
        layout::COMMENT | layout::TERMINATOR => return Ok(None),
        layout::ZERO | layout::IGNORE | layout::RAW => None,
        layout::ADC => Some(Codec::Adc),
        layout::ZLIB => Some(Codec::Zlib),
        layout::BZIP2 => Some(Codec::Bzip2),
        layout::LZFSE => Some(Codec::Lzfse),
        layout::LZMA => Some(Codec::Xz),
        other => {
            return Err(Error::unsupported(format!("chunk {index} is of unknown type {other:#x}")));
        }
    };
    let (sectors, length) = (entry.sectors.get(), entry.length.get());
    if sectors == 0 {
        return Ok(None);
    }
    if codec.is_some() && sectors > MAX_SECTORS {
        return Err(Error::corrupt(format!(
            "sector count {sectors} for chunk {index} is larger than max ({MAX_SECTORS})"
        )));
    }
    if codec.is_some() && length > MAX_PACKED {
        return Err(Error::corrupt(format!(
            "length {length} for chunk {index} is larger than max ({MAX_PACKED})"
        )));
    }
    let bytes = |sectors: u64| sectors.checked_mul(SECTOR).filter(|&b| i64::try_from(b).is_ok());
    let start = header.first_sector.get().checked_add(entry.sector.get()).and_then(bytes);
    let place = fork
        .checked_add(header.data_offset.get())
        .and_then(|p| p.checked_add(entry.offset.get()))
        .filter(|&p| i64::try_from(p).is_ok());
    let range = start
        .zip(bytes(sectors))
        .filter(|(s, l)| s.checked_add(*l).is_some_and(|e| i64::try_from(e).is_ok()));
    let (Some((start, len)), Some(at)) = (range, place) else {
        return Err(Error::corrupt(format!("chunk {index} lies beyond all files and disks")));
    };
    let content = match (codec, kind) {
        (Some(codec), _) => Content::Packed { at, len: length, codec },
        (None, layout::RAW) if length < len => {
            return Err(Error::corrupt(format!(
                "chunk {index} has {length} bytes for {sectors} sectors"
            )));
        }
        (None, layout::RAW) => Content::Plain(at),
        (None, _) => Content::Zero,
    };
    Ok(Some(Block { start, len, content }))
}

/// All chunks, ascending, not overlapping.
#[derive(Debug)]
struct Chunks {
    chunks: Vec<Block>,
    size: u64,
}

impl Blocks for Chunks {
    fn find(&self, at: u64) -> Result<Block> {
        let next = self.chunks.partition_point(|c| c.start <= at);
        let before = next.checked_sub(1).and_then(|i| self.chunks.get(i));
        let gap = match before {
            Some(block) if at < block.start + block.len => return Ok(*block),
            Some(block) => block.start + block.len,
            None => 0,
        };
        let end = self.chunks.get(next).map_or(self.size, |c| c.start);
        Ok(Block { start: gap, len: end - gap, content: Content::Zero })
    }
}
