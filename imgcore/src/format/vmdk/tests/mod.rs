//! Tests of the format: helpers.

mod corpus;
mod crash;
mod esx;
mod hostile;
mod layouts;
mod leaks;
mod model;
mod oracle;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::VmdkDriver;
use crate::Result;
use crate::format::{
    Access, BackingRef, CreateContext, CreateOptions, Driver, Image, NewFiles, OpenContext,
    OpenGate,
};
use crate::graph::Node;
use crate::storage::{FileOptions, FileStorage, Storage};

/// A folder of test files; opens everything in it and nothing else.
pub(super) struct Dir {
    path: PathBuf,
    main: String,
    _temp: Option<tempfile::TempDir>,
}

impl Dir {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        Dir { path: temp.path().to_owned(), main: "x.vmdk".to_owned(), _temp: Some(temp) }
    }

    pub fn at(path: &Path) -> Self {
        Dir { path: path.to_owned(), main: "x.vmdk".to_owned(), _temp: None }
    }

    pub fn named(&self, main: &str) -> Self {
        Dir { path: self.path.clone(), main: main.to_owned(), _temp: None }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn main(&self) -> PathBuf {
        self.file(&self.main)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub fn open_with(&self, access: Access, scratch: bool) -> Result<Box<dyn Image>> {
        self.open_for(access, scratch, false)
    }

    /// As `check` opens it.
    pub fn checked(&self, access: Access) -> Node {
        let image = self.open_for(access, false, true).unwrap();
        Node::new(self.main.clone(), image, None, access)
    }

    fn open_for(&self, access: Access, scratch: bool, for_check: bool) -> Result<Box<dyn Image>> {
        let storage = self.open_storage(&self.main, access)?;
        VmdkDriver.open(OpenContext {
            storage,
            access,
            gate: self,
            snapshot: None,
            data_file: None,
            scratch,
            header_only: false,
            for_check,
            options: &[],
        })
    }

    pub fn open(&self, access: Access) -> Result<Box<dyn Image>> {
        self.open_with(access, false)
    }

    pub fn node(&self, access: Access) -> Node {
        Node::new(self.main.clone(), self.open(access).unwrap(), None, access)
    }

    pub fn over(&self, access: Access, below: Node) -> Node {
        Node::new(self.main.clone(), self.open(access).unwrap(), Some(Arc::new(below)), access)
    }

    /// The error of opening.
    pub fn refused(&self) -> crate::Error {
        self.open(Access::Read).map(drop).unwrap_err()
    }

    pub fn create(&self, size: u64, options: &[(&str, &str)]) -> Result<()> {
        self.create_over(size, options, None)
    }

    pub fn create_over(
        &self,
        size: u64,
        options: &[(&str, &str)],
        below: Option<(&str, &dyn Image)>,
    ) -> Result<()> {
        let given: Vec<_> =
            options.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let mut options = CreateOptions::parse(VmdkDriver.create_options(), &given)?;
        VmdkDriver.resolve_options(&mut options, size)?;
        VmdkDriver.create(&CreateContext {
            files: self,
            file_name: &self.main,
            size,
            options: &options,
            backing: below.map(|(name, _)| BackingRef {
                name: name.to_owned(),
                format: Some("vmdk".to_owned()),
            }),
            backing_image: below.map(|(_, image)| image),
        })
    }
}

impl OpenGate for Dir {
    fn open_storage(&self, reference: &str, access: Access) -> Result<Arc<dyn Storage>> {
        assert!(!reference.contains("://"), "the gate is for files");
        let options = FileOptions { writable: access == Access::Write, ..FileOptions::default() };
        Ok(Arc::new(FileStorage::open(&self.path.join(reference), options)?))
    }
}

impl NewFiles for Dir {
    fn main(&self) -> Result<Arc<dyn Storage>> {
        self.beside(&self.main)
    }

    fn beside(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::create(&self.path.join(name), FileOptions::default())?))
    }

    fn existing(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.open_storage(name, Access::Write)
    }
}

/// All guest bytes.
pub(super) fn content(node: &Node) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(node.virtual_size()).unwrap()];
    node.read(0, &mut all).unwrap();
    all
}

/// Bytes that compress somewhat and differ everywhere.
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let run = 1 + usize::from(state.to_le_bytes()[3] & 15);
        let room = len - out.len();
        out.extend(std::iter::repeat_n(state.to_le_bytes()[0], run.min(room)));
    }
    out
}

/// Writes one packed grain, as convert does.
pub(super) fn write_packed(image: &dyn Image, at: u64, unit: &[u8]) -> Result<()> {
    use crate::num::{GuestOffset, len_u64};
    let mut encoder = image.encoder(crate::format::Level::Default).unwrap();
    let mut out = Vec::new();
    encoder.encode(GuestOffset(at), unit, &mut out)?;
    image.note_write(GuestOffset(at), len_u64(unit.len()))?;
    let grant = image.prepare_encoded(GuestOffset(at), len_u64(out.len()))?;
    image.storage(grant.storage).write_at(grant.offset.0, &out)?;
    image.commit_write(grant)
}
