//! `amend`: changing options of an existing image.

use super::{ImageArg, Job};
use crate::format::{self, Amendment, CreateOptions};
use crate::graph::open::Depth;
use crate::{Error, Result};

/// Whether dangerous changes are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// No.
    #[default]
    No,
    /// Yes.
    Yes,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct AmendOptions {
    /// The image.
    pub image: ImageArg,
    /// `-o`, as name and text.
    pub options: Vec<(String, String)>,
    /// `--force`.
    pub force: Force,
}

/// Changes options of an image.
pub fn amend(options: &AmendOptions, job: &Job<'_>) -> Result<()> {
    let mut how = options.image.options(job).writable();
    how.depth = Depth::Chain;
    let node = options.image.open(job, &how)?;
    let name = node.image().format_name();
    let table = format::driver(name).map_or(&[][..], format::Driver::amend_options);
    if table.is_empty() {
        return Err(Error::unsupported(format!(
            "Format driver '{name}' does not support option amendment"
        )));
    }
    let at_creation = format::driver(name).map_or(&[][..], |d| d.create_options());
    let only_there = options
        .options
        .iter()
        .find(|(o, _)| table.iter().all(|s| s.name != o))
        .is_some_and(|(o, _)| at_creation.iter().any(|s| s.name == o));
    let mut wishes =
        CreateOptions::parse(table, &options.options).map_err(|e| match only_there {
            true => e.hint("This option is only supported for image creation"),
            false => e,
        })?;
    // Only the node knows what lies below a disk that grows.
    let size = wishes.number("size").filter(|&n| n != 0);
    wishes.remove("size");
    let secret = |id: &str| {
        let bytes = job.secrets.get(id)?;
        Ok(crate::crypto::SecretBytes::new(bytes.to_vec()))
    };
    let request =
        Amendment { options: &wishes, force: options.force == Force::Yes, secret: &secret };
    node.image().amend(&request, job.watcher)?;
    if let Some(size) = size.filter(|&n| n != node.virtual_size()) {
        node.resize(size, crate::storage::Preallocation::Off)?;
    }
    node.close()
}
