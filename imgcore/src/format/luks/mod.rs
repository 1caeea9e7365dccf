//! luks: a whole disk encrypted behind a LUKS header (raw otherwise).
//!
//! Specification: "LUKS1 On-Disk Format Specification" 1.2.3, "LUKS2 On-Disk Format Specification" 1.1.4.
//! LUKS1 is read and written; LUKS2 is read, as cryptsetup makes it. The header itself, its key slots
//! and their order of writes are [`super::crypt`]'s; here is the disk behind it.
//!
//! # Structure
//!
//! The encrypted disk begins at the payload offset and ends with the file; sector by sector it is the
//! guest's disk. With a detached header (`header.filename=`) it is a file by itself. Guest data go through
//! [`crate::storage::CryptStorage`], which is storage 1; storage 0 is the file. There are no tables, so
//! there is no order of writes beyond that of the key slots. A hole of the file decrypts to noise, so
//! nothing of a LUKS disk is ever known to be zero.
//!
//! # Sizes
//!
//! The guest's disk is as long as the file behind the header, rounded up to sectors; resizing changes the
//! length of the file. New space is filled with encrypted zeroes, so that it reads as zeroes (QEMU leaves
//! noise there).

mod create;
mod image;
#[cfg(test)]
mod tests;

pub use image::LuksImage;

use super::crypt::{AMEND_OPTIONS, Luks1};
use super::{
    CreateContext, CreateOptions, Driver, Image, MeasureSource, Measurement, OpenContext,
    OptionSpec,
};
use crate::Result;

/// The driver.
pub struct LuksDriver;

impl Driver for LuksDriver {
    fn name(&self) -> &'static str {
        "luks"
    }

    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        if matches!(Luks1::version(head), Some(1 | 2)) { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        LuksImage::open(&cx).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        create::OPTIONS
    }

    fn amend_options(&self) -> &'static [OptionSpec] {
        AMEND_OPTIONS
    }

    fn create(&self, cx: &CreateContext<'_>) -> Result<()> {
        create::create(cx)
    }

    fn measure(&self, options: &CreateOptions, source: MeasureSource<'_>) -> Result<Measurement> {
        create::measure(options, source.virtual_size)
    }
}
