//! Disks made with the tools that people make theirs with.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use super::disk::GuestDisk;
use super::parts::{Layout, SectorSize};
use crate::storage::MemoryStorage;

/// A folder for one test.
pub(crate) struct Sandbox(tempfile::TempDir);

impl Sandbox {
    pub fn new() -> Self {
        Sandbox(tempfile::tempdir().unwrap())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of zeroes.
    pub fn blank(&self, name: &str, len: u64) {
        std::fs::File::create(self.file(name)).unwrap().set_len(len).unwrap();
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub fn get(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    /// Copies a volume's bytes into a disk.
    pub fn insert(&self, disk: &str, at: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(self.file(disk)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    pub fn disk(&self, name: &str) -> GuestDisk {
        memory_disk(self.get(name))
    }

    pub fn layout(&self, name: &str) -> (GuestDisk, Layout) {
        let disk = self.disk(name);
        let layout = Layout::read(&disk, SectorSize::Detect).unwrap();
        (disk, layout)
    }

    /// Runs a tool in the folder; `None` (told) where it is not installed.
    pub fn try_tool(&self, name: &str, args: &[&str], input: &str) -> Option<Output> {
        let path = std::env::var("PATH").unwrap_or_default();
        let found = std::env::split_paths(&format!("{path}:/usr/sbin:/sbin"))
            .map(|d| d.join(name))
            .find(|p| p.is_file());
        let Some(program) = found else {
            eprintln!("SKIPPED {name} {args:?}: it is not installed");
            return None;
        };
        let mut child = Command::new(program)
            .args(args)
            .current_dir(self.0.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A tool that reads nothing may be gone by now.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Some(child.wait_with_output().unwrap())
    }

    /// Runs a tool that must succeed; what it printed.
    pub fn tool(&self, name: &str, args: &[&str], input: &str) -> Option<String> {
        let out = self.try_tool(name, args, input)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{name} {args:?}: {text}{err}");
        Some(text)
    }
}

/// Bytes as a disk.
pub(crate) fn memory_disk(bytes: Vec<u8>) -> GuestDisk {
    GuestDisk::from_storage(Arc::new(MemoryStorage::new("memory", bytes))).unwrap()
}
