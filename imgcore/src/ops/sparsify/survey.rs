//! What is free, and what the image stores of it.

use std::sync::Arc;

use super::super::{ImageArg, Job};
use super::selection::{Selection, Unpartitioned};
use super::{SparsifyReport, VolumeReport};
use crate::format::{Mapping, check_cancelled};
use crate::graph::Node;
use crate::graph::open::Purpose;
use crate::guest::content::{self, Content};
use crate::guest::free::{self, FreeMap, Summary};
use crate::guest::parts::lvm::{Group, LogicalVolume};
use crate::guest::parts::{Layout, SectorSize, Table};
use crate::guest::{DiskRange, GuestDisk, Volume};
use crate::num::{GuestOffset, round_down, round_up};
use crate::storage::HostKind;
use crate::{Error, ErrorKind, Result};

/// What to look at.
#[derive(Clone, Debug)]
pub struct SurveyOptions {
    /// The image, read only.
    pub image: ImageArg,
    /// Which volumes.
    pub selection: Selection,
}

/// Says what each volume holds, what is free and what could be saved. Changes nothing.
///
/// # Errors
/// When the image cannot be read, its layout is ambiguous, or the selection names something unknown.
/// Volumes that cannot be trusted are no error: their reports say why they are skipped.
pub fn survey(options: &SurveyOptions, job: &Job<'_>) -> Result<SparsifyReport> {
    let mut how = options.image.options(job);
    how.purpose = Purpose::Source;
    let node = options.image.open(job, &how)?;
    // Units are those of the run that this one tells about.
    node.image().begin_release();
    let mut plan = Plan::make(&node, &options.selection, job)?;
    plan.measure(job)?;
    Ok(plan.report)
}

/// [`survey`] of a disk that is open, which tells each free range.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn survey_node(
    node: &Arc<Node>,
    job: &Job<'_>,
    tell: &mut dyn FnMut(DiskRange),
) -> Result<SparsifyReport> {
    let plan = Plan::make(node, &Selection::default(), job)?;
    plan.each(job, &mut |range| {
        tell(range);
        Ok(())
    })?;
    Ok(plan.report)
}

/// Where free ranges come from.
enum Free {
    /// A file system.
    Map(Volume, Box<dyn FreeMap>),
    /// Known already.
    Ranges(Vec<DiskRange>),
}

/// What can be freed: everything in it was read and checked once.
pub(super) struct Plan {
    node: Arc<Node>,
    pub report: SparsifyReport,
    /// For the volume with the same index.
    sources: Vec<Option<Free>>,
}

impl Plan {
    /// Reads all metadata.
    pub fn make(node: &Arc<Node>, selection: &Selection, job: &Job<'_>) -> Result<Plan> {
        let disk = GuestDisk::new(Arc::clone(node));
        let layout = Layout::read(&disk, SectorSize::Detect)?;
        if let Some(why) = &layout.ambiguous {
            return Err(Error::unsupported(format!(
                "what is free on '{}' is not clear: {why}",
                node.name()
            ))
            .hint("remove what is left over from an earlier use: wipefs, sfdisk --delete"));
        }
        let report = SparsifyReport {
            filename: node.name().to_owned(),
            format: node.image().format_name().to_owned(),
            virtual_size: node.virtual_size(),
            partition_table: layout.table.name().to_owned(),
            warnings: layout.warnings.clone(),
            ..SparsifyReport::default()
        };
        let mut plan = Plan { node: Arc::clone(node), report, sources: Vec::new() };
        selection.check(&layout.volumes(&disk))?;
        for volume in layout.carriers(&disk) {
            check_cancelled(job.watcher)?;
            plan.look(&volume, &layout, selection, job)?;
        }
        for group in &layout.groups {
            for logical in group.volumes.iter().filter(|l| l.visible) {
                check_cancelled(job.watcher)?;
                plan.look_at_logical(&disk, (group, logical), selection, job)?;
            }
        }
        if selection.unpartitioned == Unpartitioned::Free && layout.table != Table::None {
            plan.add_ranges("unpartitioned", layout.unpartitioned(&disk));
        }
        Ok(plan)
    }

    pub fn reports(&self) -> &[VolumeReport] {
        &self.report.volumes
    }

