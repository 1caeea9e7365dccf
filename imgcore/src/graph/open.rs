//! From names to nodes: probing, locking, and following the chain.
//!
//! A chain is opened from the top. Names found inside images go through the [`Policy`]; a file that is
//! already part of the chain (by device and inode) and a chain of more than [`MAX_LINKS`] links are
//! refused. Every file gets QEMU's locks once its format is known and before its metadata are read.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::Node;
use super::gate::ImageGate;
pub use super::gate::{Policy, Trust};
pub use super::open_request::{
    BackingChoice, Depth, DetectZeroes, Discard, OpenOptions, OpenRequest, Purpose, Sharing,
};
use crate::format::{self, Access, BackingRef, Driver, OpenContext, PROBE_LEN};
use crate::num::small;
use crate::opts::filename::{self, Filename};
use crate::opts::filter::Filter;
use crate::opts::remote::Remote;
use crate::storage::lock::LockSet;
use crate::storage::{FileOptions, FileStorage, SliceStorage, Storage};
use crate::{Error, ErrorKind, Result};

/// Longest chain that is followed. Each link costs an open file.
pub const MAX_LINKS: usize = 200;

/// Opens an image and what lies below it.
pub fn open(request: &OpenRequest, options: &OpenOptions) -> Result<Arc<Node>> {
    let mut opening = Opening { options, seen: Vec::new() };
    opening.node(request, &options.policy, 0)
}

const NO_SNAPSHOT: &str = "Failed to load snapshot";

/// One opening of a chain.
struct Opening<'a> {
    options: &'a OpenOptions,
    /// Name, device and inode of the files so far.
    seen: Vec<(String, u64, u64)>,
}

