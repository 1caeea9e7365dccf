//! ext2, ext3 and ext4 (the kernel's `Documentation/filesystems/ext4/`, "ext4 Data Structures and
//! Algorithms").
//!
//! [`layout`] reads the superblock and says where group descriptors are; [`files`] reads files and folders,
//! [`map`] finds their blocks, [`journal`] plays back what is newer there; [`free`] reads the bitmaps.

mod files;
mod free;
mod journal;
mod layout;
mod map;

pub(super) use files::{Ext, probe};
pub(super) use free::ExtFree;
