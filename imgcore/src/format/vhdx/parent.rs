//! The disk below a differencing one: keys and values of the parent locator (2.6.2.6).
//!
//! `relative_path` is taken as it is; of the absolute paths, which are Windows', only the last part counts,
//! looked for beside the image. A file counts only if its data-write identifier is the one in
//! `parent_linkage`: the parent's content has not changed since.

use std::collections::HashMap;

use super::header;
use crate::format::uuid::Uuid;
use crate::format::{Access, BackingRef, OpenContext};
use crate::{Error, ErrorKind, Result};

/// The identifiers that the parent may have.
pub(super) fn linkage(locator: &HashMap<String, String>) -> Vec<Uuid> {
    ["parent_linkage", "parent_linkage2"]
        .iter()
        .filter_map(|key| Uuid::parse(locator.get(*key)?))
        .filter(|uuid| !uuid.is_nil())
        .collect()
}

fn last_part(name: &str) -> Option<&str> {
    name.rsplit(['/', '\\', ':']).next().filter(|n| !n.is_empty() && *n != "." && *n != "..")
}

/// All names for the parent, the most trusted first.
pub(super) fn names(locator: &HashMap<String, String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    if let Some(relative) = locator.get("relative_path") {
        let name = relative.replace('\\', "/");
        let name = name.trim_start_matches("./");
        if !name.starts_with('/') && !name.contains(':') && !name.is_empty() {
            all.push(name.to_owned());
        }
    }
    for key in ["relative_path", "absolute_win32_path", "volume_path"] {
        all.extend(locator.get(key).and_then(|n| last_part(n)).map(str::to_owned));
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|n| seen.insert(n.clone()));
    all
}

/// Finds the parent.
pub(super) fn find(cx: &OpenContext<'_>, locator: &HashMap<String, String>) -> Result<BackingRef> {
    let wanted = linkage(locator);
    let names = names(locator);
    let mut obstacle: Option<Error> = None;
    for name in &names {
        let found = cx.gate.open_storage(name, Access::Read).and_then(|s| header::current(&*s));
        match found {
            Ok(current) if wanted.contains(&Uuid::from_le(current.raw.data_write)) => {
                return Ok(BackingRef { name: name.clone(), format: Some("vhdx".to_owned()) });
            }
            Ok(current) => {
                let uuid = Uuid::from_le(current.raw.data_write);
                obstacle.get_or_insert(Error::corrupt(format!(
                    "'{name}' is {uuid}; it is another disk or was changed since"
                )));
            }
            Err(e) => {
                obstacle.get_or_insert(e.context(format!("'{name}'")));
            }
        }
    }
    let wanted: Vec<String> = wanted.iter().map(Uuid::to_string).collect();
    let message = format!(
        "no parent of this differencing disk was found: it must be {}",
        wanted.join(" or ")
    );
    let error = match obstacle {
        Some(e) => e.context(message),
        None => Error::new(ErrorKind::NotFound, message),
    };
    let named = names.first().map_or("the parent", String::as_str);
    Err(error.at_path(cx.storage.name()).hint(format!("put {named} as it was beside the image")))
}
