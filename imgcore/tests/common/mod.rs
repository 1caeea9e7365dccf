//! Helpers of the integration tests: files in a folder, images made and opened without the graph's
//! policy, random numbers, the oracle.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::crypto::SecretBytes;
use imgcore::format::{
    self, Access, BackingRef, CreateContext, CreateOptions, NewFiles, OpenContext, OpenGate,
};
use imgcore::graph::Node;
use imgcore::storage::{FileOptions, FileStorage, Storage};
use imgcore::{Error, Result};

/// Files in one folder.
pub struct Folder(pub PathBuf, pub String);

impl NewFiles for Folder {
    fn main(&self) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::create(&self.0.join(&self.1), FileOptions::default())?))
    }
    fn beside(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::create(&self.0.join(name), FileOptions::default())?))
    }
    fn existing(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.open_storage(name, Access::Write)
    }
    fn passphrase(&self, _: Option<&str>) -> Result<Option<SecretBytes>> {
        Ok(Some(SecretBytes::new(b"abc".to_vec())))
    }
}

impl OpenGate for Folder {
    fn passphrase(&self, _: Option<&str>) -> Result<Option<SecretBytes>> {
        NewFiles::passphrase(self, None)
    }
    fn open_storage(&self, reference: &str, access: Access) -> Result<Arc<dyn Storage>> {
        if reference.contains('/') {
            return Err(Error::invalid("outside"));
        }
        let options = FileOptions { writable: access == Access::Write, ..FileOptions::default() };
        Ok(Arc::new(FileStorage::open(&self.0.join(reference), options)?))
    }
}

/// Creates `dir/name` with `key=value` options.
pub fn create(
    dir: &Path,
    name: &str,
    fmt: &str,
    size: u64,
    options: &[(&str, &str)],
    backing: Option<(&str, &str)>,
) -> Result<()> {
    let driver = format::driver(fmt).unwrap();
    let given: Vec<(String, String)> =
        options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let options = CreateOptions::parse(driver.create_options(), &given)?;
    let files = Folder(dir.to_owned(), name.to_owned());
    driver.create(&CreateContext {
        files: &files,
        file_name: name,
        size,
        options: &options,
        backing: backing
            .map(|(n, f)| BackingRef { name: n.to_owned(), format: Some(f.to_owned()) }),
        backing_image: None,
    })
}

/// Opens `dir/name` and what is below it.
pub fn open(dir: &Path, name: &str, fmt: &str, access: Access) -> Result<Arc<Node>> {
    let gate = Folder(dir.to_owned(), name.to_owned());
    let storage = gate.open_storage(name, access)?;
    let image = format::driver(fmt).unwrap().open(OpenContext {
        storage,
        access,
        gate: &gate,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check: false,
        options: &[],
    })?;
    let below = match image.backing() {
        Some(b) => Some(open(dir, &b.name, b.format.as_deref().unwrap_or("raw"), Access::Read)?),
        None => None,
    };
    Ok(Arc::new(Node::new(name, image, below, access)))
}

/// A small generator of random numbers with a seed (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// Runs the installed qemu-img; `None` when there is none.
pub fn qemu_img(dir: &Path, args: &[&str]) -> Option<std::process::Output> {
    std::process::Command::new("qemu-img").current_dir(dir).args(args).output().ok()
}

/// Panics unless the installed qemu-img finds no error and no leak.
pub fn assert_checks_clean(dir: &Path, name: &str, fmt: &str) {
    let Some(out) = qemu_img(dir, &["check", "-f", fmt, name]) else {
        eprintln!("SKIPPED: no qemu-img to check {name}");
        return;
    };
    assert!(
        out.status.success(),
        "{name}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
