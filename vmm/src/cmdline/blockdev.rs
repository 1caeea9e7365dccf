//! `-blockdev`: nodes of the block graph by name.
//!
//! A node is kept as keys and values until a device uses it. Then references to other nodes (`file=`,
//! `backing=`, `data-file=` with a name) are replaced by what those nodes say, which makes one complete
//! description of an image.

use std::collections::BTreeMap;

use imgcore::graph::open::{Discard, OpenRequest};
use imgcore::opts::ImageSpec;
use imgcore::opts::json;
use imgcore::opts::list::{self, FirstItem};
use imgcore::opts::remote::Remote;
use imgcore::opts::spec::{self, BackingSpec};
use imgcore::opts::tree::{Flat, Scalar};

use super::builder::Builder;
use crate::block::Drive;
use crate::block::config::{Aio, OnError, WriteAccess};
use crate::{Error, Result};

/// Children of a node that may be references.
const CHILDREN: [&str; 3] = ["file", "backing", "data-file"];
/// Nodes above each other; more are a circle.
const DEEPEST: usize = 64;

/// Nodes by name.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    nodes: BTreeMap<String, Flat>,
    used: Vec<String>,
}

/// `-blockdev driver=,node-name=,...` or `-blockdev {json}`.
pub fn blockdev(b: &mut Builder, text: &str) -> Result<()> {
    let mut flat = if text.trim_start().starts_with('{') {
        Flat::from_tree(json::parse(text)?)?
    } else {
        Flat::from_items(&list::parse(text, FirstItem::ValueOf("driver")))
    };
    let name = flat
        .take_text("node-name")
        .ok_or_else(|| Error::invalid("'node-name' must be specified for the root node"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !name.starts_with(|c: char| c.is_ascii_alphabetic())
        || !name.chars().all(plain)
        || name.len() > 31
    {
        return Err(Error::invalid(format!("Invalid node-name: '{name}'")).hint(
            "A name begins with a letter and has letters, digits, '-', '.', '_'; at most 31",
        ));
    }
    if flat.iter().all(|(k, _)| k != "driver") {
        return Err(Error::invalid("Parameter 'driver' is missing"));
    }
    if b.nodes.nodes.insert(name.clone(), flat).is_some() {
        return Err(Error::invalid(format!("Duplicate nodes with node-name='{name}'")));
    }
    Ok(())
}

impl Nodes {
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether a node has this name.
    pub fn has(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// Names of nodes that neither a device nor another node uses.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str).filter(|n| !self.used.iter().any(|u| u == n))
    }

    /// The disk on top of a node.
    pub fn drive(&mut self, name: &str) -> Result<Drive> {
        let flat = self.whole(name, 0)?;
        let spec = ImageSpec::from_flat(flat).map_err(Error::from)?;
        drive_of(name, &spec).map_err(|e| e.context(format!("-blockdev node-name={name}")))
    }

    /// A node with all nodes that it refers to put in their places.
    fn whole(&mut self, name: &str, depth: usize) -> Result<Flat> {
        let Some(flat) = self.nodes.get(name).cloned() else {
            return Err(Error::invalid(format!(
                "Cannot find device='{name}' nor node-name='{name}'"
            )));
        };
        if depth > DEEPEST {
            return Err(Error::invalid(format!("-blockdev: '{name}' is below itself")));
        }
        self.used.push(name.to_owned());
        let mut all = Flat::default();
        for (key, value) in flat.iter() {
            let child = CHILDREN.contains(&key.rsplit('.').next().unwrap_or(key));
            match value {
                Scalar::Text(reference) if child && !reference.is_empty() => {
                    for (k, v) in self.whole(reference, depth + 1)?.iter() {
                        all.set(&format!("{key}.{k}"), v.clone());
                    }
                }
                _ => all.set(key, value.clone()),
            }
        }
        Ok(all)
    }
}

fn drive_of(name: &str, spec: &ImageSpec) -> Result<Drive> {
    refuse(spec)?;
    let mut image = OpenRequest::from_spec(spec, name)?;
    // Messages and `info block` name the file.
    image.shown = None;
    image.discard = image.discard.or(Some(Discard::Ignore));
    let access = match (spec.read_only, spec.auto_read_only) {
        (Some(true), _) => WriteAccess::ReadOnly,
        (_, Some(true)) => WriteAccess::Auto,
        _ => WriteAccess::ReadWrite,
    };
    Ok(Drive {
        id: name.to_owned(),
        image,
        access,
        aio: aio(spec, spec.cache_direct)?,
        write_error: OnError::StopWhenFull,
        ..Drive::default()
    })
}

/// How requests reach the host: as the node of the file below the top says. `direct` is what nodes above
/// say of `O_DIRECT`.
fn aio(spec: &ImageSpec, direct: Option<bool>) -> Result<Aio> {
    let direct = spec.cache_direct.or(direct);
    match (spec.aio, &spec.file) {
        (Some(spec::Aio::Threads), _) => Ok(Aio::Threads),
        (Some(spec::Aio::IoUring), _) => Ok(Aio::Ring),
        (Some(spec::Aio::Native), _) => super::disk::native(direct == Some(true)),
        (None, Some(below)) => aio(below, direct),
        (None, None) => Ok(Aio::Auto),
    }
}

/// Refuses what images cannot be used through, by name.
fn refuse(spec: &ImageSpec) -> Result<()> {
    if let Some(driver) = spec.driver.as_deref() {
        let known = spec::is_format(driver)
            || Remote::is_driver(driver)
            || matches!(driver, "file" | "host_device");
        if !known {
            return Err(Error::unsupported(format!("driver={driver} is not supported yet")).hint(
                "file, host_device, nbd and the image formats are; limits go to throttling. of a -drive",
            ));
        }
    }
    if spec.cache_direct == Some(true) && spec.cache_no_flush == Some(true) {
        return Err(Error::unsupported(
            "cache.direct=on and cache.no-flush=on together are not supported",
        )
        .hint("Use one of them"));
    }
    let backing = match &spec.backing {
        BackingSpec::Spec(s) => Some(s),
        BackingSpec::FromImage | BackingSpec::None => None,
    };
    [&spec.file, &spec.data_file].into_iter().flatten().chain(backing).try_for_each(|s| refuse(s))
}
