//! Walking down a chain and telling what stands there.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::info::identity;
use super::super::{ImageArg, Job};
use crate::format::BackingRef;
use crate::graph::Node;
use crate::graph::gate::combine;
use crate::graph::open::{Depth, MAX_LINKS, OpenRequest, Purpose, backing_request};
use crate::{Error, ErrorKind, Result};

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct ChainOptions {
    /// The image at the top.
    pub image: ImageArg,
}

/// How a link is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "kebab-case")]
pub enum LinkState {
    /// Open, and what the image above expects.
    Good,
    /// There, but not what the image above was made on: its content cannot be trusted.
    Changed(String),
    /// Not there.
    Missing,
    /// There, but it cannot be opened.
    Broken(String),
    /// Outside of the image's folder, and not allowed.
    NotAllowed,
    /// An image that stands above in the chain already.
    Loop,
}

impl LinkState {
    /// Whether the guest's disk can be read through it.
    pub fn is_usable(&self) -> bool {
        matches!(self, LinkState::Good)
    }
}

/// One file of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainLink {
    /// As seen from here.
    pub filename: String,
    /// As the image above holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<String>,
    /// The format that the image above holds for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded_format: Option<String>,
    /// How it is.
    #[serde(flatten)]
    pub state: LinkState,
    /// The driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Bytes of the guest's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// Bytes on disk of all its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<u64>,
    /// Internal snapshots.
    #[serde(skip_serializing_if = "is_zero")]
    pub snapshots: usize,
    /// What to know about it, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
    /// Device and inode.
    #[serde(skip)]
    pub(super) identity: Option<(u64, u64)>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The chain from the image down: the image first.
///
/// # Errors
/// When the image at the top cannot be opened.
pub fn look(options: &ChainOptions, job: &Job<'_>) -> Result<Vec<ChainLink>> {
    let mut how = options.image.options(job);
    how.depth = Depth::Top;
    how.purpose = Purpose::Header;
    let open = |request: &OpenRequest| {
        ImageArg { request: request.clone(), ..options.image.clone() }.open(job, &how)
    };
    let mut request = options.image.request.clone();
    let mut node = open(&request)?;
    let mut links = vec![describe(&node, &request)?];
    let policy = how.policy.below(&options.image.request.filename);
    while let Some(backing) = node.image().backing() {
        if links.len() >= MAX_LINKS {
            let text = format!("the chain of backing files has more than {MAX_LINKS} images");
            return Err(Error::new(ErrorKind::TooLarge, text).at_path(request.name()));
        }
        let above = request.filename.clone();
        let full = combine(&above, &backing.name);
        let next = backing_request(&backing, &above, &policy).and_then(|r| Ok((open(&r)?, r)));
        let (below, next) = match next {
            Ok(opened) => opened,
            Err(e) => {
                links.push(unusable(&full, &backing, &e));
                return Ok(links);
            }
        };
        let mut link = describe(&below, &next)?;
        link.recorded = Some(backing.name.clone());
        link.recorded_format.clone_from(&backing.format);
        if links.iter().any(|l| l.identity.is_some() && l.identity == link.identity) {
            link.state = LinkState::Loop;
            links.push(link);
            return Ok(links);
        }
        if let Err(e) = node.image().check_backing(below.image()) {
            link.state = LinkState::Changed(e.report());
        }
        let above_size = node.virtual_size();
        link.notes.extend(notes(&node, &below, &backing, above_size));
        links.push(link);
        (request, node) = (next, below);
    }
    Ok(links)
}

fn unusable(full: &str, backing: &BackingRef, error: &Error) -> ChainLink {
    let state = match error.kind() {
        ErrorKind::NotFound => LinkState::Missing,
        ErrorKind::Forbidden => LinkState::NotAllowed,
        _ if !std::path::Path::new(full).exists() => LinkState::Missing,
        _ => LinkState::Broken(error.report()),
    };
    ChainLink {
        filename: full.to_owned(),
        recorded: Some(backing.name.clone()),
        recorded_format: backing.format.clone(),
        state,
        format: None,
        virtual_size: None,
        actual_size: None,
        snapshots: 0,
        notes: Vec::new(),
        identity: None,
    }
}

pub(super) fn describe(node: &Arc<Node>, request: &OpenRequest) -> Result<ChainLink> {
    let image = node.image();
    let mut actual = None;
    for storage in image.storages() {
        let storage = storage.whole().map_or(&**storage, |(whole, _)| whole);
        if let Some(bytes) = storage.allocated()? {
            actual = Some(actual.unwrap_or(0u64).saturating_add(bytes));
        }
    }
    Ok(ChainLink {
        filename: request.filename.clone(),
        recorded: None,
        recorded_format: None,
        state: LinkState::Good,
        format: Some(image.format_name().to_owned()),
        virtual_size: Some(image.virtual_size()),
        actual_size: actual,
        snapshots: image.snapshots().map(|s| s.list()).transpose()?.map_or(0, |l| l.len()),
        notes: Vec::new(),
        identity: identity(node),
    })
}

fn notes(above: &Node, below: &Node, backing: &BackingRef, above_size: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if backing.format.is_none() && above.image().format_name() == "qcow2" {
        let format = below.image().format_name();
        notes.push(format!(
            "its format is not recorded above; {format} was guessed (rebase -u -F {format} records it)"
        ));
    }
    if below.virtual_size() < above_size {
        notes.push(
            "it is shorter than the image above, which reads zeroes beyond its end".to_owned(),
        );
    }
    if let (Some(made), Some(changed)) = (born(above), modified(below))
        && changed > made
    {
        notes.push("it was written to after the file above was made".to_owned());
    }
    notes
}

fn modified(node: &Node) -> Option<(i64, i64)> {
    let storages = node.image().storages();
    let meta = storages.first()?.as_file()?.metadata().ok()?;
    Some((meta.mtime(), meta.mtime_nsec()))
}

/// When the image file was made, where the file system knows.
fn born(node: &Node) -> Option<(i64, i64)> {
    let storages = node.image().storages();
    let born = storages.first()?.as_file()?.metadata().ok()?.created().ok()?;
    let since = born.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((i64::try_from(since.as_secs()).ok()?, i64::from(since.subsec_nanos())))
}
