//! The files of an image that is being made.
//!
//! Nothing appears under its final name before it is whole. Each file is written as `NAME.part` in the
//! folder of `NAME`; [`Output::commit`] brings all of them to disk, renames the further files first and
//! the image itself last, and then brings the folder to disk. Dropping an output without commit removes
//! the parts, so an error or a cancelled job leaves what was there before.
//!
//! * A file that exists is replaced only at the rename; it stays locked from the beginning, so that
//!   nobody who uses it loses it silently. Its permissions are kept.
//! * A symbolic link is followed: the file it points to is replaced, not the link.
//! * A block device, and a file in a folder where no new file can be made, is written in place.
//! * A file on another host ([`Place::There`]) is made there in the same way, by the means of its protocol.
//! * A part of a run that was killed is taken over: whoever writes a part holds `flock` on it. It is emptied,
//!   unless the caller goes on with it ([`Output::resume`]). [`Output::keep`] leaves the parts for that; what
//!   the caller wants to know of them then stands in `NAME.part.json`, which is removed before a part is emptied.

use std::fs::{File, OpenOptions as FileOpen};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Node;
use super::gate::{combine, folder_of, open_data_file};
use super::open::{OpenOptions, Purpose, Sharing, backing_request, open};
use super::remote::Making;
use crate::crypto::SecretBytes;
use crate::format::{Access, Driver, NewFiles, OpenContext, OpenGate};
use crate::opts::filename::{self, Filename};
use crate::opts::remote::Remote;
use crate::opts::secret::{Asking, Secrets};
use crate::storage::culprit;
use crate::storage::lock::LockSet;
use crate::storage::{CacheMode, FileOptions, FileStorage, Storage};
use crate::{Error, ErrorKind, Result};

/// Whether a file that exists may be replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Yes, as qemu-img does.
    #[default]
    Allow,
    /// Only if it is empty.
    Refuse,
}

/// Whether commit waits for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Everything is on disk before the names appear.
    #[default]
    Synced,
    /// The names appear at once; a power failure may leave an incomplete image under them.
    Fast,
}

/// One file being made.
#[derive(Debug)]
struct NewFile {
    /// The name as the image holds it; `None` for the image itself.
    reference: Option<String>,
    /// Where the bytes go until then; `None` when written in place.
    part: Option<PathBuf>,
    /// The final name, links resolved.
    path: PathBuf,
    storage: Arc<dyn Storage>,
    /// Where it is on another host.
    elsewhere: Option<Arc<dyn Making>>,
    /// What is replaced, locked.
    _replaced: Option<FileStorage>,
}

/// Where a new image goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or a block device of this host.
    Here(String),
    /// A file on another one.
    There(Box<Remote>),
}

impl Place {
    /// What a name of the command line says.
    ///
    /// # Errors
    /// When images cannot be made there; `done` is what was to be done there (`written`, `created`).
    pub fn parse(name: &str, done: &str) -> Result<Self> {
        match filename::parse(name)? {
            Filename::Path(path) => Ok(Place::Here(path)),
            Filename::Protocol { driver, name } => match Remote::parse(driver, &name)? {
                Some(remote) if super::remote::can_create(&remote) => {
                    Ok(Place::There(Box::new(remote)))
                }
                _ => Err(only_files(done)),
            },
            Filename::Json(_) => Err(only_files(done)),
        }
    }

    /// The path, or the name that is shown.
    pub fn name(&self) -> String {
        match self {
            Place::Here(path) => path.clone(),
            Place::There(remote) => remote.shown().name(),
        }
    }

    /// Whether it is on this host.
    pub fn is_here(&self) -> bool {
        matches!(self, Place::Here(_))
    }
}

fn only_files(done: &str) -> Error {
    Error::unsupported(format!("Only files and block devices can be {done}"))
}

/// What was found of an earlier run.
#[derive(Debug)]
pub enum Resumed {
    /// All files that were asked for.
    Parts(Output),
    /// At least one is missing.
    Nothing,
}

