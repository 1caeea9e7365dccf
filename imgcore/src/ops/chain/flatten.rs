//! `chain flatten`: links are taken out of a chain.
//!
//! `flatten A..B`: what the images below A down to B hold, and A does not, is copied into A, and A then
//! stands on what B stood on (or on nothing). What A shows does not change. B and what lies between are not
//! touched; nobody needs them for A any more, but other images may.

use serde::{Deserialize, Serialize};

use super::super::rebase::{RebaseMode, RebaseOptions, rebase};
use super::super::{ImageArg, Job};
use super::look::{ChainLink, ChainOptions, LinkState, look};
use crate::graph::gate::combine;
use crate::{Error, Result};

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct FlattenOptions {
    /// The image at the top of the chain.
    pub image: ImageArg,
    /// The image that takes the others up; the top when empty.
    pub upper: String,
    /// The lowest image that is taken up; the lowest of the chain when empty.
    pub lower: String,
    /// What is copied is stored compressed.
    pub compress: bool,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlattenReport {
    /// The image that has all of it now.
    pub filename: String,
    /// What it stands on now, as it holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// Images that it does not need any more.
    pub taken_up: Vec<String>,
}

/// Takes links out of a chain.
///
/// # Errors
/// When a name is not in the chain, or the chain cannot be read through.
pub fn flatten(options: &FlattenOptions, job: &Job<'_>) -> Result<FlattenReport> {
    let chain = look(&ChainOptions { image: options.image.clone() }, job)?;
    if let Some(bad) = chain.iter().find(|l| !l.state.is_usable()) {
        return Err(unusable(bad));
    }
    let upper = match options.upper.as_str() {
        "" => 0,
        name => find(&chain, name)?,
    };
    let lower = match options.lower.as_str() {
        "" => chain.len() - 1,
        name => find(&chain, name)?,
    };
    if lower <= upper {
        let (a, b) = (&chain[upper].filename, &chain[lower].filename);
        return Err(Error::invalid(format!("'{b}' is not below '{a}'")));
    }
    let below = chain.get(lower + 1);
    let name =
        below.map(|link| seen_from(&chain[upper].filename, &chain[lower], link)).transpose()?;
    let report = FlattenReport {
        filename: chain[upper].filename.clone(),
        backing_filename: name.clone(),
        taken_up: chain[upper + 1..=lower].iter().map(|l| l.filename.clone()).collect(),
    };
    if options.dry_run {
        return Ok(report);
    }
    let mut image = options.image.clone();
    if upper > 0 {
        image.request = crate::graph::open::OpenRequest::file(chain[upper].filename.clone())
            .with_driver(chain[upper].format.as_deref());
    }
    let rebasing = RebaseOptions {
        image,
        backing: name,
        backing_format: below.and_then(|l| l.format.clone()),
        mode: RebaseMode::Safe,
        compress: options.compress,
        ..RebaseOptions::default()
    };
    rebase(&rebasing, job)?;
    Ok(report)
}

fn unusable(link: &ChainLink) -> Error {
    let name = &link.filename;
    match &link.state {
        LinkState::Changed(why) | LinkState::Broken(why) => {
            Error::invalid(format!("the chain cannot be read through '{name}': {why}"))
        }
        LinkState::NotAllowed => {
            Error::invalid(format!("'{name}' is outside of the image's folder"))
                .hint("if you trust the image, allow it with --allow")
        }
        LinkState::Missing => Error::invalid(format!("'{name}' is missing"))
            .hint("rimg chain relocate --map OLD=NEW tells an image where its backing file is now"),
        LinkState::Loop | LinkState::Good => {
            Error::invalid(format!("'{name}' stands above itself in the chain"))
        }
    }
}

/// By the name as shown, as recorded, or the last part of it where that is unambiguous.
fn find(chain: &[ChainLink], name: &str) -> Result<usize> {
    let exact = |l: &ChainLink| l.filename == name || l.recorded.as_deref() == Some(name);
    if let Some(at) = chain.iter().position(exact) {
        return Ok(at);
    }
    let last = |l: &ChainLink| l.filename.rsplit('/').next() == Some(name);
    let mut found = chain.iter().enumerate().filter(|(_, l)| last(l));
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Ok(at),
        (Some(_), Some(_)) => Err(Error::invalid(format!("'{name}' is ambiguous"))),
        _ => Err(Error::invalid(format!("'{name}' is not in the chain"))
            .hint("rimg chain IMAGE lists what is")),
    }
}

/// The name of `link`, which `holder` holds, for an image that may be in another folder.
fn seen_from(image: &str, holder: &ChainLink, link: &ChainLink) -> Result<String> {
    let name = link.recorded.clone().unwrap_or_else(|| link.filename.clone());
    let same = combine(image, &name) == combine(&holder.filename, &name);
    if same {
        return Ok(name);
    }
    let absolute = std::path::absolute(&link.filename)?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|bad| Error::invalid(format!("'{}' is not UTF-8", bad.to_string_lossy())))
}