impl Opening<'_> {
    fn node(&mut self, request: &OpenRequest, policy: &Policy, depth: usize) -> Result<Arc<Node>> {
        self.node_inner(request, policy, depth).map_err(|e| {
            // qemu-img opens the image first and looks for the snapshot then.
            if e.message() == NO_SNAPSHOT { e } else { could_not_open(request.name(), e) }
        })
    }

    fn node_inner(
        &mut self,
        request: &OpenRequest,
        policy: &Policy,
        depth: usize,
    ) -> Result<Arc<Node>> {
        let access = self.access(request, depth)?;
        let level = Level {
            access,
            top: depth == 0,
            options: &OpenOptions {
                cache: request.cache.unwrap_or(self.options.cache),
                sharing: request.sharing.unwrap_or(self.options.sharing),
                ..self.options.clone()
            },
        };
        let asked = asked_driver(request)?;
        if access == Access::Write && level.options.sharing == Sharing::Force {
            return Err(Error::invalid("force-share=on can only be used with read-only images"));
        }
        let path = &*bundle(request);
        let file_options =
            FileOptions { writable: access == Access::Write, cache: level.options.cache };
        let (bottom, file): (Arc<dyn Storage>, _) = match &request.remote {
            Some(remote) => {
                (super::remote::open(remote, file_options, &self.options.secrets)?, None)
            }
            None => {
                let file = Arc::new(FileStorage::open(Path::new(path), file_options)?);
                (Arc::clone(&file) as _, Some(file))
            }
        };
        self.remember(request.name(), &*bottom)?;
        let bottom = super::remote::filtered(bottom, request, &self.options.secrets)?;
        let driver = match asked {
            Some(driver) => driver,
            None => probe_driver(request, &*bottom)?,
        };
        let settled;
        let request = if request.undecided.is_empty() {
            request
        } else {
            settled = request.settled(driver.name())?;
            &settled
        };
        if let Some(file) = file {
            level.lock(driver, &file, request.name())?;
        }
        let storage = request.window(bottom)?;
        // An image that the user named opens its own folder; so does one that he allowed. A server has
        // no folder.
        let own_folder = depth == 0 && request.remote.is_none();
        let below = if own_folder { policy.below(path) } else { policy.clone() };
        let data_file = match request.data_file.as_deref() {
            Some(OpenRequest { remote: Some(remote), .. }) => {
                Some(super::remote::open(remote, file_options, &self.options.secrets)?)
            }
            Some(data) => Some(super::gate::open_data_file(&data.filename, access, level.options)?),
            None => None,
        };
        let header = match &request.header {
            Some(file) => Some(super::gate::open_data_file(&file.filename, access, level.options)?),
            None => None,
        };
        let snapshot = if depth == 0 { self.options.snapshot.clone() } else { None };
        let wanted = snapshot.is_some();
        if wanted && driver.name() != "qcow2" {
            return Err(Error::unsupported(format!(
                "Block format '{}' used by device '' does not support temporarily loading \
                 internal snapshots",
                driver.name()
            ))
            .context(NO_SNAPSHOT));
        }
        let below_given = match &request.backing {
            BackingChoice::Recorded => false,
            BackingChoice::Nothing => true,
            BackingChoice::Given(given) => !given.filename.is_empty(),
        };
        let image = driver
            .open(OpenContext {
                storage,
                access,
                gate: &ImageGate {
                    image: path,
                    options: level.options,
                    policy: &below,
                    header,
                    below_given,
                },
                snapshot,
                data_file,
                scratch: depth == 0 && self.options.purpose == Purpose::Scratch,
                header_only: self.options.purpose == Purpose::Header,
                for_check: depth == 0 && self.options.purpose == Purpose::Check,
                options: &request.options,
            })
            .map_err(|e| {
                let missing = wanted && e.kind() == ErrorKind::NotFound;
                if missing { e.context(NO_SNAPSHOT) } else { e }
            })?;
        let backing = match (self.options.depth, &request.backing) {
            (Depth::Top, _) | (_, BackingChoice::Nothing) => None,
            (Depth::Chain, BackingChoice::Given(given)) if !given.filename.is_empty() => {
                Some((**given).clone())
            }
            (Depth::Chain, choice) => match (image.backing(), choice) {
                (Some(backing), choice) => {
                    let recorded = backing_request(&backing, path, &below).map_err(in_backing)?;
                    Some(match choice {
                        BackingChoice::Given(given) => given.over_recorded(recorded),
                        _ => recorded,
                    })
                }
                (None, _) => None,
            },
        };
        let backing = match backing {
            Some(_) if depth + 1 >= MAX_LINKS => return Err(self.too_long(request.name())),
            Some(lower) => Some(self.node(&lower, &below, depth + 1).map_err(in_backing)?),
            None => None,
        };
        let node = Node::new(request.name(), image, backing, access)
            .with_writethrough(access == Access::Write && level.options.cache.writethrough())
            .with_space_options(request.detect_zeroes, request.discard);
        Ok(Arc::new(node))
    }

    fn access(&self, request: &OpenRequest, depth: usize) -> Result<Access> {
        let wanted = if depth == 0 || self.options.also_writable == Some(depth) {
            self.options.access
        } else {
            Access::Read
        };
        if wanted == Access::Write && request.read_only == Some(true) {
            return Err(Error::new(ErrorKind::ReadOnly, "Block node is read-only"));
        }
        Ok(wanted)
    }

    /// Refuses a file that the chain has already.
    fn remember(&mut self, name: &str, file: &dyn Storage) -> Result<()> {
        let Some(meta) = file.as_file().and_then(|f| f.metadata().ok()) else { return Ok(()) };
        let (dev, ino) = (meta.dev(), meta.ino());
        if let Some((first, ..)) = self.seen.iter().find(|s| (s.1, s.2) == (dev, ino)) {
            let last = self.seen.last().map_or(first, |s| &s.0);
            return Err(Error::corrupt(format!(
                "the chain of backing files is a circle: '{last}' names '{name}', which is \
                 '{first}' above it"
            ))
            .at_path(name)
            .hint("use 'rebase -u' to give one of them the right backing file"));
        }
        self.seen.push((name.to_owned(), dev, ino));
        Ok(())
    }

    fn too_long(&self, name: &str) -> Error {
        let top = self.seen.first().map_or(name, |s| &s.0);
        Error::new(
            ErrorKind::TooLarge,
            format!(
                "the chain below '{top}' has more than {MAX_LINKS} images; stopped at '{name}'"
            ),
        )
        .at_path(name)
    }
}

/// One image of the chain.
struct Level<'a> {
    access: Access,
    top: bool,
    options: &'a OpenOptions,
}

