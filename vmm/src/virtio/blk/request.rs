//! Taking a request apart (section 5.2.6): header, data, status byte; by position, not by descriptor, as
//! any arrangement of descriptors is allowed.

use super::MAX_SEGMENTS;
use crate::mem::Memory;
use crate::num::{get_le, index, low32};
use crate::virtio::Chain;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
const HEADER: u64 = 16;
const ID_LEN: u64 = 20;
const SEGMENT: u64 = 16;

/// A range of a discard or write zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Space may be given back.
    pub unmap: bool,
}

/// What the driver wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes from byte `at` of the disk.
    Read {
        /// First byte.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// Write.
    Write {
        /// First byte.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// Make durable.
    Flush,
    /// The serial number, at most `len` bytes of it.
    GetId {
        /// Room for it.
        len: u64,
    },
    /// Give space back.
    Discard(Vec<Segment>),
    /// Make zero.
    WriteZeroes(Vec<Segment>),
    /// Something else.
    Unknown(u32),
}

/// Why a request cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// There is no place for the status: it can only be given back.
    NoStatus,
    /// The status will be "I/O error".
    Error,
    /// The status will be "unsupported".
    Unsupported,
}

/// What requests have to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the disk, whole blocks.
    pub len: u64,
    /// Bytes of a block: ranges are whole ones.
    pub block: u64,
    /// Most sectors of a range that is discarded.
    pub max_discard: u64,
    /// Most sectors of a range that becomes zero.
    pub max_zeroes: u64,
}

/// Takes a request apart. Ranges are checked against the disk.
pub fn parse(memory: &Memory, chain: &Chain, disk: &Geometry) -> Result<Request, Malformed> {
    let room = chain.writable_len().checked_sub(1).ok_or(Malformed::NoStatus)?;
    let mut header = [0; 16];
    chain.read(memory, 0, &mut header).map_err(|_| Malformed::Error)?;
    let kind = low32(get_le(&header[0..4]));
    let sector = get_le(&header[8..16]);
    let payload = chain.readable_len() - HEADER;
    let range = |len: u64| {
        let at = sector.checked_mul(SECTOR).ok_or(Malformed::Error)?;
        let end = at.checked_add(len).ok_or(Malformed::Error)?;
        if !at.is_multiple_of(disk.block) || !len.is_multiple_of(disk.block) || end > disk.len {
            Err(Malformed::Error)
        } else {
            Ok((at, len))
        }
    };
    match kind {
        0 => range(room).map(|(at, len)| Request::Read { at, len }),
        1 => range(payload).map(|(at, len)| Request::Write { at, len }),
        4 => Ok(Request::Flush),
        8 => Ok(Request::GetId { len: room.min(ID_LEN) }),
        11 => segments(memory, chain, disk, (disk.max_discard, 0)).map(Request::Discard),
        13 => segments(memory, chain, disk, (disk.max_zeroes, 1)).map(Request::WriteZeroes),
        other => Ok(Request::Unknown(other)),
    }
}

/// Each has at most so many sectors; `flags` are those allowed.
fn segments(
    memory: &Memory,
    chain: &Chain,
    disk: &Geometry,
    (most, flags): (u64, u64),
) -> Result<Vec<Segment>, Malformed> {
    let payload = chain.readable_len().checked_sub(HEADER).ok_or(Malformed::Error)?;
    if payload == 0 || !payload.is_multiple_of(SEGMENT) || payload / SEGMENT > MAX_SEGMENTS {
        return Err(Malformed::Error);
    }
    let mut bytes = vec![0; index(payload)];
    chain.read(memory, HEADER, &mut bytes).map_err(|_| Malformed::Error)?;
    bytes
        .chunks(16)
        .map(|s| {
            let (sector, count, given) = (get_le(&s[0..8]), get_le(&s[8..12]), get_le(&s[12..16]));
            if given & !flags != 0 {
                return Err(Malformed::Unsupported);
            }
            let at = sector.checked_mul(SECTOR).ok_or(Malformed::Error)?;
            let len = count * SECTOR;
            let fits = count <= most
                && at.is_multiple_of(disk.block)
                && len.is_multiple_of(disk.block)
                && at.checked_add(len).is_some_and(|end| end <= disk.len);
            if fits {
                Ok(Segment { at, len, unmap: given & 1 != 0 })
            } else {
                Err(Malformed::Error)
            }
        })
        .collect()
}
