//! `dd`: a part of an image into a new one, in blocks.
//!
//! As in qemu-img, `count` is counted from the beginning of the input (blocks skipped are part of
//! it), and everything is stored, zeroes too.

use super::convert::Overwrite;
use super::create::{find_driver, set_size};
use super::{ImageArg, Job};
use crate::format::{CreateOptions, Driver, check_cancelled};
use crate::graph::create::{NewImage, create};
use crate::graph::open::{OpenOptions, OpenRequest, Purpose, open};
use crate::graph::output::{Durability, Output, Place};
use crate::num::{len_u64, small};
use crate::opts::filename::{self, Filename};
use crate::storage::CacheMode;
use crate::{Error, Result};

/// Bytes copied at a time; the block size decides only where the copy begins and ends.
const PIECE: usize = 1 << 20;

/// What to do.
#[derive(Clone, Debug)]
pub struct DdOptions {
    /// `if=`
    pub input: ImageArg,
    /// `of=`
    pub output: String,
    /// `-O`
    pub output_driver: String,
    /// `bs=`
    pub block_size: u64,
    /// `count=`, in blocks.
    pub count: Option<u64>,
    /// `skip=`, in blocks of the input.
    pub skip: u64,
    /// Whether a file that exists may be replaced.
    pub overwrite: Overwrite,
}

impl DdOptions {
    /// From `input` to `output`, raw, blocks of 512 bytes.
    pub fn new(input: ImageArg, output: impl Into<String>) -> Self {
        DdOptions {
            input,
            output: output.into(),
            output_driver: "raw".to_owned(),
            block_size: 512,
            count: None,
            skip: 0,
            overwrite: Overwrite::Allow,
        }
    }
}

/// Copies.
pub fn dd(options: &DdOptions, job: &Job<'_>) -> Result<()> {
    let driver = find_driver(&options.output_driver)?;
    let export = export(options, driver)?;
    let place = match &export {
        Some(_) => None,
        None => Some(
            Place::parse(&options.output, "written")
                .map_err(|e| e.context(options.output.clone()))?,
        ),
    };
    let mut how = options.input.options(job);
    how.purpose = Purpose::Source;
    let input = options.input.open(job, &how)?;
    let bytes = |blocks: u64| blocks.checked_mul(options.block_size);
    let end = match options.count.and_then(bytes) {
        Some(limit) => limit.min(input.virtual_size()),
        None => input.virtual_size(),
    };
    let start = bytes(options.skip).filter(|&s| s <= end);
    if start.is_none() {
        job.watcher.note(&format!("error: {}: cannot skip to specified offset", input.name()));
    }
    let start = start.unwrap_or(end);
    let size = end - start;
    let failed =
        |e: Error| e.context(format!("{}: error while creating output image", options.output));
    let mut output = None;
    let target = match (export, place) {
        (Some(request), _) => {
            let target = open(&request, &OpenOptions::default().writable())?;
            if target.virtual_size() < size {
                return Err(Error::invalid(format!(
                    "the output has {} bytes, {size} are needed",
                    target.virtual_size()
                ))
                .context(options.output.clone()));
            }
            target
        }
        (None, Some(place)) => {
            if place.name().is_empty() {
                return Err(failed(Error::errno(libc::ENOENT).context("Could not create ''")));
            }
            let new = Output::at(&place, CacheMode::Writeback, options.overwrite);
            if place.is_here() {
                crate::graph::output_space::ensure_space(&options.output, &new.folder(), size)?;
            }
            fill_output(&new, driver, size).map_err(failed)?;
            let how =
                OpenOptions { purpose: Purpose::Scratch, ..OpenOptions::default() }.writable();
            let target = new.open_image(driver, &how, &[])?;
            output = Some(new);
            target
        }
        (None, None) => return Err(Error::invalid("no output was named")),
    };
    let mut buf = vec![0u8; PIECE];
    let mut done = 0;
    while done < size {
        check_cancelled(job.watcher)?;
        let part = &mut buf[..small(size - done).min(PIECE)];
        input
            .read(start + done, part)
            .map_err(|e| e.context("error while reading from input image file"))?;
        target
            .write(done, part)
            .map_err(|e| e.context("error while writing to output image file"))?;
        done += len_u64(part.len());
        job.watcher.progress(done, size);
    }
    target.close()?;
    match output {
        Some(output) => {
            drop(target);
            output.commit(Durability::Synced)
        }
        None => target.image().storages().iter().try_for_each(|s| s.flush()),
    }
}

/// An export is there already, and nothing can be created in it: its bytes are written.
fn export(options: &DdOptions, driver: &dyn Driver) -> Result<Option<OpenRequest>> {
    let Filename::Protocol { driver: "nbd", .. } = filename::parse(&options.output)? else {
        return Ok(None);
    };
    if driver.name() != "raw" {
        return Err(Error::unsupported("An NBD export can only be written as raw")
            .context(options.output.clone())
            .hint("create the image in a file and copy that into the export"));
    }
    OpenRequest::parse(&options.output, Some("raw")).map(Some)
}

/// Makes an empty image of this size.
fn fill_output(output: &Output, driver: &'static dyn Driver, size: u64) -> Result<()> {
    let mut wishes = CreateOptions::default();
    set_size(&mut wishes, size);
    driver.resolve_options(&mut wishes, size)?;
    let new = NewImage { driver, size, options: &wishes, backing: None, backing_image: None };
    create(&new, output)
}
