//! What is in a folder.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// Files and folders that one disk may have.
const MAX_ENTRIES: usize = 500_000;
/// Folders within folders.
const MAX_DEPTH: usize = 100;

/// What tells whether a file is still the one that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub modified: (i64, i64),
    pub changed: (i64, i64),
}

impl Stamp {
    pub fn of(meta: &Metadata) -> Self {
        Stamp {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// What an entry is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    File,
    /// Numbers of the entries in it.
    Folder(Vec<usize>),
}

/// A file or folder.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    pub path: PathBuf,
    pub parent: usize,
    pub kind: Kind,
    pub stamp: Stamp,
    pub read_only: bool,
}

/// All of them; the first one is the folder itself. Folders come before what is in them.
pub(super) fn scan(dir: &Path) -> Result<Vec<Entry>> {
    let unreadable = |e: &std::io::Error, path: &Path| {
        Error::io(e)
            .context(format!("Could not read directory {}", path.display()))
            .at_path(path.to_string_lossy())
    };
    let root = dir.canonicalize().map_err(|e| unreadable(&e, dir))?;
    let meta = std::fs::metadata(&root).map_err(|e| unreadable(&e, dir))?;
    if !meta.is_dir() {
        return Err(unreadable(&std::io::Error::from_raw_os_error(libc::ENOTDIR), dir));
    }
    let mut all = vec![Entry {
        name: String::new(),
        path: root.clone(),
        parent: 0,
        kind: Kind::Folder(Vec::new()),
        stamp: Stamp::of(&meta),
        read_only: false,
    }];
    let mut waiting = vec![(0usize, 0usize)];
    while let Some((folder, depth)) = waiting.pop() {
        let path = all[folder].path.clone();
        if depth > MAX_DEPTH {
            return Err(refused(&path, &format!("lies more than {MAX_DEPTH} folders deep")));
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(|e| unreadable(&e, &path))? {
            let name = entry.map_err(|e| unreadable(&e, &path))?.file_name();
            let text = name
                .into_string()
                .map_err(|n| refused(&path.join(n), "has a name that is not UTF-8"))?;
            names.push(text);
            if all.len() + names.len() > MAX_ENTRIES {
                let text =
                    format!("a folder with more than {MAX_ENTRIES} files cannot be shown as a FAT");
                return Err(Error::new(ErrorKind::TooLarge, text).at_path(dir.to_string_lossy()));
            }
        }
        names.sort();
        let mut inside = Vec::with_capacity(names.len());
        for name in names {
            let number = all.len();
            let entry = look(&root, &path.join(&name), name, folder)?;
            if matches!(entry.kind, Kind::Folder(_)) {
                waiting.push((number, depth + 1));
            }
            inside.push(number);
            all.push(entry);
        }
        all[folder].kind = Kind::Folder(inside);
    }
    Ok(all)
}

fn look(root: &Path, path: &Path, name: String, parent: usize) -> Result<Entry> {
    let failed = |e: std::io::Error| {
        Error::io(&e)
            .at_path(path.to_string_lossy())
            .context(format!("Could not read '{}'", path.display()))
    };
    let mut meta = std::fs::symlink_metadata(path).map_err(failed)?;
    let mut real = path.to_owned();
    if meta.is_symlink() {
        real = path.canonicalize().map_err(failed)?;
        meta = std::fs::metadata(&real).map_err(failed)?;
        if !real.starts_with(root) || !meta.is_file() {
            return Err(refused(
                path,
                "is a symbolic link to something else than a file inside the folder",
            ));
        }
    }
    if !meta.is_file() && !meta.is_dir() {
        return Err(refused(path, "is neither a file nor a folder"));
    }
    if meta.is_file() && meta.len() > u64::from(u32::MAX) {
        return Err(refused(path, "has more than 4 GiB"));
    }
    let kind = if meta.is_dir() { Kind::Folder(Vec::new()) } else { Kind::File };
    let read_only = meta.mode() & 0o200 == 0;
    Ok(Entry { name, path: real, parent, kind, stamp: Stamp::of(&meta), read_only })
}

/// Something that a FAT cannot hold.
pub(super) fn refused(path: &Path, why: &str) -> Error {
    Error::unsupported(format!("'{}' {why}", path.display()))
        .at_path(path.to_string_lossy())
        .hint("a FAT cannot hold it; take it out of the folder, or give it another name")
}
