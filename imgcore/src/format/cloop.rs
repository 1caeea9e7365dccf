//! cloop: compressed loop images, version 2 (Knoppix).
//!
//! A shell script of 128 bytes that would mount the file, the size of a block, the number of blocks, the
//! place of each (and of the end), all big endian; then the blocks, each packed by zlib. Facts are from
//! the driver's own header file (`compressed_loop.h`, cloop 2.x). Read only.

use std::sync::Arc;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::codec::Codec;
use super::packed::{Block, Blocks, Content, PackedImage};
use super::{Access, Driver, Image, ImageInfo, OpenContext, OptionSpec, never_written};
use crate::num::{len_u64, small, to_usize};
use crate::storage::Storage;
use crate::{Error, Result};

/// The driver.
pub struct CloopDriver;

/// What the script begins with.
const SCRIPT: &[u8] = b"#!/bin/sh\n#V2.0 Format\n";
/// Where the numbers begin.
const NUMBERS: u64 = 128;
/// Largest block in bytes.
const MAX_BLOCK: u32 = 64 << 20;
/// Most bytes of places.
const MAX_PLACES: u64 = 512 << 20;
/// Places read at a time.
const STEP: usize = 8192;

/// What follows the script.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Numbers {
    block_size: U32,
    blocks: U32,
}

const _: () = assert!(size_of::<Numbers>() == 8);

impl Driver for CloopDriver {
    fn name(&self) -> &'static str {
        "cloop"
    }

    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        // As low as QEMU's: the words are those of any shell script.
        if head.starts_with(SCRIPT) { 2 } else { 0 }
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
    let mut head = [0; size_of::<Numbers>()];
    storage.read_at(NUMBERS, &mut head)?;
    let numbers = Numbers::read_from_bytes(&head).map_err(|_| Error::corrupt("no header"))?;
    let (block, count) = (numbers.block_size.get(), u64::from(numbers.blocks.get()));
    let bad = |message: String| Error::corrupt(message).at_path(storage.name()).at_offset(NUMBERS);
    match block {
        0 => return Err(bad("block_size cannot be zero".to_owned())),
        b if !b.is_multiple_of(512) => {
            return Err(bad(format!("block_size {b} must be a multiple of 512")));
        }
        b if b > MAX_BLOCK => return Err(bad(format!("block_size {b} must be 64 MB or less"))),
        _ => {}
    }
    let bytes = (count + 1) * 8;
    if bytes > MAX_PLACES {
        return Err(bad("image requires too many offsets, try increasing block size".to_owned()));
    }
    let first = NUMBERS + len_u64(size_of::<Numbers>());
    let end = storage.len()?;
    if first + bytes > end {
        return Err(bad(format!(
            "the table of {count} blocks lies beyond the end of the file ({end:#x} bytes)"
        )));
    }
    let places = read_places(&*storage, first, count + 1, block)?;
    let info = ImageInfo {
        cluster_size: Some(u64::from(block)),
        compressed: None,
        ..ImageInfo::default()
    };
    let blocks = Places { block: u64::from(block), places };
    Ok(PackedImage::new("cloop", storage, u64::from(block) * count, Box::new(blocks), info))
}

/// The places of the blocks; each block must lie behind the one before it and be no monster.
fn read_places(storage: &dyn Storage, first: u64, count: u64, block: u32) -> Result<Vec<u64>> {
    let mut places = Vec::with_capacity(to_usize(count)?);
    let mut bytes = vec![0; STEP * 8];
    let mut at = first;
    while len_u64(places.len()) < count {
        let wanted = small(count - len_u64(places.len())).min(STEP) * 8;
        storage.read_at(at, &mut bytes[..wanted])?;
        for place in bytes[..wanted].chunks_exact(8).filter_map(|b| U64::read_from_bytes(b).ok()) {
            let (index, place) = (places.len(), place.get());
            let bad = |what: &str| {
                Error::corrupt(format!("{what} at index {index}, image file is corrupt"))
                    .at_path(storage.name())
                    .at_offset(first + len_u64(index) * 8)
            };
            if let Some(&before) = places.last() {
                if place < before {
                    return Err(bad("offsets not monotonically increasing"));
                }
                // zlib makes incompressible data a little longer, never twice as long.
                if place - before > 2 * u64::from(block).max(1 << 20) {
                    return Err(bad("invalid compressed block size"));
                }
            }
            places.push(place);
        }
        at += len_u64(wanted);
    }
    Ok(places)
}

#[derive(Debug)]
struct Places {
    block: u64,
    places: Vec<u64>,
}

impl Blocks for Places {
    fn find(&self, at: u64) -> Result<Block> {
        let index = small(at / self.block);
        match self.places.get(index..index + 2) {
            Some(&[place, end]) => Ok(Block {
                start: at - at % self.block,
                len: self.block,
                content: Content::Packed { at: place, len: end - place, codec: Codec::Zlib },
            }),
            _ => Err(Error::corrupt("offset beyond the last block").at_offset(at)),
        }
    }
}