impl Level<'_> {
    fn lock(&self, driver: &dyn Driver, file: &FileStorage, name: &str) -> Result<()> {
        let raw = driver.name() == "raw";
        let set = match (self.options.purpose, self.access) {
            _ if self.options.sharing != Sharing::Locked => return Ok(()),
            (Purpose::Header, _) if raw => return Ok(()),
            (Purpose::Header, _) => LockSet::INSPECT,
            (Purpose::Guest, Access::Write) => LockSet::EXCLUSIVE_WRITE,
            (_, Access::Write) if raw => LockSet::RAW_RESIZE,
            (_, Access::Write) => LockSet::EXCLUSIVE_WRITE,
            (Purpose::Data | Purpose::Check, Access::Read) if raw && self.top => LockSet::RAW_READ,
            (_, Access::Read) => LockSet::STABLE_READ,
        };
        file.lock(set, name)
    }
}

impl OpenRequest {
    /// The part of the file that the image lies in.
    fn window(&self, file: Arc<dyn Storage>) -> Result<Arc<dyn Storage>> {
        let Some((offset, size)) = self.window else { return Ok(file) };
        let full = file.len()?;
        let rest = full.checked_sub(offset).ok_or_else(|| {
            Error::invalid(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({full})"
            ))
        })?;
        if size.is_some_and(|size| size % 512 != 0) {
            return Err(Error::invalid("Specified size is not multiple of 512"));
        }
        let size = size.unwrap_or(rest);
        if size > rest {
            return Err(Error::invalid(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to \
                 the  actual size of the containing file ({full})"
            )));
        }
        Ok(Arc::new(SliceStorage::new(file, offset, size)?))
    }
}

/// `Could not open 'name'` around an error that does not say so itself.
fn could_not_open(name: &str, error: Error) -> Error {
    let message = format!("Could not open '{name}'");
    if error.message() == message { error } else { error.context(message).at_path(name) }
}

fn in_backing(error: Error) -> Error {
    error.context("Could not open backing file")
}

/// The driver that was asked for. An unknown one is complained about before any file is touched.
fn asked_driver(request: &OpenRequest) -> Result<Option<&'static dyn Driver>> {
    let Some(name) = &request.driver else { return Ok(None) };
    // A protocol as the top of a tree is the file as it is.
    let plain = matches!(name.as_str(), "file" | "host_device")
        || Remote::is_driver(name)
        || Filter::is_driver(name);
    let name = if plain { "raw" } else { name };
    format::driver(name)
        .map(Some)
        .ok_or_else(|| Error::unsupported(format!("Unknown driver '{name}'")))
}

/// The file to open: of a folder that is a disk (Parallels' `.hdd`), its descriptor.
fn bundle(request: &OpenRequest) -> Cow<'_, str> {
    let path = request.filename.as_str();
    let wanted = matches!(request.driver.as_deref(), None | Some("parallels"));
    if wanted && request.remote.is_none() && Path::new(path).is_dir() {
        let descriptor = format!("{}/DiskDescriptor.xml", path.trim_end_matches('/'));
        if Path::new(&descriptor).is_file() {
            return Cow::Owned(descriptor);
        }
    }
    Cow::Borrowed(path)
}

/// The driver that fits what the file begins with.
fn probe_driver(request: &OpenRequest, file: &dyn Storage) -> Result<&'static dyn Driver> {
    let (start, _) = request.window.unwrap_or((0, None));
    let mut head = vec![0u8; small(file.len()?.saturating_sub(start)).min(PROBE_LEN)];
    file.read_at(start, &mut head)
        .map_err(|e| e.context("Could not read image for determining its format"))?;
    Ok(format::probe(&head, &request.filename))
}

/// What to open for a backing file that `image` names.
pub(crate) fn backing_request(
    backing: &BackingRef,
    image: &str,
    policy: &Policy,
) -> Result<OpenRequest> {
    if policy.trust() == Trust::Everything
        && let Ok(Filename::Json(spec)) = filename::parse(&backing.name)
    {
        return Ok(OpenRequest {
            driver: spec.driver.clone().or_else(|| backing.format.clone()),
            ..OpenRequest::from_spec(&spec, &backing.name)?
        });
    }
    if policy.trust() == Trust::Everything
        && let Ok(Filename::Protocol { driver, .. }) = filename::parse(&backing.name)
        && Remote::is_driver(driver)
    {
        return OpenRequest::parse(&backing.name, backing.format.as_deref());
    }
    let path = policy.follow(image, &backing.name)?;
    Ok(OpenRequest::file(path).with_driver(backing.format.as_deref()))
}

#[cfg(test)]
#[path = "open_test.rs"]
mod tests;
