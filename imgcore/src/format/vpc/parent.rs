//! The disk below a differencing one: "Parent Locator" entries, and the name in the header.
//!
//! Names come from other machines, mostly with Windows' paths. Relative ones are taken as they are; of
//! absolute ones only the last part counts, which is looked for beside the image. A file counts only if its
//! identifier is the one that the header tells.

use super::geometry::SizeRule;
use super::header::{self, Blocks};
use crate::format::uuid::Uuid;
use crate::format::{Access, BackingRef, OpenContext};
use crate::num::small;
use crate::{Error, ErrorKind, Result};

/// Most bytes of a name.
const MAX_NAME: u32 = 4096;

/// The name up to its end.
fn utf16(units: impl Iterator<Item = u16>) -> Option<String> {
    let units: Vec<u16> = units.take_while(|&u| u != 0).collect();
    String::from_utf16(&units).ok().filter(|s| !s.is_empty())
}

/// All names that the header tells for the parent, the most trusted first.
pub(super) fn names(cx: &OpenContext<'_>, blocks: &Blocks) -> Vec<String> {
    let mut relative = Vec::new();
    let mut absolute = Vec::new();
    for locator in &blocks.header.locators {
        let len = locator.len.get();
        if len == 0 || len > MAX_NAME || !matches!(&locator.code, b"W2ru" | b"W2ku" | b"MacX") {
            continue;
        }
        let mut bytes = vec![0; small(u64::from(len))];
        if cx.storage.read_at(locator.offset.get(), &mut bytes).is_err() {
            continue;
        }
        let units = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        match &locator.code {
            b"W2ru" => relative.extend(utf16(units())),
            b"W2ku" => absolute.extend(utf16(units())),
            _ => absolute.push(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()),
        }
    }
    absolute.extend(utf16(blocks.header.parent_name.iter().map(|u| u.get())));
    let relative = relative.into_iter().map(|n| n.replace('\\', "/"));
    let mut all: Vec<String> = Vec::new();
    for name in relative.map(|n| n.trim_start_matches("./").to_owned()) {
        let last = last_part(&name).map(str::to_owned);
        // A relative name that begins with a slash or a drive is none.
        if !name.starts_with('/') && !name.contains(':') {
            all.push(name);
        }
        all.extend(last);
    }
    all.extend(absolute.iter().filter_map(|n| last_part(n)).map(str::to_owned));
    let mut seen = std::collections::HashSet::new();
    all.retain(|n| seen.insert(n.clone()));
    all
}

fn last_part(name: &str) -> Option<&str> {
    name.rsplit(['/', '\\', ':']).next().filter(|n| !n.is_empty() && *n != "." && *n != "..")
}

/// Finds the parent of an image.
pub(super) fn find(cx: &OpenContext<'_>, blocks: &Blocks) -> Result<BackingRef> {
    let wanted = blocks.parent();
    let names = names(cx, blocks);
    let mut obstacle: Option<Error> = None;
    for name in &names {
        match identifier(cx, name) {
            Ok(uuid) if uuid == wanted => {
                return Ok(BackingRef { name: name.clone(), format: Some("vpc".to_owned()) });
            }
            Ok(uuid) => {
                obstacle.get_or_insert(Error::corrupt(format!("'{name}' is {uuid}")));
            }
            Err(e) => {
                obstacle.get_or_insert(e.context(format!("'{name}'")));
            }
        }
    }
    let message = format!("no parent of this differencing disk was found: it must be {wanted}");
    let error = match obstacle {
        Some(e) => e.context(message),
        None => Error::new(ErrorKind::NotFound, message),
    };
    let named = names.first().map_or("the parent", String::as_str);
    Err(error
        .at_path(cx.storage.name())
        .at_offset(blocks.header_at + 40)
        .hint(format!("put {named} beside the image")))
}

fn identifier(cx: &OpenContext<'_>, name: &str) -> Result<Uuid> {
    let storage = cx.gate.open_storage(name, Access::Read)?;
    Ok(header::geometry(&*storage, SizeRule::default())?.uuid())
}
