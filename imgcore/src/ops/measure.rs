//! `measure`: how large a new image would be.

use super::create::{find_driver, parse_options, set_size};
use super::source::{Origin, Walk};
use super::{ImageArg, Job};
use crate::format::{
    Image, MeasureSource, Measurement, RunSink, SnapshotSelector, check_cancelled,
};
use crate::graph::Node;
use crate::graph::open::Purpose;
use crate::num::round_up;
use crate::{Error, Result};

/// What is to be converted.
#[derive(Clone, Debug)]
pub enum MeasureFrom {
    /// A disk full of zeroes of so many bytes.
    Size(u64),
    /// An image.
    Image(Box<ImageArg>),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// From what.
    pub from: MeasureFrom,
    /// `-l`.
    pub snapshot: Option<SnapshotSelector>,
    /// `-O`.
    pub driver: String,
    /// `-o`, as name and text.
    pub options: Vec<(String, String)>,
}

/// Measures.
pub fn measure(options: &MeasureOptions, job: &Job<'_>) -> Result<Measurement> {
    let node = match &options.from {
        MeasureFrom::Size(_) => None,
        MeasureFrom::Image(image) => {
            let mut how = image.options(job);
            how.snapshot.clone_from(&options.snapshot);
            how.purpose = Purpose::Source;
            Some(image.open(job, &how)?)
        }
    };
    let driver = find_driver(&options.driver)?;
    let mut create = parse_options(driver, &options.options).map_err(|e| {
        // Beside the advice that the option itself comes with.
        let own = e.hints().into_iter().map(str::to_owned);
        let all: Vec<String> = own.chain([invalid_options(driver.name())]).collect();
        e.hint(all.join("\n"))
    })?;
    let size = match (&node, &options.from) {
        (Some(node), _) => node.virtual_size(),
        (None, MeasureFrom::Size(size)) => *size,
        (None, MeasureFrom::Image(_)) => 0,
    };
    set_size(&mut create, size);
    driver.resolve_options(&mut create, size)?;
    let bitmaps = match &node {
        Some(node) => bitmaps_of(node.image())?,
        None => None,
    };
    let mut runs = |sink: RunSink<'_>| match &node {
        Some(node) => data_runs(node, job, sink),
        None => Ok(()),
    };
    let source = MeasureSource {
        virtual_size: size,
        data_runs: &mut runs,
        from_image: node.is_some(),
        bitmaps,
    };
    driver.measure(&create, source)
}

/// The advice that goes with refused `-o` options.
pub fn invalid_options(driver: &str) -> String {
    format!("Invalid options for file format '{driver}'")
}

/// Granularity and length of the name of each bitmap that can be copied.
fn bitmaps_of(image: &dyn Image) -> Result<Option<Vec<(u64, usize)>>> {
    let Some(store) = image.bitmaps() else { return Ok(None) };
    let list = store.list()?;
    Ok(Some(list.iter().map(|b| (b.granularity, b.name.len())).collect()))
}

fn data_runs(node: &Node, job: &Job<'_>, sink: RunSink<'_>) -> Result<()> {
    let walk = Walk::chain(node);
    let size = round_up(node.virtual_size(), 512);
    let mut at = 0;
    while at < size {
        check_cancelled(job.watcher)?;
        let run = walk
            .run(at, size - at)
            .map_err(|e: Error| e.context("Unable to get block status").at_offset(at))?;
        if matches!(run.origin, Origin::Plain(..) | Origin::Encoded) {
            sink(at, run.len)?;
        }
        at += run.len;
    }
    Ok(())
}
