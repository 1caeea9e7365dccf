//! The tree that a chain is a branch of: which images in the same folders stand on its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::{ImageArg, Job};
use super::look::{ChainLink, ChainOptions, describe, look};
use crate::Result;
use crate::format::check_cancelled;
use crate::graph::Node;
use crate::graph::gate::{combine, folder_of};
use crate::graph::open::{Depth, OpenOptions, OpenRequest, Purpose, Sharing};

/// Files that are looked at in one folder.
const MAX_FILES: usize = 10_000;

/// An image and those that stand on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Branch {
    /// The image.
    #[serde(flatten)]
    pub link: ChainLink,
    /// Whether the chain that was asked for goes through it.
    pub in_chain: bool,
    /// Images whose backing file it is, by name.
    pub overlays: Vec<Branch>,
}

/// The tree from the lowest image of the chain up. Overlays are looked for in the folders in which the
/// chain's files are.
///
/// # Errors
/// When the image cannot be opened, or a folder cannot be read.
pub fn tree(options: &ChainOptions, job: &Job<'_>) -> Result<Branch> {
    let mut chain = look(options, job)?;
    let mut folders: Vec<PathBuf> = Vec::new();
    for link in &chain {
        let folder = folder_of(Path::new(&link.filename)).to_path_buf();
        if link.identity.is_some() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    let mut overlays: BTreeMap<PathBuf, Vec<ChainLink>> = BTreeMap::new();
    for folder in folders {
        for overlay in overlays_in(&folder, job)? {
            let (below, link) = overlay;
            overlays.entry(below).or_default().push(link);
        }
    }
    // The chain's own links hang below each other whatever the folders say.
    let Some(root) = chain.pop() else {
        return Err(crate::Error::invalid("a chain without images"));
    };
    let mut own: Vec<ChainLink> = chain;
    let mut branch = grow(root, &mut own, &mut overlays);
    branch.in_chain = true;
    Ok(branch)
}

/// `own` holds the links of the chain above `link`, the lowest last.
fn grow(
    link: ChainLink,
    own: &mut Vec<ChainLink>,
    overlays: &mut BTreeMap<PathBuf, Vec<ChainLink>>,
) -> Branch {
    let mut branch = Branch { link, in_chain: false, overlays: Vec::new() };
    let mine = own.pop();
    // Taken out, so that a loop ends.
    let path = Path::new(&branch.link.filename).canonicalize();
    let found = path.ok().and_then(|p| overlays.remove(&p)).unwrap_or_default();
    let own_identity = mine.as_ref().and_then(|l| l.identity);
    if let Some(mine) = mine {
        let mut above = grow(mine, own, overlays);
        above.in_chain = true;
        branch.overlays.push(above);
    }
    for overlay in found {
        if overlay.identity.is_some() && overlay.identity == own_identity {
            continue;
        }
        branch.overlays.push(grow(overlay, &mut Vec::new(), overlays));
    }
    branch.overlays.sort_by(|a, b| a.link.filename.cmp(&b.link.filename));
    branch
}

/// Images of a folder that have a backing file, with the real path of that.
fn overlays_in(folder: &Path, job: &Job<'_>) -> Result<Vec<(PathBuf, ChainLink)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)?.take(MAX_FILES) {
        check_cancelled(job.watcher)?;
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        // What is no image, or not readable, has no say here.
        let Some((request, node)) = header(&entry.path(), job) else { continue };
        let Some(backing) = node.image().backing() else { continue };
        let below = PathBuf::from(combine(&request.filename, &backing.name));
        if let (Ok(real), Ok(mut link)) = (below.canonicalize(), describe(&node, &request)) {
            link.recorded = Some(backing.name);
            link.recorded_format = backing.format;
            found.push((real, link));
        }
    }
    Ok(found)
}

fn header(path: &Path, job: &Job<'_>) -> Option<(OpenRequest, Arc<Node>)> {
    let name = path.to_str()?;
    let name = name.strip_prefix("./").unwrap_or(name);
    let image = ImageArg { sharing: Sharing::Force, ..ImageArg::file(name) };
    let how = OpenOptions { depth: Depth::Top, purpose: Purpose::Header, ..image.options(job) };
    let node = image.open(job, &how).ok()?;
    Some((image.request, node))
}
