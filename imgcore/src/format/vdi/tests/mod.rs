//! Tests of the format.

mod chain;
mod hostile;
mod model;

use super::VdiDriver;
use super::layout::Header;
use crate::format::testing::create;
use zerocopy::{FromBytes, IntoBytes};

/// Changes the header of an image.
pub(super) fn with_header(mut bytes: Vec<u8>, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::read_from_bytes(&bytes[..512]).unwrap();
    change(&mut header);
    bytes[..512].copy_from_slice(header.as_bytes());
    bytes
}

/// An image of `blocks` small blocks of 64 KiB.
pub(super) fn small_blocks(blocks: u32, options: &[(&str, &str)], extra: u32) -> Vec<u8> {
    let bytes = create(&VdiDriver, u64::from(blocks) << 20, options).unwrap();
    let mut bytes = with_header(bytes, |h| {
        h.block_size.set(65536);
        h.block_extra.set(extra);
        h.disk_size.set(u64::from(blocks) * 65536);
    });
    // A static image reserved large blocks.
    bytes.truncate(1024 + usize::try_from(u64::from(blocks) * (65536 + u64::from(extra))).unwrap());
    bytes
}
