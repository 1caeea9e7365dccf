//! `resize --grow-partition`: a larger disk, and a larger partition on it.
//!
//! The image grows, then the partition table is changed ([`crate::guest::parts::grow`] says in which order
//! and why a crash leaves a valid table), and the report says what is to be done in the guest so that the file
//! system follows ([`steps`]). Everything is checked before anything is changed; a dry run ends there.

pub mod steps;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::resize::{SizeChange, hide_backing, target_size};
use super::{ImageArg, Job};
use crate::graph::Node;
use crate::graph::open::{Depth, Purpose};
use crate::guest::parts::grow::{self, Choice, GrowPlan};
use crate::guest::parts::{Layout, SectorSize};
use crate::guest::{GuestDisk, Volume};
use crate::storage::Preallocation;
use crate::{Error, Result};
use steps::Step;

/// Whether anything is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Run {
    /// Yes.
    #[default]
    Real,
    /// No: the report says what would be done.
    Dry,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct GrowOptions {
    /// The image.
    pub image: ImageArg,
    /// The disk's new size; `None` leaves it (the disk has grown before).
    pub change: Option<SizeChange>,
    /// How new space is made.
    pub preallocation: Preallocation,
    /// Which partition.
    pub partition: Choice,
    /// Whether anything is changed.
    pub run: Run,
}

/// A partition before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Grown {
    /// Its number.
    pub number: u32,
    /// Its type, as the table has it.
    #[serde(rename = "type")]
    pub kind: String,
    /// First byte.
    pub start: u64,
    /// Bytes before.
    pub old_length: u64,
    /// Bytes after.
    pub new_length: u64,
}

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GrowReport {
    /// Bytes of the disk before.
    pub old_size: u64,
    /// Bytes of the disk after.
    pub new_size: u64,
    /// `gpt` or `mbr`.
    pub partition_table: String,
    /// The partition.
    pub partition: Grown,
    /// The extended partition around it, where that grows, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Grown>,
    /// What is written, in this order.
    pub writes: Vec<Write>,
    /// What is to be done in the guest afterwards.
    pub steps: Vec<Step>,
    /// What to know.
    pub notes: Vec<String>,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// A change of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Write {
    /// Where on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub what: String,
}

/// Grows.
///
/// # Errors
/// When the image cannot be resized, or the partition cannot be enlarged: nothing is changed then.
pub fn grow(options: &GrowOptions, job: &Job<'_>) -> Result<GrowReport> {
    let mut how = options.image.options(job);
    match options.run {
        Run::Real => {
            how = how.writable();
            how.depth = Depth::Chain;
        }
        Run::Dry => how.purpose = Purpose::Source,
    }
    let node = options.image.open(job, &how)?;
    let old_size = node.virtual_size();
    let new_size = match options.change {
        Some(change) => target_size(old_size, change)?,
        None => old_size,
    };
    if new_size < old_size {
        return Err(Error::invalid(
            "a partition cannot be enlarged while the disk is made smaller",
        ));
    }
    if new_size == old_size && options.preallocation != Preallocation::Off {
        return Err(Error::invalid("Preallocation can only be used for growing images"));
    }
    let disk = GuestDisk::new(Arc::clone(&node));
    let layout = Layout::read(&disk, SectorSize::Detect)?;
    let plan = grow::plan(&disk, &layout, new_size, options.partition)?;
    let volume = Volume::partition(&disk, &plan.partition)?;
    let steps = steps::after(&volume, &plan, &layout)?;
    if options.run == Run::Real {
        carry_out(&node, &plan, options, (old_size, new_size))?;
    }
    let grown = |p: &crate::guest::parts::Partition, new_length: u64| Grown {
        number: p.number,
        kind: p.kind.to_string(),
        start: p.start,
        old_length: p.length,
        new_length,
    };
    Ok(GrowReport {
        old_size,
        new_size,
        partition_table: layout.table.name().to_owned(),
        partition: grown(&plan.partition, plan.new_length),
        container: plan.container.as_ref().map(|(p, length)| grown(p, *length)),
        writes: plan
            .changes
            .iter()
            .map(|c| Write {
                offset: c.at,
                length: crate::num::len_u64(c.bytes.len()),
                what: c.what.to_owned(),
            })
            .collect(),
        steps,
        notes: layout.warnings.iter().chain(&plan.notes).cloned().collect(),
        dry_run: options.run == Run::Dry,
    })
}

/// Resizes the image and writes the table, each change on disk before the next.
fn carry_out(
    node: &Node,
    plan: &GrowPlan,
    options: &GrowOptions,
    (old_size, new_size): (u64, u64),
) -> Result<()> {
    let done = (|| {
        if new_size > old_size {
            node.resize(new_size, options.preallocation)?;
            hide_backing(node, old_size, new_size)?;
            node.flush()?;
        }
        for change in &plan.changes {
            node.write(change.at, &change.bytes)?;
            node.flush()?;
        }
        Ok(())
    })();
    let closed = node.close();
    done.and(closed)
}
