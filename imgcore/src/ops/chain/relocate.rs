//! `chain relocate`: other names for the same files.
//!
//! After images were moved, or before they are, the names in them are rewritten by rules. Nothing is
//! written before every new name was found to be a file that opens, has the format that is recorded, and
//! is what the image above expects.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::{ImageArg, Job};
use crate::format::{self, BackingRef};
use crate::graph::gate::{combine, folder_of};
use crate::graph::open::{Depth, MAX_LINKS, OpenRequest, Purpose, backing_request};
use crate::{Error, ErrorKind, Result};

/// Files below `from` are now below `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A folder or a file, as the images see it (absolute, or relative to them).
    pub from: PathBuf,
    /// A folder or a file, as seen from here.
    pub to: PathBuf,
}

/// How names are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// As they are: relative names stay relative.
    #[default]
    Keep,
    /// From the folder of the image that holds them.
    Relative,
    /// From the root.
    Absolute,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct RelocateOptions {
    /// The image at the top.
    pub image: ImageArg,
    /// What moved; the first rule that fits counts.
    pub rules: Vec<Rule>,
    /// How names are written.
    pub style: Style,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// A name that was changed (or would be).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Renamed {
    /// The image that holds it.
    pub filename: String,
    /// The name before.
    pub from: String,
    /// The name after.
    pub to: String,
}

/// Rewrites the names in a chain.
///
/// # Errors
/// When an image or the file behind a new name cannot be opened, when that is another than the image above
/// expects, or when a format has no way to change the name. Images that were changed before that stay so:
/// each of them is right.
pub fn relocate(options: &RelocateOptions, job: &Job<'_>) -> Result<Vec<Renamed>> {
    let mut how = options.image.options(job);
    how.depth = Depth::Top;
    how.purpose = Purpose::Header;
    let mut request = options.image.request.clone();
    let mut policy = how.policy.below(&options.image.request.filename);
    for rule in &options.rules {
        policy = policy.allow_folder(&rule.to).allow_file(&rule.to);
    }
    let mut all: Vec<(OpenRequest, Renamed, Option<String>)> = Vec::new();
    let arg =
        |request: &OpenRequest| ImageArg { request: request.clone(), ..options.image.clone() };
    let mut node = arg(&request).open(job, &how)?;
    for _ in 0..MAX_LINKS {
        let Some(backing) = node.image().backing() else {
            return write(options, job, all);
        };
        let here = request.filename.clone();
        let name = rewritten(&here, &backing.name, options)?;
        let reference = BackingRef { name: name.clone(), format: backing.format.clone() };
        let next = backing_request(&reference, &here, &policy)?;
        let below = arg(&next).open(job, &how).map_err(|e| {
            e.hint(format!(
                "'{here}' names '{}'; --map OLD=NEW says where that is now",
                backing.name
            ))
        })?;
        node.image().check_backing(below.image())?;
        if name != backing.name {
            let supported = format::driver(node.image().format_name())
                .is_some_and(format::Driver::supports_backing);
            if !supported {
                return Err(Error::unsupported(format!(
                    "the name of the file below '{here}' cannot be changed"
                )));
            }
            // What was only guessed so far is recorded.
            let format = backing.format.clone();
            let format = format.or_else(|| Some(below.image().format_name().to_owned()));
            let renamed = Renamed { filename: here, from: backing.name, to: name };
            all.push((request.clone(), renamed, format));
        }
        (request, node) = (next, below);
    }
    let text = format!("the chain of backing files has more than {MAX_LINKS} images");
    Err(Error::new(ErrorKind::TooLarge, text).at_path(request.name()))
}

fn write(
    options: &RelocateOptions,
    job: &Job<'_>,
    all: Vec<(OpenRequest, Renamed, Option<String>)>,
) -> Result<Vec<Renamed>> {
    let mut done = Vec::with_capacity(all.len());
    for (request, renamed, format) in all {
        if !options.dry_run {
            let image = ImageArg { request, ..options.image.clone() };
            let mut how = image.options(job).writable();
            how.depth = Depth::Top;
            let node = image.open(job, &how)?;
            let name = renamed.to.clone();
            node.image().set_backing(Some(&BackingRef { name, format }))?;
            node.close()?;
        }
        done.push(renamed);
    }
    Ok(done)
}

/// The name that `image` shall hold for what it calls `name`.
fn rewritten(image: &str, name: &str, options: &RelocateOptions) -> Result<String> {
    let full = combine(image, name);
    let moved = options.rules.iter().find_map(|rule| {
        let rest = Path::new(&full).strip_prefix(&rule.from);
        let rest = rest.or_else(|_| Path::new(name).strip_prefix(&rule.from)).ok()?;
        // Joining nothing would add a slash.
        Some(if rest.as_os_str().is_empty() { rule.to.clone() } else { rule.to.join(rest) })
    });
    let was_relative = !name.starts_with('/');
    let style = match (options.style, &moved) {
        (Style::Keep, None) => return Ok(name.to_owned()),
        (Style::Keep, Some(_)) if was_relative => Style::Relative,
        (Style::Keep, Some(_)) => Style::Absolute,
        (style, _) => style,
    };
    let target = moved.unwrap_or_else(|| PathBuf::from(&full));
    let absolute = std::path::absolute(&target)?;
    // Links on the way there are resolved: `..` means nothing across them. The file itself may be a link.
    let absolute = match (folder_of(&absolute).canonicalize(), absolute.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => absolute,
    };
    let text = match style {
        Style::Relative => relative(&folder_of(Path::new(image)).canonicalize()?, &absolute),
        Style::Absolute | Style::Keep => absolute,
    };
    text.into_os_string()
        .into_string()
        .map_err(|bad| Error::invalid(format!("'{}' is not UTF-8", bad.to_string_lossy())))
}

/// How to get from a folder to a path, both absolute.
fn relative(folder: &Path, path: &Path) -> PathBuf {
    let mut from = folder.components().peekable();
    let mut to = path.components().peekable();
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    let up = from.map(|_| Component::ParentDir);
    up.chain(to).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ways() {
        let way = |a: &str, b: &str| relative(Path::new(a), Path::new(b)).display().to_string();
        assert_eq!(way("/a/b", "/a/b/x"), "x");
        assert_eq!(way("/a/b", "/a/c/x"), "../c/x");
        assert_eq!(way("/a/b/c", "/x"), "../../../x");
        assert_eq!(way("/", "/x/y"), "x/y");
    }

    #[test]
    fn rules_fit_whole_names() {
        let options = |from: &str, to: &str, style| RelocateOptions {
            rules: vec![Rule { from: from.into(), to: to.into() }],
            style,
            ..RelocateOptions::default()
        };
        let new = |image: &str, name: &str, o: &RelocateOptions| rewritten(image, name, o).unwrap();
        let moved = options("/old", "/new", Style::Keep);
        assert_eq!(new("/tmp/a", "/old/x/b", &moved), "/new/x/b");
        assert_eq!(new("/tmp/a", "/older/b", &moved), "/older/b");
        assert_eq!(new("/tmp/a", "b", &moved), "b");
        let file = options("base", "/tmp/other", Style::Keep);
        assert_eq!(new("/tmp/a", "base", &file), "other");
        assert_eq!(new("/tmp/a", "/old/b", &options("/old", "/new", Style::Relative)), "../new/b");
        assert_eq!(new("/tmp/a", "b", &options("/x", "/y", Style::Absolute)), "/tmp/b");
    }
}
