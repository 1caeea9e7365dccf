//! Where guest bytes come from, through the whole chain: the question behind `map`, `convert`,
//! `measure`, `rebase`.

use super::Node;
use crate::Result;
use crate::format::{Mapping, StorageId};
use crate::num::{GuestOffset, HostOffset};
use crate::storage::HostKind;

/// What a run of guest bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusKind {
    /// Stored; may hold anything.
    Data,
    /// Known to be zero.
    Zero,
    /// Stored by the image's tables, but a hole in the storage below: reads as zeroes, too.
    Hole,
}

/// A run of guest bytes with one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes from the offset asked for.
    pub len: u64,
    /// Data or zeroes.
    pub kind: StatusKind,
    /// Links to follow from the top to the node that answered.
    pub depth: u32,
    /// False where no image of the chain has anything.
    pub present: bool,
    /// Stored compressed.
    pub compressed: bool,
    /// Where the bytes are, if stored plainly (also for zeroes with a reserved place).
    pub place: Option<(StorageId, HostOffset)>,
}

impl Node {
    /// The status of the guest bytes at `at`, looking at no more than `len` (> 0) bytes, which must
    /// lie inside the disk. Goes down at most `max_depth` links (`None`: to the bottom); what only
    /// deeper nodes could tell is reported as not present.
    pub fn status(&self, at: u64, len: u64, max_depth: Option<u32>) -> Result<Status> {
        self.check_range(at, len)?;
        let mut node = self;
        let mut len = len;
        let mut depth = 0;
        loop {
            node.image.prepare_status()?;
            let extent = node.image.map(GuestOffset(at), len)?;
            len = extent.len;
            if extent.mapping != Mapping::Backing {
                return node.plain_status(extent, depth);
            }
            let nothing = Status {
                len,
                kind: StatusKind::Zero,
                depth,
                present: false,
                compressed: false,
                place: None,
            };
            let Some(below) = &node.backing else { return Ok(nothing) };
            if max_depth == Some(depth) {
                return Ok(Status { kind: StatusKind::Data, ..nothing });
            }
            let have = below.virtual_size().saturating_sub(at);
            if have == 0 {
                // Beyond the end of a short backing file: zeroes that count as its own.
                return Ok(Status { present: true, depth: depth + 1, ..nothing });
            }
            len = len.min(have);
            depth += 1;
            node = below;
        }
    }

    fn plain_status(&self, extent: crate::format::Extent, depth: u32) -> Result<Status> {
        let base = Status {
            len: extent.len,
            kind: StatusKind::Data,
            depth,
            present: true,
            compressed: false,
            place: None,
        };
        Ok(match extent.mapping {
            Mapping::Data { storage, offset, probe_holes, .. } => {
                let plain = !self.image.encrypts();
                let place = Some((storage, offset)).filter(|_| plain);
                let mut status = Status { place, ..base };
                if probe_holes {
                    let host = self.image.storage(storage).status(offset.0, extent.len)?;
                    status.len = host.len;
                    if host.kind == HostKind::Hole {
                        // A raw image has nothing but its file's holes; other formats say data.
                        let raw = self.image.format_name() == "raw";
                        status.kind = if raw { StatusKind::Zero } else { StatusKind::Hole };
                    }
                }
                status
            }
            Mapping::Zero { reserved } => {
                Status { kind: StatusKind::Zero, place: reserved, ..base }
            }
            Mapping::Encoded { compressed, .. } => Status { compressed, ..base },
            Mapping::Backing => Status { present: false, ..base },
        })
    }
}
