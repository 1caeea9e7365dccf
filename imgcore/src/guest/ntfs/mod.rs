//! NTFS 3.x, as the Linux-NTFS project documents it ("NTFS Documentation", Russon and Fledel).
//!
//! [`layout`] reads the boot sector, [`record`] file records and their attributes, [`runs`] where an attribute's
//! clusters are; [`stream`] reads an attribute's data (packed ones with [`unpack`]); [`table`] is the master file
//! table. On these stand [`files`], which reads files and folders, and [`free`], which compares `$Bitmap` with
//! what every file claims.

mod files;
mod free;
mod layout;
mod record;
mod runs;
mod stream;
mod table;
mod unpack;

pub(super) use files::{Ntfs, probe};
pub(super) use free::NtfsFree;
#[cfg(test)]
pub(super) use free::first_cluster;
