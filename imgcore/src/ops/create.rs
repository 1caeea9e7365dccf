//! `create`: a new, empty image.
//!
//! In two steps, because the program shows a line between them: [`plan`] checks everything and
//! resolves the options, [`Plan::run`] makes the files. Errors of both begin with the file name, as
//! qemu-img's do.

use std::path::Path;
use std::sync::Arc;

use super::Job;
use super::creation;
use crate::format::{self, BackingRef, CreateOptions, Driver, OptionSpec};
use crate::graph::Node;
use crate::graph::create::{NewImage, create};
use crate::graph::gate::combine;
use crate::graph::open::{OpenOptions, OpenRequest, Purpose, Sharing, open};
use crate::graph::output::{Durability, Output, Overwrite, Place};
use crate::storage::CacheMode;
use crate::{Error, Result};

/// Whether the backing file must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingCheck {
    /// It must open.
    #[default]
    Open,
    /// It is not looked at (`-u`).
    Skip,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct CreateImageOptions {
    /// File name.
    pub filename: String,
    /// Driver.
    pub driver: String,
    /// Size of the guest's disk; the backing file's when not given.
    pub size: Option<u64>,
    /// `-o`, as name and text (may hold `size`, `backing_file`, `backing_fmt`).
    pub options: Vec<(String, String)>,
    /// `-b`.
    pub backing: Option<String>,
    /// `-F`.
    pub backing_format: Option<String>,
    /// `-u`.
    pub backing_check: BackingCheck,
    /// Whether a file that exists may be replaced.
    pub overwrite: Overwrite,
}

/// A checked wish.
#[derive(Debug)]
pub struct Plan {
    line: String,
    place: Place,
    shown: String,
    driver: &'static str,
    size: u64,
    options: CreateOptions,
    backing: Option<BackingRef>,
    backing_node: Option<Arc<Node>>,
    overwrite: Overwrite,
    /// What the format has against the options; told only after the line, as qemu-img does.
    refused: Option<Error>,
}

impl Plan {
    /// The line that qemu-img shows: `Formatting 'x', fmt=raw size=1024`.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Makes the image.
    pub fn run(mut self, job: &Job<'_>) -> Result<()> {
        let shown = self.shown.clone();
        self.make(job).map_err(|e| e.context(shown))
    }

    fn make(&mut self, job: &Job<'_>) -> Result<()> {
        if let Some(error) = self.refused.take() {
            return Err(error);
        }
        let output =
            Output::at(&self.place, CacheMode::Writeback, self.overwrite).with_secrets(job.secrets);
        let new = NewImage {
            driver: find_driver(self.driver)?,
            size: self.size,
            options: &self.options,
            backing: self.backing.clone(),
            backing_image: self.backing_node.as_ref().map(|n| n.image()),
        };
        create(&new, &output)?;
        output.commit(Durability::Synced)
    }
}

/// Checks the wish.
pub fn plan(options: CreateImageOptions, job: &Job<'_>) -> Result<Plan> {
    let shown = options.filename.clone();
    plan_inner(options, job).map_err(|e| e.context(shown))
}

/// Drivers without images to create: formats that nobody writes, filters, and what only gives bytes.
const NOT_CREATED: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "null-aio",
    "null-co",
    "preallocate",
    "quorum",
    "replication",
    "snapshot-access",
    "throttle",
    "vvfat",
];

/// A driver that can make images.
pub(super) fn find_driver(name: &str) -> Result<&'static dyn Driver> {
    match format::driver(name) {
        Some(driver) if driver.can_create() => Ok(driver),
        None if !NOT_CREATED.contains(&name) => {
            Err(Error::unsupported(format!("Unknown file format '{name}'")))
        }
        _ => Err(Error::unsupported(format!(
            "Format driver '{name}' does not support image creation"
        ))),
    }
}

/// Checks `-o` against the tables of the format and of the file below it.
pub(super) fn parse_options(
    driver: &dyn Driver,
    given: &[(String, String)],
) -> Result<CreateOptions> {
    let table: &'static [OptionSpec] = driver.create_options();
    let known = |name: &str| table.iter().any(|s| s.name == name);
    let of_file = |name: &str| creation::FILE.iter().any(|s| s.name == name);
    let (file, own): (Vec<_>, Vec<_>) =
        given.iter().cloned().partition(|(name, _)| !known(name) && of_file(name));
    let mut options = CreateOptions::parse(table, &own)?;
    let file = CreateOptions::parse(creation::FILE, &file)?;
    for name in file.names() {
        if let Some(value) = file.get(name) {
            options.set(name, value.clone());
        }
    }
    Ok(options)
}

