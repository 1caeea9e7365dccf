//! Walking over what a chain of images holds, and reading it without asking twice.
//!
//! [`Walk::run`] says for a guest range which image of the chain has it and where; a run that was
//! found can be read with [`Walk::read`] from any thread, straight from the storage. That is sound
//! only while nobody changes the chain: for images that are open for reading.

use crate::Result;
use crate::format::{Extent, Mapping, StorageId};
use crate::graph::Node;
use crate::num::{GuestOffset, HostOffset, small};
use crate::storage::HostKind;

/// Where the bytes of a run come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Stored as they are.
    Plain(StorageId, HostOffset),
    /// To be decoded by the image.
    Encoded,
    /// Zeroes.
    Zero,
    /// An image below the last one that may be looked at.
    Below,
}

/// Guest bytes with one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Links from the top to the image that answered.
    pub link: usize,
    /// Where they come from.
    pub origin: Origin,
    /// Some image has them (as data or as zeroes).
    pub allocated: bool,
    /// Space is used for them, also where they read as zeroes.
    pub stored: bool,
    /// Stored compressed.
    pub compressed: bool,
    /// The place of the bytes, or reserved for them.
    pub place: Option<(StorageId, HostOffset)>,
}

impl Run {
    /// Reads as zeroes.
    pub fn is_zero(&self) -> bool {
        self.origin == Origin::Zero
    }
}

/// A chain to be walked over.
#[derive(Debug)]
pub struct Walk<'a> {
    links: Vec<&'a Node>,
    /// Links that may be followed.
    limit: usize,
}

impl<'a> Walk<'a> {
    /// The whole chain.
    pub fn chain(top: &'a Node) -> Self {
        Walk { links: top.chain(), limit: usize::MAX }
    }

    /// The first `images` images of the chain only.
    pub fn first(top: &'a Node, images: usize) -> Self {
        Walk { links: top.chain(), limit: images.saturating_sub(1) }
    }

    /// All images, the top one first.
    pub fn images(&self) -> impl Iterator<Item = &'a Node> {
        self.links.iter().copied()
    }

    /// An image by its number from the top.
    pub fn image(&self, link: usize) -> Option<&'a Node> {
        self.links.get(link).copied()
    }

    /// The run at `at`, looking at no more than `len` (> 0) bytes, which must lie inside the disk.
    pub fn run(&self, at: u64, len: u64) -> Result<Run> {
        let mut len = len;
        let mut last = None;
        for (link, node) in self.links.iter().enumerate() {
            node.image().prepare_status()?;
            let extent = node.image().map(GuestOffset(at), len)?;
            len = extent.len.min(len).max(1);
            let below = self.links.get(link + 1);
            let rest = below.map_or(0, |b| b.virtual_size().saturating_sub(at));
            if extent.mapping != Mapping::Backing {
                return self.found(node, Extent { len, ..extent }, link);
            }
            let nothing = Run {
                len,
                link,
                origin: Origin::Zero,
                allocated: false,
                stored: false,
                compressed: false,
                place: None,
            };
            if rest == 0 {
                return Ok(nothing);
            }
            if link >= self.limit {
                return Ok(Run { origin: Origin::Below, ..nothing });
            }
            len = len.min(rest);
            last = Some(nothing);
        }
        // Not reached: the last image has nothing below it. Zeroes are what such a chain reads as.
        last.ok_or_else(|| crate::Error::invalid("a chain without images"))
    }

    fn found(&self, node: &Node, extent: Extent, link: usize) -> Result<Run> {
        let base = Run {
            len: extent.len,
            link,
            origin: Origin::Zero,
            allocated: true,
            stored: false,
            compressed: false,
            place: None,
        };
        Ok(match extent.mapping {
            Mapping::Data { storage, offset, probe_holes, .. } => {
                let place = Some((storage, offset)).filter(|_| !node.image().encrypts());
                let data =
                    Run { origin: Origin::Plain(storage, offset), stored: true, place, ..base };
                if !probe_holes {
                    return Ok(data);
                }
                let host = node.image().storage(storage).status(offset.0, extent.len)?;
                let len = host.len.min(extent.len).max(1);
                match host.kind {
                    HostKind::Data => Run { len, ..data },
                    // A hole of a raw image is nothing stored; other formats count it as theirs.
                    HostKind::Hole => {
                        let stored = node.image().format_name() != "raw";
                        Run { len, stored, place, ..base }
                    }
                }
            }
            Mapping::Zero { reserved } => Run { place: reserved, ..base },
            Mapping::Encoded { compressed, .. } => {
                Run { origin: Origin::Encoded, stored: true, compressed, ..base }
            }
            Mapping::Backing => Run { allocated: false, ..base },
        })
    }

    /// Reads a part of a run that was found at `found`: the guest bytes from `at` on.
    pub fn read(&self, run: &Run, found: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(node) = self.image(run.link) else {
            buf.fill(0);
            return Ok(());
        };
        match run.origin {
            Origin::Plain(storage, offset) => {
                node.image().storage(storage).read_at(offset.0 + (at - found), buf)
            }
            Origin::Encoded => node.image().read_encoded(GuestOffset(at), buf),
            Origin::Zero => {
                buf.fill(0);
                Ok(())
            }
            Origin::Below => match self.image(run.link + 1) {
                Some(below) => {
                    let have = small(below.virtual_size().saturating_sub(at)).min(buf.len());
                    let (inside, beyond) = buf.split_at_mut(have);
                    beyond.fill(0);
                    if inside.is_empty() { Ok(()) } else { below.read(at, inside) }
                }
                None => {
                    buf.fill(0);
                    Ok(())
                }
            },
        }
    }
}
