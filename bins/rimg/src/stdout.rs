//! `-` as the target: the image goes to standard output.
//!
//! A raw disk is written as it is read. Other formats are made in a folder of our own first, because they are
//! not written from front to back; the folder goes away whatever happens but a kill.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use imgcore::Error;

use crate::failure::Failure;

/// The folder.
pub struct Staged {
    folder: PathBuf,
}

/// Refuses to write an image to a terminal.
pub fn check() -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        let text = "Standard output is a terminal; images are not written there";
        return Err(Error::invalid(text)
            .hint("send it somewhere with | or >; a file of this name is ./-")
            .into());
    }
    Ok(())
}

impl Staged {
    /// Makes a folder below `place` that only we may enter.
    pub fn new(place: &Path) -> Result<Self, Failure> {
        let folder = place.join(format!("rimg-stdout-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|e| {
            let text = format!("Could not create '{}'", folder.display());
            Failure::from(Error::io(&e).context(text))
        })?;
        Ok(Staged { folder })
    }

    /// Where the image is made.
    pub fn image(&self) -> String {
        self.folder.join("image").to_string_lossy().into_owned()
    }

    /// Sends the image.
    pub fn send(&self) -> Result<(), Failure> {
        let failed = |e: std::io::Error| {
            Failure::from(Error::io(&e).context("Could not write to standard output"))
        };
        let others = std::fs::read_dir(&self.folder).map_err(failed)?.count();
        if others > 1 {
            return Err(Failure::new("An image of several files cannot go to standard output"));
        }
        let mut file = File::open(self.image()).map_err(failed)?;
        let mut out = std::io::stdout().lock();
        std::io::copy(&mut file, &mut out).and_then(|_| out.flush()).map_err(failed)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
