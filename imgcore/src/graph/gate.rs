//! Which names found inside images may be opened.

use std::path::{Path, PathBuf};

/// How far names inside images are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Only inside the folder tree of the image that names them, and what was allowed explicitly.
    #[default]
    Folder,
    /// Wherever they point, as qemu-img does.
    Everything,
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
}
