//! Tests of the format.

mod chain;
mod hostile;
mod model;

use super::VpcDriver;
use super::layout::{Footer, Header};
use crate::format::testing::create;
use zerocopy::{FromBytes, IntoBytes};

/// Changes the copy of the footer and the header of an image, and computes their checksums.
pub(super) fn changed(
    mut bytes: Vec<u8>,
    change: impl FnOnce(&mut Footer, &mut Header),
) -> Vec<u8> {
    let mut footer = Footer::read_from_bytes(&bytes[..512]).unwrap();
    let mut header = Header::read_from_bytes(&bytes[512..1536]).unwrap();
    change(&mut footer, &mut header);
    footer.seal();
    header.seal();
    bytes[..512].copy_from_slice(footer.as_bytes());
    bytes[512..1536].copy_from_slice(header.as_bytes());
    bytes
}

/// An image of `blocks` small blocks of 64 KiB.
pub(super) fn small_blocks(blocks: u64) -> Vec<u8> {
    let bytes = create(&VpcDriver, blocks << 21, &[("force_size", "on")]).unwrap();
    let mut bytes = changed(bytes, |f, h| {
        h.block_size.set(65536);
        f.current_size.set(blocks << 16);
    });
    let footer = bytes[..512].to_vec();
    let end = bytes.len() - 512;
    bytes[end..].copy_from_slice(&footer);
    bytes
}
