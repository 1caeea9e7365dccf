//! Whether the log ("Journaling Log") was closed: its newest record must be an unmount record.

use super::layout::Superblock;
use crate::guest::fields::Fields;
use crate::guest::volume::Volume;
use crate::num::small;
use crate::{Error, Result};

/// Units of the log.
const BASIC: u64 = 512;
/// Bytes of the log that are looked at together.
const PIECE: u64 = 1 << 20;
/// Begins a log record.
const MAGIC: u32 = 0xfeed_babe;
/// Flag of an operation: unmount.
const UNMOUNT: u8 = 0x20;
/// The longest log.
const MAX_LOG: u64 = 4 << 30;

/// What the log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    /// Everything in it was written home.
    Closed,
    /// It must be replayed.
    Open,
}

/// Looks for the newest record ("Log Records") and what it is ("Unmount Record").
pub(super) fn look(volume: &Volume, sb: &Superblock) -> Result<Log> {
    if sb.log_start == 0 {
        return Err(Error::unsupported("keeps its log on another device")
            .hint("trim it in the guest: fstrim"));
    }
    let outside = || Error::corrupt("the log lies outside");
    let first = sb.place(sb.log_start).map_err(|_| outside())?;
    let len = sb.log_blocks * sb.block;
    if len == 0 || len > MAX_LOG || first.checked_add(len).is_none_or(|end| end > volume.len()) {
        return Err(outside());
    }
    let mut newest: Option<(u64, u64)> = None;
    let mut at = 0;
    while at < len {
        let n = PIECE.min(len - at);
        let piece = volume.read(first + at, n)?;
        for (i, unit) in (0u64..).zip(piece.chunks_exact(small(BASIC))) {
            let Some(lsn) = record(Fields(unit), sb)? else { continue };
            if newest.is_none_or(|(best, _)| lsn > best) {
                newest = Some((lsn, at + i * BASIC));
            }
        }
        at += n;
    }
    let (_, record) = newest.ok_or_else(|| Error::corrupt("the log holds no record"))?;
    let header = volume.read(first + record, BASIC)?;
    let h = Fields(&header);
    // Version 2 has a header of one unit for each 32 KiB of the size of its buffers.
    let units = match h.be32(8)? {
        2 => u64::from(h.be32(320)?).div_ceil(32 << 10).clamp(1, 8),
        _ => 1,
    };
    let body = (record + units * BASIC) % len;
    // The operation's header: transaction, length, client, flags.
    let operation = volume.read(first + body, BASIC)?;
    let unmount = h.be32(40)? == 1 && Fields(&operation).u8(9)? & UNMOUNT != 0;
    Ok(if unmount { Log::Closed } else { Log::Open })
}

/// The sequence number of a unit that is the header of a record: magic, cycle, version, length, number. The cycle
/// stands in the number, too; the identifier is the one that users see.
fn record(unit: Fields<'_>, sb: &Superblock) -> Result<Option<u64>> {
    if unit.be32(0)? != MAGIC {
        return Ok(None);
    }
    let lsn = unit.be64(16)?;
    let header = matches!(unit.be32(8)?, 1 | 2)
        && lsn >> 32 == u64::from(unit.be32(4)?)
        && unit.array::<16>(304)? == sb.uuid;
    Ok(header.then_some(lsn))
}
