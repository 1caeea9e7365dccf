//! Overlays that live as long as they are open (`snapshot=on`).
//!
//! The overlay is a qcow2 file without a name: made with `O_TMPFILE`, or unlinked before anything is
//! written into it. However the process ends, nothing is left behind, and nobody else can open it.
//! Flushes are not passed on: what is thrown away need not be durable.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::Node;
use crate::format::{
    self, Access, BackingRef, CreateContext, CreateOptions, NewFiles, NoGate, OpenContext,
};
use crate::storage::{CacheMode, FileOptions, FileStorage, Storage};
use crate::{Error, Result};

/// An empty overlay over `below`, in a file without a name in `folder`.
///
/// # Errors
/// When no file can be made there.
pub fn overlay(folder: &Path, below: Arc<Node>) -> Result<Arc<Node>> {
    let shown = format!("{} (temporary overlay)", below.name());
    let options = FileOptions { writable: true, cache: CacheMode::Unsafe };
    let file = unnamed(folder)?;
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::from_file(file, shown, options)?);
    let driver = format::driver("qcow2")
        .ok_or_else(|| Error::unsupported("qcow2 is needed for temporary overlays"))?;
    driver.create(&CreateContext {
        files: &Single(&storage),
        file_name: "",
        size: below.virtual_size(),
        options: &CreateOptions::default(),
        backing: Some(BackingRef {
            name: below.name().chars().take(1000).collect(),
            format: Some(below.image().format_name().to_owned()),
        }),
        backing_image: None,
    })?;
    let image = driver.open(OpenContext {
        storage,
        access: Access::Write,
        gate: &NoGate,
        snapshot: None,
        data_file: None,
        scratch: true,
        header_only: false,
        for_check: false,
        options: &[],
    })?;
    let name = below.name().to_owned();
    Ok(Arc::new(Node::new(name, image, Some(below), Access::Write)))
}

/// A file that no folder names.
fn unnamed(folder: &Path) -> Result<File> {
    let says = |e: &std::io::Error| {
        Error::io(e)
            .context(format!("cannot make a temporary overlay in '{}'", folder.display()))
            .at_path(folder.to_string_lossy())
            .hint("name a folder with enough space: TMPDIR=/some/folder")
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
        Ok(file) => return Ok(file),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {}
        Err(e) => return Err(says(&e)),
    }
    // File systems without O_TMPFILE: a name that exists for a moment.
    let process = std::process::id();
    for n in 0..1000 {
        let path = folder.join(format!(".overlay-{process}-{n}"));
        match options.clone().create_new(true).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path).map_err(|e| says(&e))?;
                return Ok(file);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(says(&e)),
        }
    }
    Err(says(&std::io::ErrorKind::AlreadyExists.into()))
}

struct Single<'a>(&'a Arc<dyn Storage>);

impl NewFiles for Single<'_> {
    fn main(&self) -> Result<Arc<dyn Storage>> {
        Ok(Arc::clone(self.0))
    }
    fn beside(&self, _name: &str) -> Result<Arc<dyn Storage>> {
        Err(Error::errno(libc::ENOTSUP))
    }
    fn existing(&self, _name: &str) -> Result<Arc<dyn Storage>> {
        Err(Error::errno(libc::ENOTSUP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::open::{OpenRequest, open};

    #[test]
    fn what_is_written_stays_in_the_overlay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        std::fs::write(&path, vec![7u8; 200_000]).unwrap();
        let request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
        let below = open(&request, &crate::graph::open::OpenOptions::default()).unwrap();
        let top = overlay(dir.path(), below).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no name is left");
        top.write(70_000, &[1; 1000]).unwrap();
        let mut buf = [0; 4];
        top.read(69_998, &mut buf).unwrap();
        assert_eq!(buf, [7, 7, 1, 1]);
        top.write_zeroes(0, 65_536, crate::format::ZeroSpace::Unmap).unwrap();
        top.discard(65_536, 65_536).unwrap();
        top.read(0, &mut buf).unwrap();
        assert_eq!(buf, [0; 4]);
        top.read(69_998, &mut buf).unwrap();
        assert_eq!(buf, [0; 4], "discarded bytes do not show the file below");
        top.flush().unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|b| *b == 7));
        let e = overlay(&dir.path().join("no"), top).unwrap_err();
        assert!(e.hints().join(" ").contains("TMPDIR"), "{e:?}");
    }
}
