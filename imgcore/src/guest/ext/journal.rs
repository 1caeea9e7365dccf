//! The journal, played back in memory ("Journal (jbd2)").
//!
//! A transaction is a row of blocks: descriptors, each followed by the blocks it lists, revocations, and
//! a commit. What has a commit counts; a block that a later transaction revoked does not.

use std::collections::BTreeMap;

use super::files::{Ext, Inode};
use super::layout::crc;
use crate::guest::fields::Fields;
use crate::num::small;
use crate::{Error, Result};

/// What blocks of the journal begin with.
pub(super) const MAGIC: u32 = 0xc03b_3998;

/// Blocks of a journal that are looked at: 4 GiB of blocks of 4 KiB.
const MAX_BLOCKS: u32 = 1 << 20;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;

// Features.
const WIDE: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;

// Flags of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;

/// One block that a transaction writes.
struct Write {
    sequence: u32,
    home: u64,
    place: u64,
    escaped: bool,
}

struct Journal<'a> {
    fs: &'a Ext,
    inode: Inode,
    features: u32,
    first: u32,
    len: u32,
    /// Seed of the checksums.
    seed: u32,
    block: Vec<u8>,
}

/// The blocks whose newest contents lie in the journal.
pub(super) fn replay(fs: &Ext, inode: u64) -> Result<BTreeMap<u64, (u64, bool)>> {
    let mut journal = Journal {
        fs,
        inode: fs.inode(inode)?,
        features: 0,
        first: 1,
        len: u32::MAX,
        seed: 0,
        block: vec![0; small(fs.layout.block)],
    };
    journal.read(0)?;
    let sb = Fields(&journal.block);
    let version = sb.be32(4)?;
    if sb.be32(0)? != MAGIC || !matches!(version, 3 | 4) {
        return Err(Error::corrupt("the journal has no superblock"));
    }
    if u64::from(sb.be32(0xc)?) != fs.layout.block {
        return Err(Error::corrupt("the journal's blocks are of another size"));
    }
    let (len, first) = (sb.be32(0x10)?, sb.be32(0x14)?);
    let (sequence, start) = (sb.be32(0x18)?, sb.be32(0x1c)?);
    let features = if version == 4 { sb.be32(0x28)? } else { 0 };
    let seed = crc(u32::MAX, sb.slice(0x30, 16)?);
    if start == 0 {
        return Ok(BTreeMap::new());
    }
    if len > MAX_BLOCKS || first == 0 || first >= len || start < first || start >= len {
        return Err(Error::corrupt("the journal's superblock is damaged"));
    }
    (journal.len, journal.first, journal.features, journal.seed) = (len, first, features, seed);
    journal.walk(sequence, start)
}

impl Journal<'_> {
    /// Where a block of the journal lies on the disk.
    fn place(&self, index: u32) -> Result<u64> {
        let run = self.fs.map(&self.inode, u64::from(index))?;
        run.start.ok_or_else(|| Error::corrupt("the journal has holes"))
    }

    fn read(&mut self, index: u32) -> Result<u64> {
        let place = self.place(index)?;
        // The journal's own blocks are never in it.
        let at = place.saturating_mul(self.fs.layout.block);
        self.fs.source.read_at(at, &mut self.block)?;
        Ok(place)
    }

    fn next(&self, index: u32) -> u32 {
        if index + 1 >= self.len { self.first } else { index + 1 }
    }

    /// From the oldest transaction to the last one that is whole.
    fn walk(&mut self, first: u32, start: u32) -> Result<BTreeMap<u64, (u64, bool)>> {
        let (mut sequence, mut at) = (first, start);
        let mut whole: Vec<Write> = Vec::new();
        let mut open: Vec<Write> = Vec::new();
        let mut revoked: BTreeMap<u64, u32> = BTreeMap::new();
        let mut revoking: Vec<u64> = Vec::new();
        let mut left = self.len;
        while left > 0 {
            left -= 1;
            self.read(at)?;
            at = self.next(at);
            let f = Fields(&self.block);
            if f.be32(0)? != MAGIC || f.be32(8)? != sequence {
                break;
            }
            match f.be32(4)? {
                DESCRIPTOR => {
                    let tags = self.tags()?;
                    let mut good = true;
                    for (home, escaped, checksum) in tags {
                        if left == 0 {
                            good = false;
                            break;
                        }
                        left -= 1;
                        let place = self.read(at)?;
                        at = self.next(at);
                        good &= self.matches(sequence, checksum);
                        open.push(Write { sequence, home, place, escaped });
                    }
                    // A transaction whose blocks were not all written is not one.
                    if !good {
                        break;
                    }
                }
                REVOKE => {
                    let wide = self.features & WIDE != 0;
                    let end = small(u64::from(f.be32(12)?)).min(self.block.len());
                    let mut i = 16;
                    while i + if wide { 8 } else { 4 } <= end {
                        revoking.push(if wide { f.be64(i)? } else { u64::from(f.be32(i)?) });
                        i += if wide { 8 } else { 4 };
                    }
                }
                COMMIT => {
                    whole.append(&mut open);
                    for block in revoking.drain(..) {
                        revoked.insert(block, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        let age = |s: u32| s.wrapping_sub(first);
        let mut newer = BTreeMap::new();
        for write in whole {
            let gone = revoked.get(&write.home).is_some_and(|r| age(*r) >= age(write.sequence));
            if !gone {
                newer.insert(write.home, (write.place, write.escaped));
            }
        }
        Ok(newer)
    }

    /// The tags of a descriptor block: home, whether its first bytes were replaced, checksum.
    fn tags(&self) -> Result<Vec<(u64, bool, u32)>> {
        let f = Fields(&self.block);
        let v3 = self.features & CSUM_V3 != 0;
        let wide = self.features & WIDE != 0;
        // journal_block_tag3_t; journal_block_tag_t without its upper half, which version 2 of the
        // checksums does not shorten.
        let size = match (v3, self.features & CSUM_V2 != 0, wide) {
            (true, _, _) => 16,
            (false, true, true) => 14,
            (false, true, false) => 10,
            (false, false, true) => 12,
            (false, false, false) => 8,
        };
        let tail = if self.features & (CSUM_V2 | CSUM_V3) != 0 { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut at = 12;
        while at + size + tail <= self.block.len() {
            let low = u64::from(f.be32(at)?);
            let (flags, high, checksum) = if v3 {
                (f.be32(at + 4)?, f.be32(at + 8)?, f.be32(at + 12)?)
            } else {
                let high = if wide { f.be32(at + 8)? } else { 0 };
                (u32::from(f.be16(at + 6)?), high, u32::from(f.be16(at + 4)?))
            };
            let high = if wide { u64::from(high) << 32 } else { 0 };
            tags.push((low | high, flags & ESCAPED != 0, checksum));
            at += size;
            if flags & SAME_UUID == 0 {
                at += 16;
            }
            if flags & LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    /// Whether the block just read is the one that its tag is for.
    fn matches(&self, sequence: u32, checksum: u32) -> bool {
        let have = crc(crc(self.seed, &sequence.to_be_bytes()), &self.block);
        if self.features & CSUM_V3 != 0 {
            have == checksum
        } else if self.features & CSUM_V2 != 0 {
            have & 0xffff == checksum
        } else {
            true
        }
    }
}
