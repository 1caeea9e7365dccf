//! What can be done to a host, and what is remembered of before.

use serde::{Deserialize, Serialize};

/// Whether memory is compacted and the write repeated when a pool does not reach the wanted number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compaction {
    /// A plain write; the kernel must take the value.
    No,
    /// A hugepage pool.
    AndRetry,
}

/// One change. Paths are the host's, not this machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Creates or replaces a file.
    File {
        /// Where.
        path: String,
        /// The new text.
        text: String,
        /// Permission bits of a new file; an existing one keeps its own.
        mode: u32,
    },
    /// Writes a value to a kernel file.
    Value {
        /// Where.
        path: String,
        /// What.
        value: String,
        /// For hugepage pools.
        compaction: Compaction,
    },
    /// Moves an interrupt; the kernel refuses those that belong to one CPU by their nature, which stay.
    Interrupt {
        /// Its smp_affinity_list.
        path: String,
        /// The CPUs it may come to.
        cpus: String,
    },
    /// Sets permission bits and group.
    Mode {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Group number.
        group: u32,
    },
    /// Makes a folder (control groups).
    Folder {
        /// Where.
        path: String,
    },
    /// Loads a module; a loaded one with other parameters is unloaded first.
    Module {
        /// Name.
        name: String,
        /// Parameters.
        parameters: Vec<(String, String)>,
    },
    /// Mounts.
    Mount {
        /// Device or name.
        source: String,
        /// Where.
        point: String,
        /// File system type.
        kind: String,
        /// Options for the file system.
        options: String,
    },
    /// Makes a swap file of this size, or uses a partition that is there, and switches it on.
    Swap {
        /// File or block device.
        path: String,
        /// Bytes of a new file; 0 for a partition.
        size: u64,
    },
    /// Runs a program that rewrites files.
    Tool {
        /// Program and arguments.
        command: Vec<String>,
        /// The files it rewrites.
        rewrites: Vec<String>,
        /// Kernel options that each boot entry in them must hold afterwards.
        expect: Vec<String>,
    },
    /// Changes nothing: reads back what the boot loader will read, and fails when an entry does not parse or does not
    /// hold the words, so that everything before is undone.
    BootEntries {
        /// The loader's files.
        files: Vec<String>,
        /// Words that each entry of this system must hold.
        expect: Vec<String>,
    },
    /// Switches a controller on for the groups below a control group (version 2).
    Controller {
        /// The group's cgroup.subtree_control.
        path: String,
        /// The controller.
        name: String,
    },
    /// Changes links, addresses, routes or packet filters.
    Net(crate::net::NetChange),
}

/// A file as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// Contents in hexadecimal, so that every byte survives.
    pub hex: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change: seconds and nanoseconds.
    pub mtime: (i64, i64),
}

/// What was before an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "was")]
pub enum Before {
    /// Files, None where there was none, and folders that had to be made (outermost first).
    Files {
        /// Path and state.
        files: Vec<(String, Option<FileState>)>,
        /// Folders.
        made: Vec<String>,
    },
    /// A kernel file's value.
    Value {
        /// As to be written back.
        value: String,
    },
    /// Permission bits and group.
    Mode {
        /// Permission bits.
        mode: u32,
        /// Group.
        group: u32,
    },
    /// Nothing is changed, so nothing is remembered.
    Nothing,
    /// Whether a controller was on.
    Controller {
        /// It was.
        on: bool,
    },
    /// Whether the folder was there.
    Folder {
        /// It was.
        there: bool,
    },
    /// The module's state.
    Module {
        /// It was loaded.
        loaded: bool,
        /// With these parameters (only those that the action sets).
        parameters: Vec<(String, String)>,
    },
    /// Whether it was mounted, and folders to be made.
    Mount {
        /// It was.
        mounted: bool,
        /// Folders.
        made: Vec<String>,
    },
    /// The swap area.
    Swap {
        /// It was in use.
        active: bool,
        /// The file was there.
        there: bool,
        /// First page of a partition, in hexadecimal, as the signature overwrites it.
        page: String,
    },
    /// Links, addresses, routes, filters.
    Net(crate::net::NetBefore),
}
