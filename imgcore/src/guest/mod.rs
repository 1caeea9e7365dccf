//! What the guest keeps on its disk, read from its own metadata: nothing is mounted, nothing is run.
//!
//! A floor between [`crate::graph`] and [`crate::ops`]. [`GuestDisk`] is the guest's disk with checked
//! reads; [`parts::Layout`] finds partitions and logical volumes on it; each of them is a [`Volume`],
//! whose bytes are read through its mapping and whose ranges can be told as ranges of the disk.
//! [`content`] says what a volume holds, [`free`] which of its bytes hold nothing, [`files`] reads files
//! and folders of it; both with what `ext`, `xfs`, `btrfs`, `ntfs`, `fat`, `exfat`, `iso` and `swap` know of one
//! kind of volume each.
//!
//! ```no_run
//! # fn main() -> imgcore::Result<()> {
//! # let node = imgcore::graph::open::open(
//! #     &imgcore::graph::open::OpenRequest::file("a.qcow2"), &Default::default())?;
//! use imgcore::guest::{GuestDisk, content, parts::{Layout, SectorSize}};
//! let disk = GuestDisk::new(node);
//! let layout = Layout::read(&disk, SectorSize::Detect)?;
//! for volume in layout.volumes(&disk) {
//!     let found = content::probe(&volume)?;
//!     let mut boot = [0; 512];
//!     volume.read_at(0, &mut boot)?;
//! }
//! # Ok(()) }
//! ```
//!
//! Everything read here was written by a guest and is hostile: every number is checked before use, lists
//! and texts are bounded, chains cannot loop, and damage ends in an [`crate::Error`] or in a warning that
//! says where. Offsets and lengths are bytes unless they are said to be sectors.

pub mod boot;
mod btrfs;
pub mod content;
pub mod disk;
mod exfat;
mod ext;
mod fat;
mod fields;
pub mod files;
pub mod free;
mod iso;
pub mod linux;
mod ntfs;
pub mod parts;
mod swap;
pub mod system;
#[cfg(test)]
mod testing;
mod volume;
pub mod windows;
mod xfs;

pub use disk::{GuestDisk, Source};
pub use volume::{DiskRange, Origin, Segment, Volume};
