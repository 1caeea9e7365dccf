//! Finding the tables of chunks: in a property list (today's files) or a resource fork (old ones).

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use super::layout::{MISH, Trailer};
use crate::num::{small, to_usize};
use crate::storage::Storage;
use crate::{Error, Result};

/// Largest property list or resource fork, as QEMU's.
const MAX_LIST: u64 = 16 << 20;

/// Padding is often missing at the end.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The raw tables, in the order of the file. `end`: where the trailer begins.
pub(super) fn read(storage: &dyn Storage, trailer: &Trailer, end: u64) -> Result<Vec<Vec<u8>>> {
    let load = |what: &str, at: u64, len: u64| -> Result<Vec<u8>> {
        let bad = |why: String| Error::corrupt(why).at_path(storage.name()).at_offset(at);
        if at.checked_add(len).is_none_or(|e| e > end) {
            return Err(bad(format!(
                "{what} of {len} bytes at {at:#x} does not lie before the trailer"
            )));
        }
        if len > MAX_LIST {
            return Err(bad(format!("{what} of {len} bytes is too large (at most {MAX_LIST})")));
        }
        let mut bytes = vec![0; to_usize(len)?];
        storage.read_at(at, &mut bytes)?;
        Ok(bytes)
    };
    if trailer.rsrc_fork_length.get() != 0 {
        let fork =
            load("resource fork", trailer.rsrc_fork_offset.get(), trailer.rsrc_fork_length.get())?;
        return resources(&fork);
    }
    if trailer.xml_length.get() != 0 {
        let xml = load("property list", trailer.xml_offset.get(), trailer.xml_length.get())?;
        return property_list(&xml);
    }
    Err(Error::corrupt("the trailer names neither a property list nor a resource fork"))
}

/// `resource-fork` / `blkx` / each `Data`.
fn property_list(xml: &[u8]) -> Result<Vec<Vec<u8>>> {
    let bad = |why: &str| Error::corrupt(format!("property list: {why}"));
    let text = std::str::from_utf8(xml).map_err(|_| bad("not UTF-8"))?;
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(text.trim_end_matches('\0'), options)
        .map_err(|e| bad(&e.to_string()))?;
    let value = |dict: roxmltree::Node<'_, '_>, key: &str| {
        dict.children()
            .filter(|n| n.is_element())
            .skip_while(|n| !(n.has_tag_name("key") && n.text() == Some(key)))
            .nth(1)
            .map(|n| n.id())
    };
    let top = document.root_element().children().find(|n| n.has_tag_name("dict"));
    let array = top
        .and_then(|d| value(d, "resource-fork"))
        .and_then(|id| document.get_node(id))
        .and_then(|d| value(d, "blkx"))
        .and_then(|id| document.get_node(id))
        .ok_or_else(|| bad("no blkx in it"))?;
    let mut tables = Vec::new();
    for entry in array.children().filter(|n| n.has_tag_name("dict")) {
        let data = value(entry, "Data").and_then(|id| document.get_node(id));
        let text = data.and_then(|d| d.text()).ok_or_else(|| bad("a partition without data"))?;
        let packed: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        tables.push(BASE64.decode(packed).map_err(|e| bad(&format!("base64: {e}")))?);
    }
    Ok(tables)
}

/// The data area of a resource fork: lengths, each with its bytes. Inside Macintosh, *More Macintosh
/// Toolbox*, "Resource File Format".
fn resources(fork: &[u8]) -> Result<Vec<Vec<u8>>> {
    let short = || Error::corrupt("resource fork ends in the middle");
    let word = |at: usize| -> Result<usize> {
        let bytes = at.checked_add(4).and_then(|end| fork.get(at..end)).ok_or_else(short)?;
        let word = U32::read_from_bytes(bytes).map_err(|_| short())?;
        Ok(small(u64::from(word.get())))
    };
    let (mut at, len) = (word(0)?, word(8)?);
    let end = at.checked_add(len).filter(|&e| e <= fork.len()).ok_or_else(short)?;
    let mut tables = Vec::new();
    while at < end {
        let len = word(at)?;
        let stop = (at + 4).checked_add(len).filter(|&s| s <= end).ok_or_else(short)?;
        let bytes = &fork[at + 4..stop];
        if bytes.starts_with(&MISH) {
            tables.push(bytes.to_vec());
        }
        at = stop;
    }
    Ok(tables)
}
