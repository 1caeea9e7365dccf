//! Making a new image of any driver in an [`Output`].

use std::os::unix::fs::FileTypeExt;

use super::output::Output;
use super::output_space::ensure_space;
use crate::format::{BackingRef, CreateContext, CreateOptions, Driver, Image};
use crate::{Error, Result};

/// A new image, all wishes checked.
pub struct NewImage<'a> {
    /// Its format.
    pub driver: &'static dyn Driver,
    /// Size of the guest's disk in bytes.
    pub size: u64,
    /// Options of the driver.
    pub options: &'a CreateOptions,
    /// The file below, as it will be recorded.
    pub backing: Option<BackingRef>,
    /// The same, opened.
    pub backing_image: Option<&'a dyn Image>,
}

/// Makes an empty image in `output`, which the caller commits.
pub fn create(new: &NewImage<'_>, output: &Output) -> Result<()> {
    refuse_device(new, output)?;
    let reserved = matches!(new.options.text("preallocation"), Some("falloc" | "full"));
    if reserved {
        ensure_space(output.target(), &output.folder(), new.size)?;
    }
    let cx = CreateContext {
        files: output,
        file_name: output.file_name(),
        size: new.size,
        options: new.options,
        backing: new.backing.clone(),
        backing_image: new.backing_image,
    };
    new.driver.create(&cx).map_err(|e| too_large(new, e))
}

/// A VMDK finds its end, and a streamed one its footer, by the length of its file; a block device has no
/// such end, and what lies on it would be read as tables.
fn refuse_device(new: &NewImage<'_>, output: &Output) -> Result<()> {
    let device = std::fs::metadata(output.target()).is_ok_and(|m| m.file_type().is_block_device());
    let name = new.driver.name();
    if !device || matches!(name, "raw" | "qcow2") {
        return Ok(());
    }
    Err(Error::unsupported(format!("a block device cannot hold the format '{name}'"))
        .at_path(output.target())
        .hint("write raw or qcow2 to the device, or the image to a file"))
}

/// QEMU's words for a size that a format cannot hold.
fn too_large(new: &NewImage<'_>, error: Error) -> Error {
    if error.raw_errno() != Some(libc::EFBIG)
        || error.message() != Error::errno(libc::EFBIG).message()
    {
        return error;
    }
    let clusters = new.driver.create_options().iter().any(|o| o.name == "cluster_size");
    let advice = if clusters { " (try using a larger cluster size)" } else { "" };
    let name = new.driver.name();
    let told = Error::new(
        error.kind(),
        format!("The image size is too large for file format '{name}'{advice}"),
    );
    match error.path() {
        // It was the file that could not become so long.
        Some(path) => told.at_path(path.to_owned()).hint(
            "the file system, or the limit on file sizes (ulimit -f), does not allow a file of this size",
        ),
        None => told,
    }
}
