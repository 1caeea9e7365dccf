//! Files below a root: remembered whole, replaced by rename, restored with owner, mode and time.
//!
//! A new version is written beside its place under a name that belongs to the journal and step, made durable,
//! and renamed. So at any moment there is the old file or the new one; what else may lie about is that one
//! name, and restoring removes it.

use std::fs::{File, FileTimes, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::action::FileState;
use super::effects::Effects;
use crate::error::{Error, Result};
use crate::hex::{from_hex, to_hex};

/// Where a host's path is on this machine. Below a fake root no component may be a symbolic link, as it could
/// lead out; on the real root only the last one may not, as it would be replaced by a file.
pub fn place(root: &Path, path: &str) -> Result<PathBuf> {
    let mut place = root.to_path_buf();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    for (index, part) in parts.iter().enumerate() {
        if *part == ".." || *part == "." {
            return Err(Error::usage(format!("'{path}' is not a plain path")));
        }
        place.push(part);
        let last = index + 1 == parts.len();
        let is_link = place.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
        if is_link && (last || root != Path::new("/")) {
            return Err(Error::refused("a symbolic link is not followed when changing files")
                .at(place)
                .remedy("name the file it points to, or replace the link by a file"));
        }
    }
    Ok(place)
}

/// A file as it is; None when there is none.
pub fn remember(root: &Path, path: &str) -> Result<Option<FileState>> {
    let place = place(root, path)?;
    let meta = match place.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io("cannot be looked at", &place, error)),
    };
    if !meta.is_file() {
        return Err(Error::refused("is not a regular file").at(place));
    }
    let bytes =
        std::fs::read(&place).map_err(|error| Error::io("cannot be read", &place, error))?;
    Ok(Some(FileState {
        hex: to_hex(&bytes),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
    }))
}

/// Folders above `path` that are missing, outermost first.
pub fn missing_folders(root: &Path, path: &str) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let mut folder = path.trim_end_matches('/');
    while let Some((parent, _)) = folder.rsplit_once('/') {
        if parent.is_empty() || place(root, parent)?.exists() {
            break;
        }
        missing.push(parent.to_owned());
        folder = parent;
    }
    missing.reverse();
    Ok(missing)
}

/// Makes folders.
pub fn make_folders(effects: &mut dyn Effects, folders: &[String]) -> Result<()> {
    for folder in folders {
        let place = place(effects.root(), folder)?;
        effects.checkpoint("make folder");
        match std::fs::create_dir(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io("folder cannot be made", &place, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes folders again where they are empty: what others have put there since stays.
pub fn remove_folders(effects: &mut dyn Effects, folders: &[String]) -> Result<()> {
    for folder in folders.iter().rev() {
        let place = place(effects.root(), folder)?;
        effects.checkpoint("remove folder");
        if place.symlink_metadata().is_err() {
            continue;
        }
        match std::fs::remove_dir(&place) {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENOTEMPTY | libc::ENOTDIR)
                ) =>
            {
                return Err(Error::io("folder cannot be removed", &place, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Name of the unfinished version.
fn beside(place: &Path, tag: &str) -> PathBuf {
    place.with_file_name(format!(".rhostprep-{tag}.tmp"))
}

fn sync_folder(place: &Path) {
    // Some file systems cannot; then the rename is as durable as they make it.
    if let Some(folder) = place.parent()
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
}

/// Puts `bytes` at `path` with the attributes of `state`.
fn put(
    effects: &mut dyn Effects,
    path: &str,
    tag: &str,
    bytes: &[u8],
    state: &FileState,
) -> Result<()> {
    let target = place(effects.root(), path)?;
    let temporary = beside(&target, tag);
    effects.checkpoint("write file");
    let write = || -> std::io::Result<()> {
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        let meta = file.metadata()?;
        if (meta.uid(), meta.gid()) != (state.uid, state.gid) {
            std::os::unix::fs::fchown(&file, Some(state.uid), Some(state.gid))?;
        }
        file.set_permissions(Permissions::from_mode(state.mode))?;
        file.set_times(FileTimes::new().set_modified(time(state.mtime)))?;
        file.sync_all()
    };
    if let Err(error) = write() {
        // The old file is untouched; the half-written one must not stay.
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::io("cannot be written", &target, error)
            .remedy("check that the file system is not read-only or full"));
    }
    effects.checkpoint("rename file");
    std::fs::rename(&temporary, &target)
        .map_err(|error| Error::io("cannot be replaced", &target, error))?;
    sync_folder(&target);
    Ok(())
}

fn time((seconds, nanoseconds): (i64, i64)) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanoseconds,
        Err(_) => {
            SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanoseconds
        }
    }
}

fn now() -> (i64, i64) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(0), i64::from(since.subsec_nanos()))
}

/// Writes a new version; owner and mode of an existing file stay.
pub fn write(
    effects: &mut dyn Effects,
    path: &str,
    tag: &str,
    text: &str,
    (mode, old): (u32, Option<&FileState>),
) -> Result<()> {
    let mut state = old.cloned().unwrap_or_else(|| {
        let place = effects.root().join(path.trim_start_matches('/'));
        let folder = place.parent().and_then(|folder| folder.metadata().ok());
        let (uid, gid) = folder.map_or((0, 0), |meta| (meta.uid(), meta.gid()));
        FileState { hex: String::new(), mode, uid, gid, mtime: (0, 0) }
    });
    state.mtime = now();
    put(effects, path, tag, text.as_bytes(), &state)
}

/// Removes a file; one that is not there is fine, also where nothing could be removed (a read-only file system says
/// so before it looks).
fn remove(place: &Path, what: &str) -> Result<()> {
    if place.symlink_metadata().is_err() {
        return Ok(());
    }
    std::fs::remove_file(place).map_err(|error| Error::io(what, place, error))
}

/// Brings a file back to what it was, and removes what a killed write left.
pub fn restore(
    effects: &mut dyn Effects,
    path: &str,
    tag: &str,
    old: Option<&FileState>,
) -> Result<()> {
    let target = place(effects.root(), path)?;
    remove(&beside(&target, tag), "unfinished file cannot be removed")?;
    let Some(old) = old else {
        effects.checkpoint("remove file");
        remove(&target, "cannot be removed")?;
        sync_folder(&target);
        return Ok(());
    };
    if remember(effects.root(), path)?.as_ref() == Some(old) {
        return Ok(());
    }
    let bytes = from_hex(&old.hex).ok_or_else(|| {
        Error::new(crate::error::ErrorKind::Damaged, "the journal's copy is damaged").at(&target)
    })?;
    put(effects, path, tag, &bytes, old)
}
