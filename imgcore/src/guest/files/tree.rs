//! File systems put together as the guest would mount them, and paths walked through them.

use super::{Entry, FileId, FileKind, FileSystem, Stat, read_whole};
use crate::{Error, ErrorKind, Result};

/// Symbolic links followed on the way to one file, as many as Linux allows.
const MAX_LINKS: usize = 40;
/// Names on the way to one file.
const MAX_NAMES: usize = 512;

/// A file that a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    mount: usize,
    /// The file in that file system.
    pub id: FileId,
    /// Kind and size.
    pub stat: Stat,
}

struct Mount<'a> {
    at: Vec<String>,
    fs: &'a dyn FileSystem,
    root: FileId,
}

/// Some file systems as one tree.
#[derive(Default)]
pub struct Tree<'a> {
    mounts: Vec<Mount<'a>>,
}

impl<'a> Tree<'a> {
    /// With this one at its root.
    pub fn new(root: &'a dyn FileSystem) -> Self {
        let mut tree = Tree::default();
        tree.mount("/", root, root.root());
        tree
    }

    /// Adds a file system (or a folder of one) at a path, over what is there.
    pub fn mount(&mut self, path: &str, fs: &'a dyn FileSystem, root: FileId) {
        let at = names(path).map(str::to_owned).collect();
        self.mounts.push(Mount { at, fs, root });
    }

    /// The file system at the root.
    pub fn root(&self) -> Option<&'a dyn FileSystem> {
        self.mounts.first().map(|m| m.fs)
    }

    /// What a path leads to, through symbolic links; `None` when there is nothing.
    ///
    /// # Errors
    /// When a folder on the way cannot be read, or links lead on and on.
    pub fn find(&self, path: &str) -> Result<Option<Found>> {
        let mut todo: Vec<String> = names(path).map(str::to_owned).collect();
        todo.reverse();
        let mut here: Vec<String> = Vec::new();
        let mut at = vec![match self.start(&here)? {
            Some(found) => found,
            None => return Ok(None),
        }];
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps > MAX_NAMES {
                return Err(too_far(path));
            }
            match name.as_str() {
                "." => continue,
                ".." => {
                    if at.len() > 1 {
                        at.pop();
                        here.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(parent) = at.last().copied() else { return Ok(None) };
            if parent.stat.kind != FileKind::Folder {
                return Ok(None);
            }
            here.push(name);
            let found = match self.start(&here)? {
                Some(found) => found,
                None => {
                    let Some(mount) = self.mounts.get(parent.mount) else { return Ok(None) };
                    let name = here.last().map_or("", String::as_str);
                    let Some(id) = mount.fs.lookup(parent.id, name)? else { return Ok(None) };
                    Found { mount: parent.mount, id, stat: mount.fs.stat(id)? }
                }
            };
            if found.stat.kind != FileKind::Link {
                at.push(found);
                continue;
            }
            here.pop();
            links += 1;
            if links > MAX_LINKS {
                return Err(too_far(path));
            }
            let target = self.fs(found)?.link(found.id)?;
            if target.starts_with('/') {
                at.truncate(1);
                here.clear();
            }
            let mut more: Vec<String> = names(&target).map(str::to_owned).collect();
            more.reverse();
            todo.append(&mut more);
        }
        Ok(at.pop())
    }

    /// The root of what was mounted last exactly here.
    fn start(&self, here: &[String]) -> Result<Option<Found>> {
        let Some(mount) = self.mounts.iter().rposition(|m| m.at == here) else { return Ok(None) };
        let Mount { fs, root, .. } = &self.mounts[mount];
        Ok(Some(Found { mount, id: *root, stat: fs.stat(*root)? }))
    }

    /// The file system that a file was found in.
    ///
    /// # Errors
    /// When it was found in another tree.
    pub fn fs(&self, found: Found) -> Result<&'a dyn FileSystem> {
        self.mounts.get(found.mount).map(|m| m.fs).ok_or_else(|| Error::invalid("not of this tree"))
    }

    /// Whether a path leads to something; what cannot be read is not there.
    pub fn exists(&self, path: &str) -> bool {
        matches!(self.find(path), Ok(Some(_)))
    }

    /// All of a file; `None` when there is no file of that name.
    ///
    /// # Errors
    /// When it has more than `limit` bytes, or cannot be read.
    pub fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        let named = |e: Error| e.context(format!("Could not read '{path}' of the guest"));
        let Some(found) = self.find(path).map_err(named)? else { return Ok(None) };
        if found.stat.kind != FileKind::File {
            return Ok(None);
        }
        read_whole(self.fs(found)?, found.id, limit).map(Some).map_err(named)
    }

    /// A text file; `None` when there is none of that name that can be read.
    pub fn text(&self, path: &str, limit: usize) -> Option<String> {
        let bytes = self.read(path, limit).ok()??;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a folder, sorted, at most `limit`; none when there is no such folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self, path: &str, limit: usize) -> Result<Vec<Entry>> {
        let Some(found) = self.find(path)? else { return Ok(Vec::new()) };
        if found.stat.kind != FileKind::Folder {
            return Ok(Vec::new());
        }
        let mut entries = self.fs(found)?.list(found.id, limit)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The names in a folder; none when it cannot be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        self.list(path, super::MAX_ENTRIES)
            .unwrap_or_default()
            .into_iter()
            .map(|e| e.name)
            .collect()
    }

    /// Files below a folder, with their paths from it: at most `limit`, at most `depth` folders deep.
    /// What cannot be read is left out.
    pub fn below(&self, path: &str, depth: usize, limit: usize) -> Vec<String> {
        let mut all = Vec::new();
        let mut todo = vec![(String::new(), depth)];
        // Folders looked at are bounded as well: a folder may be named in itself.
        for _ in 0..limit {
            let Some((folder, depth)) = todo.pop() else { break };
            for name in self.names(&format!("{path}/{folder}")) {
                let inner = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                match self.find(&format!("{path}/{inner}")) {
                    Ok(Some(f)) if f.stat.kind == FileKind::Folder && depth > 0 => {
                        todo.push((inner, depth - 1));
                    }
                    Ok(Some(f)) if f.stat.kind == FileKind::File => all.push(inner),
                    _ => {}
                }
                if all.len() >= limit {
                    return all;
                }
            }
        }
        all
    }
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|n| !n.is_empty())
}

fn too_far(path: &str) -> Error {
    Error::new(ErrorKind::TooLarge, format!("'{path}' leads on and on through symbolic links"))
}
