//! XFS, versions 4 and 5 (*XFS Algorithms & Data Structures*, 3rd edition). All numbers are big endian.
//!
//! [`layout`] reads the superblock; [`files`] reads inodes and files, [`fork`] finds their blocks, [`folder`]
//! reads names; [`free`] walks the trees of free extents, behind [`log`], which says whether the file system was
//! left cleanly.

mod files;
mod folder;
mod fork;
mod free;
mod layout;
mod log;

pub(super) use files::{Xfs, probe};
pub(super) use free::XfsFree;
