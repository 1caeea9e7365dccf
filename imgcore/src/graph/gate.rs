//! Which names found inside images may be opened, and the gate that opens them.
//!
//! An image from elsewhere may name any file of the host as its backing file, data file or extent;
//! opening it would show the guest (or the next reader of a converted image) what the user never
//! meant to show. So a name found inside an image is followed only
//!
//! * into the folder tree of the image that the user named,
//! * into folders that the user allowed,
//! * to files that the user named himself,
//!
//! all after symbolic links were resolved. [`Trust::Everything`] switches that off, for programs that
//! must behave like qemu-img.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open_request::{OpenOptions, Sharing};
use crate::crypto::SecretBytes;
use crate::format::{Access, OpenGate};
use crate::opts::filename::{self, Filename};
use crate::opts::secret::Asking;
use crate::storage::lock::{LockSet, Perms};
use crate::storage::{FileOptions, FileStorage, Storage};
use crate::{Error, ErrorKind, Result};

/// How far names inside images are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Only inside the folder tree of the image that names them, and what was allowed explicitly.
    #[default]
    Folder,
    /// Wherever they point, as qemu-img does.
    Everything,
    /// Nowhere: the image alone is looked at.
    Nothing,
}

/// The open policy of one run.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    trust: Trust,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Policy {
    /// Believes only names inside the image's own folder tree.
    pub fn folder() -> Self {
        Policy::default()
    }

    /// Believes every name.
    pub fn everything() -> Self {
        Policy { trust: Trust::Everything, ..Policy::default() }
    }

    /// Follows no name.
    pub fn nothing() -> Self {
        Policy { trust: Trust::Nothing, ..Policy::default() }
    }

    /// Allows a folder tree too. A folder that does not exist allows nothing.
    #[must_use]
    pub fn allow_folder(mut self, folder: &Path) -> Self {
        self.folders.extend(folder.canonicalize());
        self
    }

    /// Allows one file that the user named.
    #[must_use]
    pub fn allow_file(mut self, file: &Path) -> Self {
        self.files.extend(file.canonicalize());
        self
    }

    /// How far names are believed.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// What holds below an image that the user named: its own folder too.
    #[must_use]
    pub(crate) fn below(&self, image: &str) -> Policy {
        let mut policy = self.clone();
        let path = Path::new(image);
        policy.folders.extend(folder_of(path).canonicalize());
        if let Ok(real) = path.canonicalize() {
            policy.folders.push(folder_of(&real).to_path_buf());
        }
        policy
    }

    /// The path behind a name that `image` holds, if it may be followed.
    pub(crate) fn follow(&self, image: &str, reference: &str) -> Result<String> {
        let path = match filename::parse(reference) {
            Ok(Filename::Path(path)) => path,
            Ok(Filename::Protocol { driver, .. }) => {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    format!("'{reference}', named inside '{image}', is not a file"),
                )
                .at_path(image)
                .hint("if you trust the image, name what lies below it yourself: --image-opts ...,backing.driver=...")
                .context(format!("Protocol '{driver}' is not supported in images")));
            }
            Ok(Filename::Json(_)) => return Err(forbidden(image, reference)),
            Err(e) => return Err(e.into()),
        };
        let path = combine(image, &path);
        self.check(image, &path)?;
        Ok(path)
    }

    /// Whether a path that `image` names may be opened. A file that does not exist is judged by its
    /// folder, so that the answer does not tell what exists elsewhere.
    fn check(&self, image: &str, path: &str) -> Result<()> {
        match self.trust {
            Trust::Everything => return Ok(()),
            Trust::Nothing => return Err(forbidden(image, path)),
            Trust::Folder => {}
        }
        let path_ref = Path::new(path);
        let real = match path_ref.canonicalize() {
            Ok(real) => real,
            Err(_) => match (folder_of(path_ref).canonicalize(), path_ref.file_name()) {
                (Ok(folder), Some(name)) => folder.join(name),
                _ => return Err(forbidden(image, path)),
            },
        };
        let inside = self.folders.iter().any(|f| real.starts_with(f)) || self.files.contains(&real);
        if inside { Ok(()) } else { Err(forbidden(image, path)) }
    }
}