    fn add(&mut self, mut report: VolumeReport, source: Result<(Free, u64)>) -> Result<()> {
        let source = match source {
            Ok((source, free)) => {
                report.free = free;
                self.report.free += free;
                Some(source)
            }
            // What is wrong with the image is no matter of one volume.
            Err(e) if matches!(e.kind(), ErrorKind::Io(_) | ErrorKind::Cancelled) => return Err(e),
            Err(e) => {
                report.remedy = e.hints().first().map(|h| (*h).to_owned());
                report.skipped = Some(sentence(&e));
                None
            }
        };
        self.report.volumes.push(report);
        self.sources.push(source);
        Ok(())
    }

    fn add_ranges(&mut self, name: &str, ranges: Vec<DiskRange>) {
        let size = ranges.iter().map(|r| r.len).sum();
        let report =
            VolumeReport { name: name.to_owned(), size, free: size, ..VolumeReport::default() };
        self.report.free += size;
        self.report.volumes.push(report);
        self.sources.push(Some(Free::Ranges(ranges)));
    }

    fn look(
        &mut self,
        volume: &Volume,
        layout: &Layout,
        selection: &Selection,
        job: &Job<'_>,
    ) -> Result<()> {
        let found = content::probe(volume)?;
        let name = volume.name();
        let mut report =
            VolumeReport { name: name.clone(), size: volume.len(), ..VolumeReport::default() };
        report.content = found.first().map(|c| c.name().to_owned());
        if selection.ignores(volume) {
            return self.add(report, Err(Error::unsupported("is ignored, as was asked for")));
        }
        if found == [Content::LvmPhysical] {
            report.content = Some("LVM2".to_owned());
            let source = unused_extents(&name, layout);
            return self.add(report, source);
        }
        let source = verified(volume, &found, &mut report, job);
        self.add(report, source)
    }

    fn look_at_logical(
        &mut self,
        disk: &GuestDisk,
        (group, logical): (&Group, &LogicalVolume),
        selection: &Selection,
        job: &Job<'_>,
    ) -> Result<()> {
        let mut report = VolumeReport {
            name: format!("{}/{}", group.name, logical.name),
            size: logical.length,
            ..VolumeReport::default()
        };
        let volume = match logical.open(disk, &group.name) {
            Ok(volume) => volume,
            Err(e) => return self.add(report, Err(e)),
        };
        let found = content::probe(&volume)?;
        report.content = found.first().map(|c| c.name().to_owned());
        if selection.ignores(&volume) {
            return self.add(report, Err(Error::unsupported("is ignored, as was asked for")));
        }
        if let Some(user) = &logical.used_by {
            let why = Error::unsupported(format!("is used by the logical volume {user}, too"))
                .hint("remove snapshots that are no longer needed: lvremove");
            return self.add(report, Err(why));
        }
        let source = verified(&volume, &found, &mut report, job);
        self.add(report, source)
    }

    /// Tells every free range of the disk, volume by volume.
    pub fn each(&self, job: &Job<'_>, tell: &mut dyn FnMut(DiskRange) -> Result<()>) -> Result<()> {
        for index in 0..self.sources.len() {
            self.each_of(index, job, tell)?;
        }
        Ok(())
    }

    /// The free ranges of one volume.
    pub fn each_of(
        &self,
        index: usize,
        job: &Job<'_>,
        tell: &mut dyn FnMut(DiskRange) -> Result<()>,
    ) -> Result<()> {
        match self.sources.get(index).and_then(Option::as_ref) {
            None => Ok(()),
            Some(Free::Ranges(ranges)) => ranges.iter().try_for_each(|r| tell(*r)),
            Some(Free::Map(volume, map)) => {
                let named = |e: Error| match e.kind() {
                    ErrorKind::Cancelled => e,
                    _ => e.context(volume.name()),
                };
                for range in free::ranges(&**map) {
                    check_cancelled(job.watcher)?;
                    let range = range.map_err(named)?;
                    volume.on_disk(range.at, range.len).try_for_each(&mut *tell)?;
                }
                Ok(())
            }
        }
    }