/// What happens to a part that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Emptied,
    Kept,
}

/// The files of one new image.
#[derive(Debug)]
pub struct Output {
    target: String,
    cache: CacheMode,
    overwrite: Overwrite,
    secrets: Secrets,
    elsewhere: Option<Box<Remote>>,
    files: Mutex<Vec<NewFile>>,
    /// Parts stay when there is no commit.
    kept: AtomicBool,
}

impl Output {
    /// Files for an image that will be called `target`.
    pub fn new(target: &str, cache: CacheMode, overwrite: Overwrite) -> Self {
        Output {
            target: target.to_owned(),
            cache,
            overwrite,
            secrets: Secrets::default(),
            elsewhere: None,
            files: Mutex::default(),
            kept: AtomicBool::new(false),
        }
    }

    /// Files for an image at this place.
    pub fn at(place: &Place, cache: CacheMode, overwrite: Overwrite) -> Self {
        let elsewhere = match place {
            Place::Here(_) => None,
            Place::There(remote) => Some(remote.clone()),
        };
        let mut output = Output::new(&place.name(), cache, overwrite);
        output.elsewhere = elsewhere;
        output
    }

    /// With passphrases for an encrypted image.
    #[must_use]
    pub fn with_secrets(mut self, secrets: &Secrets) -> Self {
        self.secrets = secrets.clone();
        self
    }

