//! Single files and folders of a disk, as the installed system sees them or of one volume.

use std::io::Write;

use serde::Serialize;

use crate::graph::open::Purpose;
use crate::guest::GuestDisk;
use crate::guest::files::{Budget, FileKind, Tree};
use crate::guest::linux::release::clean;
use crate::guest::parts::{Layout, SectorSize};
use crate::guest::system::Volumes;
use crate::num::{len_u64, small};
use crate::ops::{ImageArg, Job};
use crate::{Error, ErrorKind, Result};

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The volume (`partition 2`, `2`, `vg/lv`); without it the first installed system, or the first file
    /// system.
    pub volume: Option<String>,
    /// The path in it.
    pub path: String,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listed {
    /// The name.
    pub name: String,
    /// `file`, `folder`, `link` or `other`.
    pub kind: &'static str,
    /// Bytes.
    pub size: u64,
    /// Where a link points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Bytes of a file that are copied at once.
const PIECE: usize = 1 << 20;
/// Names of one folder.
const MAX_LISTED: usize = 100_000;

/// Lists a folder.
///
/// # Errors
/// When the image cannot be opened, there is no such folder, or it cannot be read.
pub fn list(image: &ImageArg, place: &Place, job: &Job<'_>) -> Result<Vec<Listed>> {
    with(image, place, &Budget::default(), job, |tree| {
        let found = tree.find(&place.path)?.ok_or_else(|| missing(place))?;
        if found.stat.kind != FileKind::Folder {
            return Err(Error::invalid(format!("'{}' is no folder", place.path)));
        }
        let fs = tree.fs(found)?;
        let mut all = Vec::new();
        for entry in tree.list(&place.path, MAX_LISTED)? {
            let stat = fs.stat(entry.id)?;
            let kind = match stat.kind {
                FileKind::File => "file",
                FileKind::Folder => "folder",
                FileKind::Link => "link",
                FileKind::Other => "other",
            };
            let target =
                if stat.kind == FileKind::Link { Some(clean(&fs.link(entry.id)?)) } else { None };
            all.push(Listed { name: entry.name, kind, size: stat.size, target });
        }
        Ok(all)
    })
}

/// Writes a file's bytes to `out`.
///
/// # Errors
/// When the image cannot be opened, there is no such file, it cannot be read, or `out` fails.
pub fn copy(image: &ImageArg, place: &Place, out: &mut dyn Write, job: &Job<'_>) -> Result<u64> {
    with(image, place, &Budget::new(u64::MAX), job, |tree| {
        let found = tree.find(&place.path)?.ok_or_else(|| missing(place))?;
        if found.stat.kind != FileKind::File {
            return Err(Error::invalid(format!("'{}' is no file", place.path)));
        }
        let fs = tree.fs(found)?;
        let mut buf = vec![0; small(found.stat.size.min(len_u64(PIECE)))];
        let mut at = 0;
        while at < found.stat.size {
            let n = fs.read(found.id, at, &mut buf)?;
            if n == 0 {
                break;
            }
            out.write_all(&buf[..n]).map_err(|e| Error::io(&e))?;
            at += len_u64(n);
            crate::format::check_cancelled(job.watcher)?;
        }
        Ok(at)
    })
}

fn missing(place: &Place) -> Error {
    Error::new(ErrorKind::NotFound, format!("There is no '{}' on the disk", place.path))
}

fn with<T>(
    image: &ImageArg,
    place: &Place,
    budget: &Budget,
    job: &Job<'_>,
    work: impl FnOnce(&Tree<'_>) -> Result<T>,
) -> Result<T> {
    let mut how = image.options(job);
    how.purpose = Purpose::Source;
    let disk = GuestDisk::new(image.open(job, &how)?);
    let layout = Layout::read(&disk, SectorSize::Detect)?;
    let volumes = Volumes::open(&layout, &disk, budget);
    if let Some(name) = &place.volume {
        let found = volumes.all.iter().find(|v| {
            let number = v.partition().map(|p| p.number.to_string());
            v.volume.name() == *name || number.as_ref() == Some(name)
        });
        let opened = found.ok_or_else(|| {
            let names: Vec<String> = volumes.all.iter().map(|v| v.volume.name()).collect();
            Error::new(ErrorKind::NotFound, format!("The disk has no volume '{name}'"))
                .hint(format!("it has: {}", names.join(", ")))
        })?;
        return match (&opened.fs, &opened.error) {
            (Some(fs), _) => work(&Tree::new(&**fs)),
            (None, Some(why)) => Err(Error::corrupt(format!("{name}: {why}"))),
            (None, None) => {
                Err(Error::unsupported(format!("{name} holds no file system that is read here")))
            }
        };
    }
    let systems = volumes.linux();
    if let Some(system) = systems.first() {
        return work(&system.tree);
    }
    let first = volumes.all.iter().find_map(|v| v.fs.as_deref());
    let fs = first
        .ok_or_else(|| Error::unsupported("the disk holds no file system that is read here"))?;
    work(&Tree::new(fs))
}
