//! Tests of the format.

mod chain;
mod hostile;
mod model;

use super::QcowDriver;
use super::layout::Header;
use crate::format::testing::create;
use zerocopy::{FromBytes, IntoBytes};

/// Changes the header of an image.
pub(super) fn with_header(mut bytes: Vec<u8>, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::read_from_bytes(&bytes[..48]).unwrap();
    change(&mut header);
    bytes[..48].copy_from_slice(header.as_bytes());
    bytes
}

/// An empty image with clusters and tables of other sizes.
pub(super) fn shaped(size: u64, cluster_bits: u8, l2_bits: u8) -> Vec<u8> {
    let bytes = create(&QcowDriver, size, &[]).unwrap();
    let mut bytes = with_header(bytes, |h| {
        h.cluster_bits = cluster_bits;
        h.l2_bits = l2_bits;
    });
    let entries = size.div_ceil(1 << (cluster_bits + l2_bits));
    bytes.resize(48 + usize::try_from(entries).unwrap() * 8, 0);
    bytes
}