    /// Finds out what the image stores of the free ranges.
    pub fn measure(&mut self, job: &Job<'_>) -> Result<()> {
        let unit = unit(&self.node);
        let node = Arc::clone(&self.node);
        if has_snapshots(&node)? {
            self.report.warnings.push(
                "internal snapshots may share a part of what is savable: that would stay"
                    .to_owned(),
            );
        }
        for index in 0..self.sources.len() {
            let mut sum = Stored::default();
            self.each_of(index, job, &mut |range| {
                each_stored(&node, whole_units(range, unit, node.virtual_size()), &mut |_, s| {
                    sum.own += s.own;
                    sum.shared += s.shared;
                    Ok(())
                })
            })?;
            if let Some(report) = self.report.volumes.get_mut(index) {
                (report.savable, report.shared) = (sum.own, sum.shared);
                self.report.savable += sum.own;
            }
        }
        Ok(())
    }
}

/// The map of a volume, read once from beginning to end.
fn verified(
    volume: &Volume,
    found: &[Content],
    report: &mut VolumeReport,
    job: &Job<'_>,
) -> Result<(Free, u64)> {
    let map = free::open(volume, found)?;
    report.content = Some(map.kind().to_owned());
    report.block_size = Some(map.unit());
    let sum = Summary::of(&*map, &mut |_| check_cancelled(job.watcher))?;
    Ok((Free::Map(volume.clone(), map), sum.free))
}

/// The unused extents of the physical volume on a carrier.
fn unused_extents(carrier: &str, layout: &Layout) -> Result<(Free, u64)> {
    for group in &layout.groups {
        for pv in &group.physical {
            if pv.carrier.as_deref() == Some(carrier) {
                let ranges = free::unused_extents(group, pv)?;
                let free = ranges.iter().map(|r| r.len).sum();
                return Ok((Free::Ranges(ranges), free));
            }
        }
    }
    Err(Error::unsupported("is an LVM physical volume of which no metadata can be read")
        .hint("repair it in the guest: vgcfgrestore"))
}

/// What is wrong, to be read after the name of the volume.
fn sentence(error: &Error) -> String {
    let text = error.report();
    match error.kind() {
        ErrorKind::Corrupt => format!("is damaged: {text}"),
        // `the journal ...`: another subject.
        _ if text.starts_with("the ") || text.starts_with("Windows") => {
            format!("is not clean: {text}")
        }
        _ => text,
    }
}

/// Bytes in which the image can free: the format's unit, and no less than a block of the host.
pub(super) fn unit(node: &Node) -> u64 {
    let g = node.image().granularity();
    g.discard.or(g.zero).unwrap_or(1).max(4096)
}

/// The whole units in a range; the end of the disk ends a unit.
pub(super) fn whole_units(range: DiskRange, unit: u64, size: u64) -> DiskRange {
    let start = round_up(range.start, unit);
    let end = if range.end() >= size { size } else { round_down(range.end(), unit) };
    DiskRange { start, len: end.saturating_sub(start) }
}

/// Whether the image has internal snapshots.
pub(super) fn has_snapshots(node: &Node) -> Result<bool> {
    let list = node.image().snapshots().map(|s| s.list()).transpose()?;
    Ok(list.is_some_and(|l| !l.is_empty()))
}

/// Bytes that the top image stores.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stored {
    /// Its own.
    pub own: u64,
    /// Shared with a snapshot.
    pub shared: u64,
}

/// Calls `tell` for each part of a range that the top image stores.
pub(super) fn each_stored(
    node: &Node,
    range: DiskRange,
    tell: &mut dyn FnMut(DiskRange, Stored) -> Result<()>,
) -> Result<()> {
    let image = node.image();
    image.prepare_status()?;
    // What is open for reading is never written in place, shared or not.
    let told = node.writable();
    let (mut at, end) = (range.start, range.end());
    while at < end {
        let extent = image.map(GuestOffset(at), end - at)?;
        let mut len = extent.len.clamp(1, end - at);
        let stored = match extent.mapping {
            Mapping::Data { storage, offset, in_place, .. } => {
                let host = image.storage(storage).status(offset.0, len)?;
                len = host.len.clamp(1, len);
                match (host.kind, in_place || !told) {
                    (HostKind::Hole, _) => None,
                    (HostKind::Data, true) => Some(Stored { own: len, shared: 0 }),
                    (HostKind::Data, false) => Some(Stored { own: 0, shared: len }),
                }
            }
            Mapping::Encoded { .. } => Some(Stored { own: len, shared: 0 }),
            Mapping::Zero { .. } | Mapping::Backing => None,
        };
        if let Some(stored) = stored {
            tell(DiskRange { start: at, len }, stored)?;
        }
        at += len;
    }
    Ok(())
}
