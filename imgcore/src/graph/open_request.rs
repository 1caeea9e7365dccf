//! What a caller asks to open: plain data, made from a file name or from an `--image-opts` tree.

use super::gate::Policy;
use crate::format::{Access, SnapshotSelector};
use crate::storage::CacheMode;

/// Where the file below an image comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackingChoice {
    /// The image says.
    #[default]
    Recorded,
    /// None, whatever the image says (`backing: null`).
    Nothing,
    /// This one, whatever the image says.
    Given(Box<OpenRequest>),
}

/// What becomes of discard requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Ignored.
    #[default]
    Ignore,
    /// Carried out.
    Unmap,
}

/// Whether writes of zero bytes are turned into zero requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// No.
    #[default]
    Off,
    /// Yes, keeping space reserved.
    On,
    /// Yes, giving space back where discarding is allowed.
    Unmap,
}

/// One image to open, with everything that the user said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenRequest {
    /// The file, as the user wrote it (a `file:` prefix already taken off).
    pub filename: String,
    /// The name in messages and reports, where it is not `filename` (a `json:{...}` description).
    pub shown: Option<String>,
    /// The driver; probed when not given.
    pub driver: Option<String>,
    /// The file below.
    pub backing: BackingChoice,
    /// An external data file given explicitly.
    pub data_file: Option<Box<OpenRequest>>,
    /// Options of the driver (`offset`, `size`, `lazy-refcounts`, ...), flattened and as text.
    pub options: Vec<(String, String)>,
    /// Cache mode of this node, where it differs from the command's.
    pub cache: Option<CacheMode>,
    /// Sharing of this node, where it differs from the command's.
    pub sharing: Option<Sharing>,
    /// `read-only`, where given.
    pub read_only: Option<bool>,
    /// `discard`, where given.
    pub discard: Option<Discard>,
    /// `detect-zeroes`.
    pub detect_zeroes: DetectZeroes,
}

impl OpenRequest {
    /// A file by its name, driver probed.
    pub fn file(filename: impl Into<String>) -> Self {
        OpenRequest { filename: filename.into(), ..OpenRequest::default() }
    }

    /// With an explicit driver, if one is given.
    #[must_use]
    pub fn with_driver(mut self, driver: Option<&str>) -> Self {
        self.driver = driver.map(str::to_owned);
        self
    }

    /// The name to show to people.
    pub fn name(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.filename)
    }
}

/// Whether opening takes QEMU's locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Locks are taken.
    #[default]
    Locked,
    /// No locks: the image may change while it is read (`-U`).
    Force,
}

/// How much of a chain to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// All of it.
    #[default]
    Chain,
    /// The named image alone.
    Top,
}

/// What the image is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Reading and writing guest data.
    #[default]
    Data,
    /// Looking at the header: a missing external data file is no error.
    Header,
    /// Checking: damage must not keep it from being opened, nothing is repaired on the way.
    Check,
    /// A private, unfinished target: the order of writes does not matter.
    Scratch,
}

/// How to open it.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// For reading, or for writing too. Files below are opened for reading.
    pub access: Access,
    /// Cache mode.
    pub cache: CacheMode,
    /// Locks.
    pub sharing: Sharing,
    /// How much of the chain.
    pub depth: Depth,
    /// An internal snapshot to show instead of the present state (of the top image).
    pub snapshot: Option<SnapshotSelector>,
    /// What for.
    pub purpose: Purpose,
    /// Which names inside images are followed.
    pub policy: Policy,
}

impl OpenOptions {
    /// The same, for writing.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.access = Access::Write;
        self
    }
}
