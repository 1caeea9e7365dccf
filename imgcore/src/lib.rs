//! Disk images.

pub mod opts;
pub mod storage;