fn forbidden(image: &str, reference: &str) -> Error {
    Error::new(
        ErrorKind::Forbidden,
        format!("'{reference}', named inside '{image}', is outside of its folder"),
    )
    .at_path(image)
    .hint(format!(
        "if you trust the image, allow it with --allow {}",
        folder_of(Path::new(reference)).display()
    ))
}

/// The folder of a path; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// A name that `image` holds, as seen from where `image` is seen from: absolute names and names of
/// protocols as they are, others in the image's folder.
pub fn combine(image: &str, reference: &str) -> String {
    if reference.starts_with('/') || filename::protocol_prefix(reference).is_some() {
        return reference.to_owned();
    }
    match image.rfind('/') {
        Some(at) => format!("{}{reference}", &image[..=at]),
        None => reference.to_owned(),
    }
}

/// Names of a folder that are looked at.
const MAX_NAMES: usize = 10_000;

/// Opens the further files of one image (extents, data files).
pub(super) struct ImageGate<'a> {
    /// The image's path.
    pub image: &'a str,
    /// How the image is opened; the policy is that below it.
    pub options: &'a OpenOptions,
    /// The policy that holds below it.
    pub policy: &'a Policy,
    /// A detached header that the user named.
    pub header: Option<Arc<dyn Storage>>,
    /// The user said what lies below.
    pub below_given: bool,
}

impl OpenGate for ImageGate<'_> {
    fn open_storage(&self, reference: &str, access: Access) -> Result<Arc<dyn Storage>> {
        let path = self.policy.follow(self.image, reference)?;
        open_data_file(&path, access, self.options)
    }

    fn given(&self, role: &str) -> Option<Arc<dyn Storage>> {
        self.header.clone().filter(|_| role == "header")
    }

    fn below_is_given(&self) -> bool {
        self.below_given
    }

    fn passphrase(&self, id: Option<&str>) -> Result<Option<SecretBytes>> {
        Ok(self.options.secrets.passphrase(id, self.image, Asking::Open)?)
    }

    fn list_folder(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.policy.follow(self.image, folder)?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)?.take(MAX_NAMES) {
            // Names that are no text cannot be written in an image either.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }
}

/// Opens a file of guest data beside an image, locked as QEMU does it.
pub(super) fn open_data_file(
    path: &str,
    access: Access,
    options: &OpenOptions,
) -> Result<Arc<dyn Storage>> {
    let file_options = FileOptions { writable: access == Access::Write, cache: options.cache };
    let file = FileStorage::open(Path::new(path), file_options)?;
    if options.sharing == Sharing::Locked {
        let set = match access {
            Access::Read => LockSet { used: Perms::NONE, unshared: Perms::RESIZE },
            Access::Write => LockSet {
                used: Perms::READ.and(Perms::WRITE).and(Perms::RESIZE),
                unshared: Perms::RESIZE,
            },
        };
        file.lock(set, path)?;
    }
    Ok(Arc::new(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_from_the_image() {
        assert_eq!(combine("a.qcow2", "b"), "b");
        assert_eq!(combine("d/a.qcow2", "b"), "d/b");
        assert_eq!(combine("/x/a", "../b"), "/x/../b");
        assert_eq!(combine("/x/a", "/b"), "/b");
        assert_eq!(combine("/x/a", "nbd:h"), "nbd:h");
    }

    #[test]
    fn only_the_own_folder_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(inside.join("sub/b"), b"").unwrap();
        std::fs::write(dir.path().join("secret"), b"").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        let image = inside.join("top").to_string_lossy().into_owned();
        let policy = Policy::folder().below(&image);
        assert!(policy.follow(&image, "sub/b").is_ok());
        assert!(policy.follow(&image, "missing").is_ok());
        for bad in
            ["../secret", "link", "/etc/passwd", "json:{}", "nbd:h:1", "../missing", "no/../../x"]
        {
            assert!(policy.follow(&image, bad).is_err(), "{bad}");
        }
        assert!(policy.allow_folder(dir.path()).follow(&image, "../secret").is_ok());
        assert!(Policy::everything().follow(&image, "/etc/passwd").is_ok());
    }
}
