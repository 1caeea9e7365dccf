//! `info`: what an image says about itself, and about what lies below it.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ImageArg, Job};
use crate::format::info::FileInfo;
use crate::format::{SnapshotInfo, SpecificInfo};
use crate::graph::Node;
use crate::graph::gate::combine;
use crate::graph::open::{Depth, MAX_LINKS, OpenOptions, OpenRequest, Purpose, backing_request};
use crate::num::round_up;
use crate::opts::filter::Filter;
use crate::opts::remote::Remote;
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct InfoOptions {
    /// The image.
    pub image: ImageArg,
    /// `Chain` for `--backing-chain`.
    pub depth: Depth,
}

/// One image, in QEMU's field names (`qapi/block-core.json`, `BlockGraphInfo`) and in the order in
/// which its JSON shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InfoReport {
    /// Children: the file, extents, the data file; not the backing file.
    pub children: Vec<ChildInfo>,
    /// Format of the file below, as recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// Internal snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotInfo>>,
    /// Bytes.
    pub virtual_size: u64,
    /// As the user named it.
    pub filename: String,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// The driver.
    pub format: String,
    /// Bytes on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<u64>,
    /// Encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// All data are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed: Option<bool>,
    /// Details of the format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<SpecificInfo>,
    /// Name of the file below, as seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// Name of the file below, as recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// Not cleanly closed; absent for formats that only hold packed data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_flag: Option<bool>,
    /// Guest offset at which the VM state area begins (for showing snapshots), not QEMU's.
    #[serde(skip)]
    pub vm_state_offset: Option<u64>,
}

/// A child of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildInfo {
    /// `file`, `data-file`, `extents.0`, ...
    pub name: String,
    /// What it says about itself (its format is a protocol: `file`, `host_device`).
    pub info: InfoReport,
}

/// Looks at an image, or at all of a chain: top first.
pub fn info(options: &InfoOptions, job: &Job<'_>) -> Result<Vec<InfoReport>> {
    let mut how = options.image.options(job);
    how.depth = Depth::Top;
    how.purpose = Purpose::Header;
    let mut all = Vec::new();
    let mut seen = Vec::new();
    let mut request = options.image.request.clone();
    loop {
        let node = options.image.open_as(&request, job, &how)?;
        let here = identity(&node);
        if here.is_some() && seen.contains(&here) {
            return Err(Error::corrupt(format!(
                "Backing file '{}' creates an infinite loop.",
                request.name()
            ))
            .at_path(request.name())
            .hint("use 'rebase -u' to give one of the images the right backing file"));
        }
        seen.push(here);
        let report = look(&node, &request)?;
        all.push(report);
        if options.depth == Depth::Top {
            return Ok(all);
        }
        let Some(backing) = node.image().backing() else { return Ok(all) };
        if all.len() >= MAX_LINKS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the chain of backing files has more than {MAX_LINKS} images"),
            )
            .at_path(request.name()));
        }
        let policy = how.policy.below(&options.image.request.filename);
        request = backing_request(&backing, &request.filename, &policy)?;
    }
}

/// Device and inode of the image file.
pub(super) fn identity(node: &Node) -> Option<(u64, u64)> {
    let storages = node.image().storages();
    let meta = storages.first()?.as_file()?.metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

/// What one opened image says.
fn look(node: &Arc<Node>, request: &OpenRequest) -> Result<InfoReport> {
    let image = node.image();
    let details = image.info()?;
    let backing = image.backing();
    let storages = image.storages();
    let mut report = InfoReport {
        virtual_size: image.virtual_size(),
        filename: node.name().to_owned(),
        cluster_size: details.cluster_size,
        format: image.format_name().to_owned(),
        encrypted: details.encrypted.then_some(true),
        compressed: details.compressed.filter(|c| *c),
        format_specific: details.specific,
        dirty_flag: details.dirty,
        vm_state_offset: details.vm_state_offset,
        ..InfoReport::default()
    };
    // A raw disk is as clean as what it lies on, and a server does not say.
    if report.format == "raw" && storages.iter().any(|s| s.protocol().is_some()) {
        report.dirty_flag = None;
    }
    if let Some(store) = image.snapshots() {
        report.snapshots = Some(store.list()?).filter(|l| !l.is_empty());
    }
    if let Some(backing) = backing {
        report.full_backing_filename = Some(combine(&request.filename, &backing.name));
        report.backing_filename = Some(backing.name);
        report.backing_filename_format = backing.format;
    }
    let mut total = None;
    for (index, storage) in storages.iter().enumerate() {
        let storage: &dyn Storage = storage.whole().map_or(&***storage, |(whole, _)| whole);
        if let Some(bytes) = storage.allocated()? {
            total = Some(total.unwrap_or(0u64).saturating_add(bytes));
        }
        let name = match (index, report.format.as_str()) {
            (0, _) => "file".to_owned(),
            (n, "vmdk") => format!("extents.{}", n - 1),
            (_, "luks") => "header".to_owned(),
            _ => "data-file".to_owned(),
        };
        report.children.push(ChildInfo { name, info: file_info(storage)? });
    }
    // The child attached last comes first.
    report.children.reverse();
    report.actual_size = total;
    // A protocol or filter at the top is not what a raw disk lies on, it is the disk.
    let top = request.driver.as_deref().filter(|d| Remote::is_driver(d) || Filter::is_driver(d));
    if let (Some(driver), [only]) = (top, report.children.as_mut_slice()) {
        let below = std::mem::take(&mut only.info.children);
        report.format = driver.to_owned();
        report.dirty_flag = only.info.dirty_flag;
        report.children = below;
    }
    Ok(report)
}

fn file_info(storage: &dyn Storage) -> Result<InfoReport> {
    // QEMU's protocol for devices takes character devices too (/dev/null).
    let special = storage
        .as_file()
        .and_then(|f| f.metadata().ok())
        .is_some_and(|m| std::os::unix::fs::FileTypeExt::is_char_device(&m.file_type()));
    let device = storage.limits().block_device || special;
    if let Some(filter) = storage.filter() {
        let below = file_info(filter.below)?;
        return Ok(InfoReport {
            virtual_size: round_up(storage.len()?, 512),
            filename: filter.name.to_owned(),
            format: filter.driver.to_owned(),
            actual_size: storage.allocated()?,
            dirty_flag: below.dirty_flag,
            children: vec![ChildInfo { name: filter.child.to_owned(), info: below }],
            ..InfoReport::default()
        });
    }
    if let Some(protocol) = storage.protocol() {
        return Ok(InfoReport {
            virtual_size: round_up(storage.len()?, 512),
            filename: storage.name().to_owned(),
            format: protocol.to_owned(),
            actual_size: storage.allocated()?,
            ..InfoReport::default()
        });
    }
    Ok(InfoReport {
        virtual_size: round_up(storage.len()?, 512),
        filename: storage.name().to_owned(),
        format: if device { "host_device" } else { "file" }.to_owned(),
        actual_size: storage.allocated()?,
        format_specific: (!device).then(|| SpecificInfo::File(FileInfo::default())),
        dirty_flag: Some(false),
        ..InfoReport::default()
    })
}

impl ImageArg {
    /// Opens another image of the same chain in the same way.
    fn open_as(
        &self,
        request: &OpenRequest,
        job: &Job<'_>,
        options: &OpenOptions,
    ) -> Result<Arc<Node>> {
        ImageArg { request: request.clone(), ..self.clone() }.open(job, options)
    }
}
