//! Trees as text: a host's files and facts in one readable file, for bug reports and tests.
//!
//! `=== /path` begins a file whose lines follow, `=== /path -> target` is a symbolic link, `=== facts` the
//! recorded facts as JSON; lines before the first `===` are comments. Contents end with a newline or are empty.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::facts::Facts;
use super::{Host, Touch};
use crate::error::{Error, Result};

/// A tree in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Contents by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Symbolic links: target by path.
    pub links: BTreeMap<String, String>,
    /// What no file tells.
    pub facts: Facts,
}

impl Tree {
    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self> {
        let mut tree = Self::default();
        let mut sections = text.split("\n=== ");
        // What comes before the first section is comment, unless the text begins with one.
        let head = sections.next().unwrap_or_default();
        let first = head.strip_prefix("=== ");
        for section in first.into_iter().chain(sections) {
            let (title, body) = section.split_once('\n').unwrap_or((section, ""));
            if title == "facts" {
                tree.facts = serde_json::from_str(body).map_err(|error| {
                    Error::usage(format!("facts of the tree are damaged: {error}"))
                })?;
            } else if let Some((path, target)) = title.split_once(" -> ") {
                tree.links.insert(path.to_owned(), target.to_owned());
            } else {
                let mut body = body.to_owned();
                if !body.is_empty() && !body.ends_with('\n') {
                    body.push('\n');
                }
                tree.files.insert(title.to_owned(), body.into_bytes());
            }
        }
        let names = tree.files.keys().chain(tree.links.keys());
        if let Some(bad) = names
            .into_iter()
            .find(|name| !name.starts_with('/') || name.split('/').any(|part| part == ".."))
        {
            return Err(Error::usage(format!("'{bad}' is no path of a tree")));
        }
        Ok(tree)
    }

    /// The text form.
    pub fn text(&self, comment: &str) -> Result<String> {
        let mut out = String::new();
        for line in comment.lines() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# {line}");
        }
        for (path, bytes) in &self.files {
            let text = String::from_utf8_lossy(bytes);
            let _ = writeln!(out, "=== {path}");
            out.push_str(&text);
            if !text.is_empty() && !text.ends_with('\n') {
                out.push('\n');
            }
        }
        for (path, target) in &self.links {
            let _ = writeln!(out, "=== {path} -> {target}");
        }
        let facts = serde_json::to_string(&self.facts)
            .map_err(|error| Error::host(format!("facts cannot be written: {error}")))?;
        let _ = writeln!(out, "=== facts\n{facts}");
        Ok(out)
    }

    /// Writes it below a folder, facts as `facts.json` at its top.
    pub fn write_below(&self, root: &Path) -> Result<()> {
        let write = |path: &Path, bytes: &[u8]| -> std::io::Result<()> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(path, bytes)
        };
        for (name, bytes) in &self.files {
            let path = root.join(name.trim_start_matches('/'));
            write(&path, bytes)
                .map_err(|error| Error::io("tree cannot be written", &path, error))?;
        }
        for (name, target) in &self.links {
            let path = root.join(name.trim_start_matches('/'));
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.and_then(|()| std::os::unix::fs::symlink(target, &path))
                .map_err(|error| Error::io("tree cannot be written", &path, error))?;
        }
        let path = root.join("facts.json");
        let facts = serde_json::to_vec(&self.facts)
            .map_err(|error| Error::host(format!("facts cannot be written: {error}")))?;
        write(&path, &facts).map_err(|error| Error::io("tree cannot be written", &path, error))
    }

    /// What the checks have read of a host so far, and its facts.
    pub fn collect(host: &Host) -> Self {
        let mut files = BTreeMap::new();
        for (path, touch) in host.touched() {
            // What was only looked for (folders, devices, programs) is kept as an empty file.
            let bytes = match touch {
                Touch::Found => Vec::new(),
                Touch::Read => host.bytes(&path).unwrap_or_default(),
            };
            files.insert(path, bytes);
        }
        let names: Vec<String> = files.keys().cloned().collect();
        for pair in names.windows(2) {
            // A folder shows up as its own entry when something below it was read too.
            if pair[1].starts_with(&format!("{}/", pair[0])) {
                files.remove(&pair[0]);
            }
        }
        Self { files, links: host.touched_links(), facts: Facts::record(host) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let text = "# comment\n=== /a/b\none\ntwo\n=== /c\n=== /l -> ../a\n";
        let tree = Tree::parse(text).unwrap();
        assert_eq!(tree.files["/a/b"], b"one\ntwo\n");
        assert_eq!(tree.files["/c"], b"");
        assert_eq!(tree.links["/l"], "../a");
        assert_eq!(Tree::parse(&tree.text("comment").unwrap()).unwrap(), tree);
        assert!(Tree::parse("=== /a/../../b\nx\n").is_err());
        assert!(Tree::parse("=== facts\n{").is_err());
    }
}
