//! Tests of the format.

mod bundle;
mod hostile;
mod model;

use super::ParallelsDriver;
use super::layout::{Header, MAGIC_OLD};
use crate::format::testing::create;
use zerocopy::{FromBytes, IntoBytes};

/// Changes the header of an image.
pub(super) fn with_header(mut bytes: Vec<u8>, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::read_from_bytes(&bytes[..64]).unwrap();
    change(&mut header);
    bytes[..64].copy_from_slice(header.as_bytes());
    bytes
}

/// An empty image with clusters of so many bytes.
pub(super) fn clusters(size: u64, cluster: &str) -> Vec<u8> {
    create(&ParallelsDriver, size, &[("cluster_size", cluster)]).unwrap()
}

/// The same with the old magic: entries count sectors, and data begin right behind the table.
pub(super) fn old(size: u64, cluster: &str) -> Vec<u8> {
    let bytes = with_header(clusters(size, cluster), |h| {
        h.magic = *MAGIC_OLD;
        h.data.set(0);
    });
    let entries =
        usize::try_from(Header::read_from_bytes(&bytes[..64]).unwrap().entries.get()).unwrap();
    bytes[..(64 + entries * 4).next_multiple_of(512)].to_vec()
}
