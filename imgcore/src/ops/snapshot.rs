//! `snapshot`: internal snapshots.

use std::time::SystemTime;

use super::{ImageArg, Job};
use crate::format::SnapshotInfo;
use crate::graph::open::Depth;
use crate::{Error, ErrorKind, Result};

/// One action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SnapshotAction {
    /// `-l`
    #[default]
    List,
    /// `-c`
    Create(String),
    /// `-a`
    Apply(String),
    /// `-d`
    Delete(String),
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    /// The image.
    pub image: ImageArg,
    /// What.
    pub action: SnapshotAction,
}

/// Carries it out; a list is returned for `List` (empty for images without snapshots).
pub fn snapshot(options: &SnapshotOptions, job: &Job<'_>) -> Result<Vec<SnapshotInfo>> {
    let mut how = options.image.options(job);
    if options.action != SnapshotAction::List {
        how = how.writable();
    }
    how.depth = Depth::Top;
    let node = options.image.open(job, &how)?;
    let store = node.image().snapshots();
    match (&options.action, store) {
        (SnapshotAction::List, None) => return Ok(Vec::new()),
        (SnapshotAction::List, Some(store)) => return store.list(),
        (SnapshotAction::Create(name), None) => {
            return Err(
                Error::errno(libc::ENOTSUP).context(format!("Could not create snapshot '{name}'"))
            );
        }
        (SnapshotAction::Create(name), Some(store)) => store
            .create(name, SystemTime::now())
            .map_err(|e| e.context(format!("Could not create snapshot '{name}'")))?,
        (SnapshotAction::Apply(name), None) => {
            return Err(Error::unsupported("Block driver does not support snapshots")
                .context(format!("Could not apply snapshot '{name}'")));
        }
        (SnapshotAction::Apply(name), Some(store)) => store.apply(name).map_err(|e| {
            let e = if e.kind() == ErrorKind::NotFound {
                Error::errno(libc::ENOENT).context("Failed to load snapshot")
            } else {
                e
            };
            e.context(format!("Could not apply snapshot '{name}'"))
        })?,
        (SnapshotAction::Delete(name), store) => {
            let missing = || {
                Error::new(ErrorKind::NotFound, "snapshot not found")
                    .context(format!("Could not delete snapshot '{name}'"))
            };
            let store = store.ok_or_else(missing)?;
            // By name only, as qemu-img: a number is the name of one snapshot and the id of another.
            let named = store.list()?.into_iter().find(|s| s.name == *name).ok_or_else(missing)?;
            match store.delete(&named.id) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Err(missing()),
                other => {
                    other.map_err(|e| e.context(format!("Could not delete snapshot '{name}'")))?;
                }
            }
        }
    }
    node.close()?;
    Ok(Vec::new())
}