/// Sets an option by its row in the driver's table; `false` if there is none.
pub(super) fn set_text(
    driver: &dyn Driver,
    options: &mut CreateOptions,
    name: &str,
    text: &str,
) -> bool {
    let Some(spec) = driver.create_options().iter().find(|s| s.name == name) else { return false };
    options.set(spec.name, format::options::OptionValue::Text(text.to_owned()));
    true
}

/// Sets the size in the options.
pub(super) fn set_size(options: &mut CreateOptions, size: u64) {
    options.set("size", format::options::OptionValue::Number(size));
}

/// The options that name secrets, for opening an image made with them.
pub(super) fn key_options(options: &CreateOptions) -> Vec<(String, String)> {
    options
        .names()
        .filter(|name| name.ends_with("key-secret"))
        .filter_map(|name| Some((name.to_owned(), options.text(name)?.to_owned())))
        .collect()
}

fn plan_inner(wish: CreateImageOptions, job: &Job<'_>) -> Result<Plan> {
    let driver = find_driver(&wish.driver)?;
    let place = Place::parse(&wish.filename, "created")?;
    let path = place.name();
    let mut options = parse_options(driver, &wish.options)?;
    if wish.size.is_some() && options.get("size").is_some() {
        return Err(Error::invalid("The image size must be specified only once"));
    }
    let name = driver.name();
    if let Some(backing) = &wish.backing
        && !set_text(driver, &mut options, "backing_file", backing)
    {
        return Err(Error::invalid(format!("Backing file not supported for file format '{name}'")));
    }
    if let Some(format) = &wish.backing_format
        && !set_text(driver, &mut options, "backing_fmt", format)
    {
        return Err(Error::invalid(format!(
            "Backing file format not supported for file format '{name}'"
        )));
    }
    let backing = options.text("backing_file").map(|file| BackingRef {
        name: file.to_owned(),
        format: options.text("backing_fmt").map(str::to_owned),
    });
    let mut size = wish.size.or(options.number("size"));
    let backing_node = match &backing {
        Some(_) if !place.is_here() => {
            return Err(Error::unsupported(
                "An image with a backing file can only be created on this host",
            ));
        }
        Some(backing) => {
            let node = look_at_backing(backing, &path, wish.backing_check, job)?;
            size = size.or_else(|| node.as_ref().map(|n| n.virtual_size()));
            node
        }
        None => None,
    };
    if options.flag("detached-header") == Some(true) {
        // A header alone: the disk is elsewhere, and its size with it.
        size = size.or(Some(0));
    }
    let size = size.ok_or_else(|| Error::invalid("Image creation needs a size parameter"))?;
    set_size(&mut options, size);
    let refused = driver.resolve_options(&mut options, size).err();
    let rows = creation::with_storage(driver.create_options(), creation::FILE);
    let line = format!(
        "Formatting '{}', fmt={name}{}",
        wish.filename,
        creation::describe(&rows, &options)
    );
    Ok(Plan {
        line,
        place,
        shown: wish.filename,
        driver: name,
        size,
        options,
        backing,
        backing_node,
        overwrite: wish.overwrite,
        refused,
    })
}

fn look_at_backing(
    backing: &BackingRef,
    path: &str,
    check: BackingCheck,
    job: &Job<'_>,
) -> Result<Option<Arc<Node>>> {
    if backing.name.is_empty() {
        return Err(Error::invalid("Expected backing file name, got empty string"));
    }
    if backing.name == path {
        return Err(Error::invalid(
            "Error: Trying to create an image with the same filename as the backing file",
        ));
    }
    if check == BackingCheck::Skip {
        return match backing.format {
            Some(_) => Ok(None),
            None => Err(Error::invalid("Backing file specified without backing format")),
        };
    }
    let full = combine(path, &backing.name);
    let node = open_named(&full, backing.format.as_deref(), job)
        .map_err(|e| e.hint("Could not open backing image."))?;
    if backing.format.is_none() {
        return Err(Error::invalid("Backing file specified without backing format")
            .hint(format!("Detected format of {}.", node.image().format_name())));
    }
    Ok(Some(node))
}

/// Opens a file that the user named, for looking at it. What goes wrong with the name itself is said
/// without naming it again where the format is the reason, as qemu-img does.
fn open_named(name: &str, driver: Option<&str>, job: &Job<'_>) -> Result<Arc<Node>> {
    let options = OpenOptions {
        sharing: Sharing::Force,
        policy: job.policy.clone().allow_file(Path::new(name)),
        secrets: job.secrets.clone(),
        // Its size and its format are wanted, not its content.
        purpose: Purpose::Header,
        ..OpenOptions::default()
    };
    open(&OpenRequest::parse(name, driver)?, &options)
}

#[cfg(test)]
#[path = "create_test.rs"]
mod tests;