    /// The files that an earlier run with [`Output::keep`] left: the image itself (`None`) and others as
    /// the image names them.
    ///
    /// # Errors
    /// When one cannot be opened or is in use.
    pub fn resume<'a>(
        target: &str,
        cache: CacheMode,
        overwrite: Overwrite,
        references: impl Iterator<Item = Option<&'a str>>,
    ) -> Result<Resumed> {
        let output = Output::new(target, cache, overwrite);
        output.keep();
        for reference in references {
            let shown = output.shown(reference);
            if !part_name(&resolve_links(Path::new(&shown))).is_file() {
                return Ok(Resumed::Nothing);
            }
            let file = output.make_new(reference, &shown, Found::Kept)?;
            output.files().push(file);
        }
        Ok(Resumed::Parts(output))
    }

    /// From now on the parts stay if there is no commit.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Where notes about the parts of `target` stand.
    pub fn journal_of(target: &str) -> PathBuf {
        journal_name(&part_name(&resolve_links(Path::new(target))))
    }

    /// Files besides the image itself, as the image names them.
    pub fn references(&self) -> Vec<String> {
        self.files().iter().filter_map(|f| f.reference.clone()).collect()
    }

    /// Whether any file is written where it is, under its final name.
    pub fn in_place(&self) -> bool {
        self.files().iter().any(|f| f.part.is_none())
    }

    fn shown(&self, reference: Option<&str>) -> String {
        match reference {
            None => self.target.clone(),
            Some(name) => combine(&self.target, name),
        }
    }

    /// The final file name, without its folder.
    pub fn file_name(&self) -> &str {
        self.target.rsplit('/').next().unwrap_or(&self.target)
    }

    /// The final name as the user wrote it.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The folder in which the image will be.
    pub fn folder(&self) -> PathBuf {
        folder_of(&resolve_links(Path::new(&self.target))).to_path_buf()
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Vec<NewFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The storage of a file made before.
    fn made(&self, reference: Option<&str>) -> Option<Arc<dyn Storage>> {
        let files = self.files();
        let file = files.iter().find(|f| f.reference.as_deref() == reference)?;
        Some(Arc::clone(&file.storage))
    }

    /// Makes (or empties) a file.
    fn make(&self, reference: Option<&str>) -> Result<Arc<dyn Storage>> {
        if let Some(storage) = self.made(reference) {
            storage.set_len(0, crate::storage::Preallocation::Off)?;
            return Ok(storage);
        }
        let shown = self.shown(reference);
        let file = self.make_new(reference, &shown, Found::Emptied).map_err(|e| {
            let message = format!("Could not create '{shown}'");
            let done = e.message() == message || e.kind() == ErrorKind::Locked;
            let done = done || e.kind() == ErrorKind::Invalid;
            if done { e } else { e.context(message).at_path(&shown) }
        })?;
        let storage = Arc::clone(&file.storage);
        self.files().push(file);
        Ok(storage)
    }

    fn make_elsewhere(&self, remote: &Remote, reference: Option<&str>) -> Result<NewFile> {
        if reference.is_some() {
            return Err(Error::unsupported("an image of several files cannot be made there"));
        }
        let options = FileOptions { writable: true, cache: self.cache };
        let (storage, making) = super::remote::create(remote, options, self.overwrite)?;
        Ok(NewFile {
            reference: None,
            part: None,
            path: PathBuf::from(&self.target),
            storage,
            elsewhere: Some(making),
            _replaced: None,
        })
    }

    fn make_new(&self, reference: Option<&str>, shown: &str, found: Found) -> Result<NewFile> {
        if let Some(remote) = &self.elsewhere {
            return self.make_elsewhere(remote, reference);
        }
        let path = resolve_links(Path::new(shown));
        let new = |part, storage, replaced| NewFile {
            reference: reference.map(str::to_owned),
            part,
            path: path.clone(),
            storage: Arc::new(storage),
            elsewhere: None,
            _replaced: replaced,
        };
        let old = match std::fs::metadata(&path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(&e)),
        };
        if old.as_ref().is_some_and(std::fs::Metadata::is_dir) {
            return Err(Error::errno(libc::EISDIR));
        }
        let options = FileOptions { writable: true, cache: self.cache };
        if old.as_ref().is_some_and(|m| m.file_type().is_block_device()) {
            let storage = FileStorage::open(&path, options)?;
            storage.lock(LockSet::EXCLUSIVE_WRITE, shown)?;
            return Ok(new(None, storage, None));
        }
        // Never renamed over: `/dev/null` is a device to everybody, not a file of ours.
        if let Some(kind) = old.as_ref().and_then(special) {
            return Err(not_writable(shown, kind));
        }
        let replaced = match &old {
            None => None,
            Some(meta) => {
                if self.overwrite == Overwrite::Refuse && meta.len() > 0 {
                    return Err(Error::invalid(format!("'{shown}' exists and is not empty"))
                        .at_path(shown)
                        .hint("use --force to replace it"));
                }
                let writable = FileOptions { writable: true, ..FileOptions::default() };
                let replaced = FileStorage::open(&path, writable)?;
                replaced.lock(LockSet::CREATE, shown)?;
                Some(replaced)
            }
        };
        let part = part_name(&path);
        match (self.open_part(&part, shown, found), replaced) {
            (Ok(file), replaced) => {
                if let Some(meta) = &old {
                    keep_permissions(&file, meta);
                }
                let storage = FileStorage::from_file(file, shown.to_owned(), options)?;
                storage.lock(LockSet::EXCLUSIVE_WRITE, shown)?;
                Ok(new(Some(part), storage, replaced))
            }
            (Err(e), Some(replaced))
                if matches!(e.raw_errno(), Some(libc::EACCES | libc::EROFS)) =>
            {
                // The folder does not take new files, but this one may be written.
                let storage = FileStorage::open(&path, options)?;
                // The locks of a creator and of a writer exclude each other.
                drop(replaced);
                storage.lock(LockSet::EXCLUSIVE_WRITE, shown)?;
                storage.set_len(0, crate::storage::Preallocation::Off)?;
                Ok(new(None, storage, None))
            }
            (Err(e), _) => Err(e),
        }
    }

    /// Creates the file to write into, or takes over one that a killed run left behind.
    fn open_part(&self, part: &Path, shown: &str, found: Found) -> Result<File> {
        let busy = |file: Option<&File>| {
            let holder = file.map(|f| culprit::holders(f, 0)).unwrap_or_default();
            let error = Error::new(
                ErrorKind::Locked,
                format!("'{}' is being written by another process", part.display()),
            )
            .at_path(shown);
            match holder.first() {
                Some(holder) => error.hint(format!("It is {holder}")),
                None => error,
            }
        };
        let mut flags = libc::O_CLOEXEC | libc::O_NOFOLLOW;
        if self.cache.direct() {
            flags |= libc::O_DIRECT;
        }
        for _ in 0..8 {
            let mut how = FileOpen::new();
            how.read(true).write(true).mode(0o644).custom_flags(flags);
            let file = match how.clone().create_new(true).open(part) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => match how.open(part) {
                    Ok(file) => file,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(Error::io(&e)),
                },
                Err(e) => return Err(Error::io(&e)),
            };
            match file.try_lock() {
                Err(std::fs::TryLockError::WouldBlock) => return Err(busy(Some(&file))),
                // No locks on this file system: nothing to go by.
                Ok(()) | Err(std::fs::TryLockError::Error(_)) => {}
            }
            // Its former writer may have finished (and renamed it) between opening and locking.
            let (ours, there) = (file.metadata()?, std::fs::metadata(part));
            if there.is_ok_and(|t| (t.dev(), t.ino()) == (ours.dev(), ours.ino())) {
                // Only what is there: ext4 writes a file out at its last close if it was ever truncated
                // to nothing.
                if ours.len() > 0 && found == Found::Emptied {
                    let _ = std::fs::remove_file(journal_name(part));
                    file.set_len(0)?;
                }
                return Ok(file);
            }
        }
        Err(busy(None))
    }

    /// Opens the image that was created in these files, to fill it; `keys` are options of the driver
    /// that name secrets.
    pub fn open_image(
        &self,
        driver: &'static dyn Driver,
        options: &OpenOptions,
        keys: &[(String, String)],
    ) -> Result<Arc<Node>> {
        let name = &self.target;
        let storage =
            self.made(None).ok_or_else(|| Error::invalid("the image was not created yet"))?;
        let gate = OutputGate { output: self, options };
        let image = driver
            .open(OpenContext {
                storage,
                access: options.access,
                gate: &gate,
                snapshot: None,
                data_file: None,
                scratch: options.purpose == Purpose::Scratch,
                header_only: false,
                for_check: false,
                options: keys,
            })
            .map_err(|e| e.context(format!("Could not open '{name}'")).at_path(name))?;
        let backing = match image.backing() {
            None => None,
            Some(reference) => {
                let lower = OpenOptions {
                    access: Access::Read,
                    purpose: Purpose::Source,
                    cache: CacheMode::Writeback,
                    ..options.clone()
                };
                let opened = backing_request(&reference, name, &options.policy)
                    .and_then(|request| open(&request, &lower));
                Some(opened.map_err(|e| {
                    e.context("Could not open backing file")
                        .context(format!("Could not open '{name}'"))
                })?)
            }
        };
        Ok(Arc::new(Node::new(name.as_str(), image, backing, options.access)))
    }

    /// Returns when everything written so far is on disk, and lets the page cache forget it.
    pub fn sync(&self) -> Result<()> {
        for file in self.files().iter() {
            sync(file)?;
            file.storage.forget_cached();
        }
        Ok(())
    }

    /// Brings everything to disk and gives the files their names.
    pub fn commit(self, durability: Durability) -> Result<()> {
        let mut files = std::mem::take(&mut *self.files());
        let result = commit_files(&mut files, durability);
        if result.is_err() && !self.kept.load(Ordering::Relaxed) {
            remove_parts(&files);
        }
        result
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            remove_parts(&self.files());
        }
    }
}

