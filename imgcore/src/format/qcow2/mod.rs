//! qcow2, versions 2 and 3 (QEMU `docs/interop/qcow2.rst`).
//!
//! # Structure
//!
//! `layout` declares the on-disk structs, `header` checks them; `tables` holds what an open image keeps
//! in memory; `map` answers where guest bytes are; `write` allocates and links; `flush` brings tables to
//! disk; `refcount` counts references; `compress` encodes clusters. Snapshots, bitmaps, checking, resizing
//! and amending have a file each.
//!
//! # Order of writes
//!
//! What a crash may leave is decided by what reaches the disk first. A flush does, with a barrier
//! (`fdatasync`) wherever `|` stands:
//!
//! 1. refcount blocks with all new references `|` the refcount table, if a block is new `|` the header,
//!    if the table moved
//! 2. `|` (this also covers guest data, also those in an external data file)
//! 3. L2 tables `|` the L1 table, if an L2 table is new
//! 4. `|`
//! 5. references that the old mappings held are dropped in memory; they reach the disk with a later
//!    step 1.
//!
//! So a cluster on disk always has at least as many references as mappings point to it, and is filled
//! before it is mapped: a crash at any point costs leaked clusters at worst. A cluster that became free
//! is not used again before step 5 of the flush that unmapped it. With lazy refcounts the dirty bit is
//! set before the first allocation and step 1 may be lost; opening for writing rebuilds the counts.
//!
//! Snapshots, bitmaps, amending and repairing follow the same rule with whole tables: what they add is
//! written beside the old, one write of the header switches, then the old is dropped. Each of these files
//! states its own order; `crash_test` replays them all.
//!
//! # Encryption
//!
//! `crypt`: guest data are encrypted on their way to the file, before they are linked; the order of writes
//! does not change. The LUKS header's key slots have an order of their own ([`crate::format`]'s `crypt`).
//!
//! # Locks
//!
//! One `RwLock` around [`tables::Tables`]; looking up takes it shared when the table slice is in memory.
//! It is held while tables are read or written, never while guest data are. Whoever changes tables takes
//! the mutex `changes` before it (`changing`), so that a flush can let others look up while it waits for the
//! disk, and nobody change.

mod amend;
mod amend_zero;
mod bitmap;
mod bitmap_bits;
mod bitmap_dir;
pub mod cache;
mod changing;
mod check;
mod check_compare;
mod check_copied;
mod check_counts;
mod check_refs;
mod compress;
#[cfg(test)]
mod crash_test;
mod create;
mod crypt;
mod flush;
#[cfg(test)]
mod flush_test;
pub mod header;
mod image;
pub mod layout;
mod map;
mod measure;
mod open;
pub mod refcount;
mod release;
mod repair;
mod resize;
mod snapshot;
mod snapshot_refs;
mod snapshot_table;
pub mod tables;
mod write;

pub use image::Qcow2Image;

use super::{
    CreateContext, CreateOptions, Driver, Image, MeasureSource, Measurement, OpenContext,
    OptionSpec,
};
use crate::Result;

/// The driver.
pub struct Qcow2Driver;

impl Driver for Qcow2Driver {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        // Magic and a version of at least 2; version 1 is another format.
        let version =
            head.get(4..8).map_or(0, |v| v.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)));
        if head.starts_with(&layout::MAGIC.to_be_bytes()) && version >= 2 { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        open::open(&cx).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        create::OPTIONS
    }

    fn amend_options(&self) -> &'static [OptionSpec] {
        amend::OPTIONS
    }

    fn supports_backing(&self) -> bool {
        true
    }

    fn resolve_options(&self, options: &mut CreateOptions, size: u64) -> Result<()> {
        create::resolve(options, size)
    }

    fn create(&self, cx: &CreateContext<'_>) -> Result<()> {
        create::create(cx)
    }

    fn measure(
        &self,
        options: &CreateOptions,
        mut source: MeasureSource<'_>,
    ) -> Result<Measurement> {
        measure::measure(options, &mut source)
    }
}
