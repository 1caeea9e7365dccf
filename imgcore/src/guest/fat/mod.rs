//! FAT12, FAT16 and FAT32 (Microsoft, *FAT: General Overview of On-Disk Format*, version 1.03; ECMA-107).
//!
//! [`layout`] reads the boot sector and entries of the file allocation table; [`files`] reads files and folders,
//! with long names; [`free`] finds the clusters whose entry is zero.

mod files;
mod free;
mod layout;

pub(super) use files::{Fat, probe};
pub(super) use free::FatFree;