fn remove_parts(files: &[NewFile]) {
    files.iter().filter_map(|f| f.elsewhere.as_ref()).for_each(|f| f.withdraw());
    for part in files.iter().filter_map(|f| f.part.as_ref()) {
        // Nothing can be done about a file that does not go away.
        let _ = std::fs::remove_file(part);
    }
}

fn sync(file: &NewFile) -> Result<()> {
    let Some(handle) = file.storage.as_file() else { return Ok(()) };
    handle.sync_all().map_err(|e| Error::io(&e).at_path(file.storage.name()))
}

/// The image itself, the only one without a reference, comes last.
fn commit_files(files: &mut [NewFile], durability: Durability) -> Result<()> {
    files.sort_by_key(|f| f.reference.is_none());
    if durability == Durability::Synced {
        files.iter().try_for_each(sync)?;
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    for file in files.iter_mut() {
        if let Some(elsewhere) = &file.elsewhere {
            elsewhere.publish(durability)?;
            file.elsewhere = None;
        }
        let Some(part) = &file.part else { continue };
        // What stands there may have changed since the beginning.
        if let Some(kind) = std::fs::symlink_metadata(&file.path).ok().as_ref().and_then(special) {
            return Err(not_writable(file.storage.name(), kind));
        }
        std::fs::rename(part, &file.path).map_err(|e| {
            Error::io(&e).context(format!("Could not create '{}'", file.storage.name()))
        })?;
        file.part = None;
        let folder = folder_of(&file.path).to_path_buf();
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    if durability == Durability::Synced {
        for folder in folders {
            // Some file systems refuse to sync folders; the rename itself is done.
            let _ = File::open(&folder).and_then(|f| f.sync_all());
        }
    }
    Ok(())
}

/// What a thing is called that is neither a regular file nor a block device, a folder or a link.
fn special(meta: &std::fs::Metadata) -> Option<&'static str> {
    let kind = meta.file_type();
    if kind.is_char_device() {
        Some("character device")
    } else if kind.is_fifo() {
        Some("pipe")
    } else if kind.is_socket() {
        Some("socket")
    } else {
        None
    }
}

fn not_writable(shown: &str, kind: &str) -> Error {
    Error::invalid(format!("'{shown}' is a {kind}; images are written to files and block devices"))
        .at_path(shown)
}

fn part_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn journal_name(part: &Path) -> PathBuf {
    let mut name = part.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

/// Follows symbolic links to the file that will be written, also where it does not exist yet.
fn resolve_links(path: &Path) -> PathBuf {
    let mut at = path.to_path_buf();
    // As many as the kernel follows; a longer chain fails when it is opened.
    for _ in 0..40 {
        let Ok(to) = std::fs::read_link(&at) else { break };
        at = folder_of(&at).join(to);
    }
    at
}

/// A replaced file keeps its mode and, where we may, its owner.
fn keep_permissions(file: &File, old: &std::fs::Metadata) {
    let _ = file.set_permissions(old.permissions());
    let _ = std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid()));
}

