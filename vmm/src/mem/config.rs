//! Memory as plain data.

use std::path::PathBuf;

use crate::{Error, Result};

/// Memory when nothing is said: 128 MiB.
pub const DEFAULT_SIZE: u64 = 128 << 20;
/// Guest pages.
pub const PAGE: u64 = 4096;

/// What memory is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Anonymous memory of this process.
    #[default]
    Anonymous,
    /// A file, or a folder (usually hugetlbfs) in which an unnamed file is made.
    File(PathBuf),
    /// A memory file descriptor; with a size, of huge pages of that size.
    Memfd {
        /// Bytes of a huge page (2 MiB or 1 GiB); `None` for ordinary pages.
        huge_page: Option<u64>,
    },
}

/// Whether other processes that map the same file see what the guest stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// They do not.
    #[default]
    Private,
    /// They do (vhost-user needs it).
    Shared,
}

/// How a piece of memory is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The name of the `-object`, for messages.
    pub id: String,
    /// Of what.
    pub source: Source,
    /// Seen by others?
    pub sharing: Sharing,
    /// All pages are allocated before the guest starts, so that it cannot fail later.
    pub prealloc: bool,
    /// Offered to KSM (`mem-merge`).
    pub merge: bool,
    /// Part of core dumps.
    pub dump: bool,
}

impl Default for Backend {
    fn default() -> Self {
        Backend {
            id: "pc.ram".to_owned(),
            source: Source::default(),
            sharing: Sharing::default(),
            prealloc: false,
            merge: true,
            dump: true,
        }
    }
}

/// A NUMA node of the guest. Nodes follow each other in guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its memory in bytes; may be 0.
    pub size: u64,
    /// Its vCPUs.
    pub cpus: Vec<u32>,
    /// What its memory is made of.
    pub backend: Backend,
}

/// All of a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// At least one node. One node means: no NUMA tables for the guest, unless `numa`.
    pub nodes: Vec<Node>,
    /// `-numa` was given.
    pub numa: bool,
    /// Distances between nodes; row-major, empty for the usual 10 and 20.
    pub distances: Vec<Vec<u8>>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig::simple(DEFAULT_SIZE, Backend::default())
    }
}

impl MemoryConfig {
    /// One node without NUMA.
    pub fn simple(size: u64, backend: Backend) -> Self {
        MemoryConfig {
            nodes: vec![Node { size, cpus: Vec::new(), backend }],
            numa: false,
            distances: Vec::new(),
        }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.nodes.iter().map(|n| n.size).fold(0, u64::saturating_add)
    }

    /// The distance between two nodes, 10 to oneself and 20 to others unless said otherwise.
    pub fn distance(&self, from: usize, to: usize) -> u8 {
        let said = |a: usize, b: usize| {
            self.distances.get(a).and_then(|r| r.get(b)).copied().filter(|d| *d != 0)
        };
        said(from, to).or_else(|| said(to, from)).unwrap_or(if from == to { 10 } else { 20 })
    }

    /// Refuses what no guest can use.
    pub fn check(&self, vcpus: u32) -> Result<()> {
        if self.size() < 1 << 20 {
            return Err(Error::invalid(format!("{} bytes of memory are too few", self.size()))
                .hint("Give at least 1M (-m 1M); Linux wants 64M and more"));
        }
        if self.size() > 1 << 46 {
            return Err(Error::new(
                crate::ErrorKind::TooLarge,
                format!("{} bytes of memory are more than a guest can address (64T)", self.size()),
            ));
        }
        for (i, node) in self.nodes.iter().enumerate() {
            if !node.size.is_multiple_of(PAGE) {
                return Err(Error::invalid(format!(
                    "memory of node {i} is {} bytes, which is no multiple of {PAGE}",
                    node.size
                )));
            }
            if let Some(cpu) = node.cpus.iter().find(|c| **c >= vcpus) {
                return Err(Error::invalid(format!(
                    "CPU index ({cpu}) should be smaller than maxcpus ({vcpus})"
                ))
                .hint(format!("Correct cpus= of NUMA node {i}, or raise -smp")));
            }
            let twice =
                self.nodes[..i].iter().find_map(|n| n.cpus.iter().find(|c| node.cpus.contains(c)));
            if let Some(cpu) = twice {
                return Err(Error::invalid(format!("CPU {cpu} is in two NUMA nodes")));
            }
        }
        for i in 0..self.nodes.len() {
            if self.distance(i, i) != 10 {
                return Err(Error::invalid(format!(
                    "distance of NUMA node {i} to itself is not 10"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_say_what_is_wrong() {
        let mut m = MemoryConfig::default();
        assert!(m.check(1).is_ok());
        m.nodes[0].cpus = vec![0, 4];
        assert!(m.check(4).unwrap_err().to_string().contains("CPU index (4)"));
        m.nodes[0].cpus = vec![0];
        m.nodes.push(Node { size: 4096, cpus: vec![0], ..Node::default() });
        assert!(m.check(4).unwrap_err().to_string().contains("two NUMA nodes"));
        assert!(MemoryConfig::simple(4096, Backend::default()).check(1).is_err());
    }

    #[test]
    fn distances_have_defaults_and_mirror() {
        let mut m = MemoryConfig::default();
        m.nodes.push(Node::default());
        assert_eq!((m.distance(0, 0), m.distance(0, 1)), (10, 20));
        m.distances = vec![vec![0, 31]];
        assert_eq!((m.distance(0, 1), m.distance(1, 0)), (31, 31));
    }
}
