//! Tests of the format.

mod chain;
mod hostile;
mod model;

use super::QedDriver;
use super::layout::Header;
use crate::format::testing::create;
use zerocopy::{FromBytes, IntoBytes};

/// Changes the header of an image.
pub(super) fn with_header(mut bytes: Vec<u8>, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::read_from_bytes(&bytes[..64]).unwrap();
    change(&mut header);
    bytes[..64].copy_from_slice(header.as_bytes());
    bytes
}

/// An empty image with clusters of 4 KiB and tables of so many.
pub(super) fn small(size: u64, table_size: &str) -> Vec<u8> {
    create(&QedDriver, size, &[("cluster_size", "4096"), ("table_size", table_size)]).unwrap()
}