impl NewFiles for Output {
    fn passphrase(&self, id: Option<&str>) -> Result<Option<SecretBytes>> {
        Ok(self.secrets.passphrase(id, &self.target, Asking::Create)?)
    }

    fn main(&self) -> Result<Arc<dyn Storage>> {
        self.make(None)
    }

    fn beside(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.make(Some(name))
    }

    fn existing(&self, name: &str) -> Result<Arc<dyn Storage>> {
        if let Some(storage) = self.made(Some(name)) {
            return Ok(storage);
        }
        let options = OpenOptions { cache: self.cache, ..OpenOptions::default() };
        open_data_file(&combine(&self.target, name), Access::Write, &options)
    }
}

/// Finds the files of an output under the names that its image holds.
struct OutputGate<'a> {
    output: &'a Output,
    options: &'a OpenOptions,
}

impl OpenGate for OutputGate<'_> {
    fn passphrase(&self, id: Option<&str>) -> Result<Option<SecretBytes>> {
        self.output.passphrase(id)
    }

    fn open_storage(&self, reference: &str, access: Access) -> Result<Arc<dyn Storage>> {
        if let Some(storage) = self.output.made(Some(reference)) {
            return Ok(storage);
        }
        let path = self.options.policy.follow(self.output.target(), reference)?;
        let options = OpenOptions { sharing: Sharing::Locked, ..self.options.clone() };
        open_data_file(&path, access, &options)
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
