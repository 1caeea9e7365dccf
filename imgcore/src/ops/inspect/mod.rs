//! `inspect`: what is on a disk, and whether it will boot under KVM.
//!
//! Partition table, volumes, file systems and operating systems are read by [`crate::guest`]; here they
//! become a report and a [`Verdict`]. Nothing is mounted, run or written.

pub mod browse;
mod linux;
mod report;
mod verdict;
mod windows;

pub use linux::{LinuxReport, Mount};
pub use report::{PartitionReport, TableReport, VolumeReport};
pub use verdict::{Bus, BusAnswer, Firmware, Level, Outcome, Reason, Starts, Verdict};
pub use windows::WindowsReport;

use std::sync::Arc;

use serde::Serialize;

use super::{ImageArg, Job};
use crate::Result;
use crate::graph::Node;
use crate::graph::open::Purpose;
use crate::guest::GuestDisk;
use crate::guest::boot::{self, Boot};
use crate::guest::files::Budget;
use crate::guest::parts::{Layout, SectorSize};
use crate::guest::system::Volumes;

/// What is on a disk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InspectReport {
    /// The image, as it was named.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// The partition table.
    pub partition_table: TableReport,
    /// Its entries.
    pub partitions: Vec<PartitionReport>,
    /// Partitions and logical volumes, or the whole disk, with what they hold.
    pub volumes: Vec<VolumeReport>,
    /// What starts the disk.
    pub boot: Boot,
    /// Installed systems.
    pub operating_systems: Vec<SystemReport>,
    /// The answer.
    pub verdict: Verdict,
}

/// An installed system.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum SystemReport {
    /// Linux.
    Linux(Box<LinuxReport>),
    /// Windows.
    Windows(Box<WindowsReport>),
}

/// Inspects a disk.
///
/// # Errors
/// When the image cannot be opened or its partition table cannot be read.
pub fn inspect(image: &ImageArg, job: &Job<'_>) -> Result<InspectReport> {
    let mut how = image.options(job);
    how.purpose = Purpose::Source;
    let node = image.open(job, &how)?;
    let budget = Budget::of_disk(node.virtual_size());
    inspect_node(node, &budget)
}

/// Inspects a disk that is open, reading no more than the budget allows.
pub(crate) fn inspect_node(node: Arc<Node>, budget: &Budget) -> Result<InspectReport> {
    let (format, virtual_size) = (node.image().format_name().to_owned(), node.virtual_size());
    let filename = node.name().to_owned();
    let disk = GuestDisk::new(node);
    let layout = Layout::read(&disk, SectorSize::Detect)?;
    let volumes = Volumes::open(&layout, &disk, budget);
    let boot = boot::look(&disk, &layout, &volumes);
    let mut systems = Vec::new();
    let mut opinion = None;
    for root in volumes.linux() {
        let report = linux::report(&root, &volumes);
        let said = linux::opinion(&report, &root, &volumes);
        opinion.get_or_insert(said);
        systems.push(SystemReport::Linux(Box::new(report)));
    }
    let mut is_windows = false;
    for report in windows::find(&volumes) {
        is_windows |= opinion.is_none();
        opinion.get_or_insert_with(|| windows::opinion(&report, &boot));
        systems.push(SystemReport::Windows(Box::new(report)));
    }
    let shown = verdict::Disk { name: &filename, format: &format, windows: is_windows };
    let mut verdict = verdict::conclude(opinion, &boot, &shown);
    verdict.reasons.extend(report::reasons(&layout, &volumes, systems.is_empty()));
    verdict.reasons.sort_by_key(|r| r.level);
    Ok(InspectReport {
        partition_table: report::table(&layout),
        partitions: report::partitions(&layout),
        volumes: report::volumes(&volumes),
        filename,
        format,
        virtual_size,
        boot,
        operating_systems: systems,
        verdict,
    })
}
