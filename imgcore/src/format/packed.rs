//! Read-only images made of blocks, most of them packed (cloop, dmg).
//!
//! A format says where its blocks are; looking them up, unpacking them and remembering the last ones
//! is done here. Nothing can be written, so there is no order of writes.

use std::sync::{Arc, Mutex, PoisonError};

use super::codec::Codec;
use super::{Extent, Granularity, Image, ImageInfo, Mapping, StorageId};
use crate::num::{GuestOffset, HostOffset, len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeroes, and nothing in the file.
    Zero,
    /// The bytes themselves, from this place on.
    Plain(u64),
    /// `len` packed bytes at `at`.
    Packed {
        /// Place in the file.
        at: u64,
        /// Bytes there; the format has bounded them.
        len: u64,
        /// How.
        codec: Codec,
    },
}

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// First guest byte.
    pub start: u64,
    /// Guest bytes; more than 0. Of a packed block the format has bounded them.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

/// Where blocks are.
pub(super) trait Blocks: Send + Sync + std::fmt::Debug {
    /// The block that covers guest offset `at`, which lies inside the disk. Where the format has none, a
    /// block of zeroes as long as the gap.
    fn find(&self, at: u64) -> Result<Block>;
}

/// How many unpacked blocks are remembered; only one where they are large.
const REMEMBERED: usize = 4;
const LARGE: usize = 1 << 20;

/// An opened image.
#[derive(Debug)]
pub(super) struct PackedImage {
    pub name: &'static str,
    pub storage: Arc<dyn Storage>,
    pub size: u64,
    pub blocks: Box<dyn Blocks>,
    pub info: ImageInfo,
    remembered: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
}

impl PackedImage {
    pub fn new(
        name: &'static str,
        storage: Arc<dyn Storage>,
        size: u64,
        blocks: Box<dyn Blocks>,
        info: ImageInfo,
    ) -> Self {
        PackedImage { name, storage, size, blocks, info, remembered: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Arc<Vec<u8>>)>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self, block: &Block, at: u64, what: &str) -> Error {
        Error::corrupt(format!("block of guest offset {:#x} is damaged: {what}", block.start))
            .at_path(self.storage.name())
            .at_offset(at)
    }

    /// Unpacks a whole block.
    fn unpack(&self, block: &Block, out: &mut [u8]) -> Result<()> {
        match block.content {
            Content::Zero => {
                out.fill(0);
                Ok(())
            }
            Content::Plain(at) => {
                self.inside(block, at, len_u64(out.len()))?;
                self.storage.read_at(at, out)
            }
            Content::Packed { at, len, codec } => {
                self.inside(block, at, len)?;
                let mut packed = vec![0; small(len)];
                self.storage.read_at(at, &mut packed)?;
                codec
                    .unpack(&packed, out)
                    .map_err(|e| self.damaged(block, at, &format!("{}: {e}", codec.name())))
            }
        }
    }

    fn inside(&self, block: &Block, at: u64, len: u64) -> Result<()> {
        let end = self.storage.len()?;
        if at.checked_add(len).is_none_or(|e| e > end) {
            let what = format!("{len} bytes at {at:#x} lie beyond the end of the file ({end:#x})");
            return Err(self.damaged(block, at, &what));
        }
        Ok(())
    }

    /// Fills `out` with the block's bytes from `skip` on.
    fn read_inside(&self, block: &Block, skip: u64, out: &mut [u8]) -> Result<()> {
        if let Content::Packed { .. } = block.content {
            if skip == 0 && len_u64(out.len()) == block.len {
                return self.unpack(block, out);
            }
            let known =
                self.lock().iter().find(|(s, _)| *s == block.start).map(|(_, b)| Arc::clone(b));
            let bytes = match known {
                Some(bytes) => bytes,
                None => {
                    let mut bytes = vec![0; small(block.len)];
                    self.unpack(block, &mut bytes)?;
                    let bytes = Arc::new(bytes);
                    let mut remembered = self.lock();
                    remembered.truncate(if bytes.len() > LARGE { 0 } else { REMEMBERED - 1 });
                    remembered.insert(0, (block.start, Arc::clone(&bytes)));
                    bytes
                }
            };
            let from = small(skip);
            out.copy_from_slice(&bytes[from..from + out.len()]);
            return Ok(());
        }
        let content = match block.content {
            Content::Plain(at) => Content::Plain(at + skip),
            other => other,
        };
        self.unpack(&Block { content, ..*block }, out)
    }

    fn block(&self, at: u64) -> Result<Block> {
        let block = self.blocks.find(at)?;
        if !(block.start..block.start + block.len).contains(&at) {
            return Err(Error::corrupt("a block does not cover what it was found for")
                .at_path(self.storage.name())
                .at_offset(at));
        }
        Ok(block)
    }
}

impl Image for PackedImage {
    fn format_name(&self) -> &'static str {
        self.name
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn granularity(&self) -> Granularity {
        Granularity { allocation: 1, zero: None, discard: None, encode: None, append_only: false }
    }

    fn storage(&self, _id: StorageId) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        let block = self.block(at.0)?;
        let skip = at.0 - block.start;
        let rest = (block.len - skip).min(len);
        let mapping = match block.content {
            Content::Zero => Mapping::Zero { reserved: None },
            Content::Plain(place) => {
                self.inside(&block, place, block.len)?;
                Mapping::Data {
                    storage: StorageId(0),
                    offset: HostOffset(place + skip),
                    in_place: false,
                    probe_holes: false,
                }
            }
            Content::Packed { .. } => Mapping::Encoded { at: None, compressed: true },
        };
        if !matches!(mapping, Mapping::Encoded { .. }) {
            return Ok(Extent { len: rest, mapping });
        }
        // A run of packed blocks is one extent: whoever reads it gets all of it in one go.
        let mut end = at.0 + rest;
        while end < at.0 + len {
            let next = self.block(end)?;
            if !matches!(next.content, Content::Packed { .. }) {
                break;
            }
            end = (next.start + next.len).min(at.0 + len);
        }
        Ok(Extent { len: end - at.0, mapping })
    }

    fn read_encoded(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at.0 + len_u64(done);
            let block = self.block(here)?;
            let skip = here - block.start;
            let len = small(block.len - skip).min(buf.len() - done);
            self.read_inside(&block, skip, &mut buf[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn info(&self) -> Result<ImageInfo> {
        Ok(self.info.clone())
    }
}
