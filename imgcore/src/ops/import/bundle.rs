//! Where the files of a virtual machine are: in a folder, or inside an OVA.
//!
//! An OVA is a tar archive (DSP0243, 6.4). Its members are found by their headers alone and then read where
//! they are: nothing is unpacked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::graph::gate::{Policy, combine, folder_of};
use crate::{Error, ErrorKind, Result};

/// Members of an archive.
const MAX_MEMBERS: usize = 10_000;
/// Bytes of a description or a manifest.
const MAX_TEXT: u64 = 16 << 20;

/// Bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub path: String,
    /// Where in it, and how many; all of it without.
    pub window: Option<(u64, u64)>,
}

impl Place {
    /// Reads it from the beginning.
    pub fn open(&self) -> Result<std::io::Take<File>> {
        let failed = |e: &std::io::Error| {
            Error::io(e).context(format!("Could not open '{}'", self.path)).at_path(&self.path)
        };
        let mut file = File::open(&self.path).map_err(|e| failed(&e))?;
        let (start, len) = self.window.unwrap_or((0, u64::MAX));
        file.seek(SeekFrom::Start(start)).map_err(|e| failed(&e))?;
        Ok(file.take(len))
    }

    /// A small text.
    pub fn text(&self) -> Result<String> {
        let mut bytes = Vec::new();
        self.open()?.take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_TEXT {
            let text = format!("a description of more than {MAX_TEXT} bytes");
            return Err(Error::new(ErrorKind::TooLarge, text).at_path(&self.path));
        }
        // VMware writes the encoding of the machine that ran it.
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(bad) => bad.into_bytes().iter().map(|b| char::from(*b)).collect(),
        })
    }
}

/// The files of one machine.
#[derive(Debug)]
pub(super) enum Bundle {
    /// Beside the description.
    Folder { description: String },
    /// Inside the archive.
    Archive { path: String, members: BTreeMap<String, (u64, u64)> },
}

impl Bundle {
    /// Reads the headers of an archive.
    pub fn archive(path: &str) -> Result<Self> {
        let failed = |e: &std::io::Error| {
            Error::io(e).context(format!("Could not read the archive '{path}'")).at_path(path)
        };
        let file = File::open(path).map_err(|e| failed(&e))?;
        let whole = file.metadata().map_err(|e| failed(&e))?.len();
        let mut archive = tar::Archive::new(file);
        let mut members = BTreeMap::new();
        for entry in archive.entries_with_seek().map_err(|e| failed(&e))? {
            let entry = entry.map_err(|e| failed(&e))?;
            if members.len() >= MAX_MEMBERS {
                let text = format!("'{path}' has more than {MAX_MEMBERS} members");
                return Err(Error::new(ErrorKind::TooLarge, text).at_path(path));
            }
            let kind = entry.header().entry_type();
            if !(kind.is_file() || kind.is_contiguous()) {
                continue;
            }
            let (start, len) = (entry.raw_file_position(), entry.size());
            if start.checked_add(len).is_none_or(|end| end > whole) {
                return Err(Error::corrupt(format!(
                    "'{path}' ends before the end of its last member"
                ))
                .at_path(path)
                .hint("it was not copied completely"));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            members.insert(name, (start, len));
        }
        Ok(Bundle::Archive { path: path.to_owned(), members })
    }

    /// The only member that ends in `.end`.
    pub fn member(&self, end: &str) -> Option<(String, Place)> {
        let Bundle::Archive { path, members } = self else { return None };
        let fits =
            |name: &str| Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
        let (name, window) = members.iter().find(|(name, _)| fits(name))?;
        Some((name.clone(), Place { path: path.clone(), window: Some(*window) }))
    }

    /// Finds a file that the description names.
    pub fn find(&self, reference: &str, policy: &Policy) -> Result<Place> {
        match self {
            Bundle::Archive { path, members } => {
                let window = members.get(reference).copied().ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("'{reference}' is not in '{path}'"))
                        .at_path(path)
                        .hint("the archive is not complete")
                })?;
                Ok(Place { path: path.clone(), window: Some(window) })
            }
            Bundle::Folder { description } => {
                let followed = policy.follow(description, reference);
                let there = followed.as_ref().is_ok_and(|p| Path::new(p).exists());
                if !there
                    && let Some(name) = reference.rsplit(['/', '\\']).next()
                    && name != reference
                {
                    // Moved with its machine: the folder it was in is another one here.
                    let beside = combine(description, name);
                    if Path::new(&beside).exists() {
                        return Ok(Place { path: policy.follow(description, name)?, window: None });
                    }
                }
                Ok(Place { path: followed?, window: None })
            }
        }
    }

    /// The folder in which disks may name further files.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Bundle::Folder { description } => Some(folder_of(Path::new(description))),
            Bundle::Archive { .. } => None,
        }
    }
}
