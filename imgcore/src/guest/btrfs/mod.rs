//! btrfs on one device (*On-disk Format*, btrfs.readthedocs.io). All numbers are little endian.
//!
//! Everything is found by keys in trees of nodes; the nodes' addresses are those of the file system and are
//! turned into places on the disk by chunks. [`layout`] reads the superblock and chunks, [`tree`] walks trees;
//! [`files`] and [`data`] read files, [`free`] goes through the tree of extents.

mod data;
mod files;
mod free;
mod layout;
mod tree;

pub(super) use files::{Btrfs, probe};
pub(super) use free::BtrfsFree;
