//! The descriptor: the text that names the disk's extents and its parent.
//!
//! It stands alone in a small file, or in the first sectors of a sparse extent. Read with tolerance
//! for what products write (blanks around `=`, any case of keys, CR LF, bytes that are not UTF-8) and
//! with bounds on everything: the text has at most [`MAX_TEXT`] bytes and [`MAX_EXTENTS`] extents, a
//! disk at most `i64::MAX` bytes. Names in it are only names here; opening them is a matter of the
//! caller's policy.

use super::layout::SECTOR;
use crate::{Error, ErrorKind, Result};

/// Longest text that is read (QEMU reads as much).
pub(super) const MAX_TEXT: u64 = (1 << 20) - 1;
/// Most extents; a 62 TB disk in pieces of 2 GB has 31,000.
pub(super) const MAX_EXTENTS: usize = 32768;
/// `parentCID` of a disk without parent.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// What the guest may do with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentAccess {
    ReadWrite,
    ReadOnly,
}

/// How an extent stores its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentKind {
    Flat,
    Vmfs,
    Zero,
    Sparse,
    VmfsSparse,
    SeSparse,
}

impl ExtentKind {
    /// As written in the descriptor.
    pub(super) fn name(self) -> &'static str {
        match self {
            ExtentKind::Flat => "FLAT",
            ExtentKind::Vmfs => "VMFS",
            ExtentKind::Zero => "ZERO",
            ExtentKind::Sparse => "SPARSE",
            ExtentKind::VmfsSparse => "VMFSSPARSE",
            ExtentKind::SeSparse => "SESPARSE",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [
            ExtentKind::Flat,
            ExtentKind::Vmfs,
            ExtentKind::Zero,
            ExtentKind::Sparse,
            ExtentKind::VmfsSparse,
            ExtentKind::SeSparse,
        ]
        .into_iter()
        .find(|k| k.name().eq_ignore_ascii_case(word))
    }
}

/// One line of the extent description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub access: ExtentAccess,
    /// Bytes; never 0.
    pub len: u64,
    pub kind: ExtentKind,
    /// Empty for `ZERO`.
    pub file: String,
    /// Bytes into the file; only `FLAT` has it.
    pub offset: u64,
}

/// A parsed descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub cid: u32,
    pub parent_cid: u32,
    pub create_type: Option<String>,
    pub parent: Option<String>,
    /// The disk was made on another one, by VirtualBox's account.
    pub parent_uuid: Option<String>,
}

/// The text up to the first NUL; bytes that are not UTF-8 are taken for Latin-1.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let bytes = &bytes[..end];
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&b| char::from(b)).collect(),
    }
}

/// The value of a `key = value` line, without quotes.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case(key) {
        return None;
    }
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
}

fn invalid() -> Error {
    Error::corrupt("invalid VMDK image descriptor")
}

impl Descriptor {
    /// Reads everything but the extents.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut found = Descriptor { parent_cid: NO_PARENT, ..Descriptor::default() };
        let mut cid = None;
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with('#') {
                continue;
            }
            if let Some(v) = value(line, "CID") {
                cid.get_or_insert(hex(v)?);
            } else if let Some(v) = value(line, "parentCID") {
                found.parent_cid = hex(v)?;
            } else if let Some(v) = value(line, "createType") {
                found.create_type.get_or_insert_with(|| v.to_owned());
            } else if let Some(v) = value(line, "parentFileNameHint")
                && !v.is_empty()
            {
                found.parent.get_or_insert_with(|| v.to_owned());
            } else if let Some(v) = value(line, "ddb.uuid.parent")
                && v.bytes().any(|b| !matches!(b, b'0' | b'-'))
            {
                found.parent_uuid.get_or_insert_with(|| v.to_owned());
            }
        }
        found.cid = cid.ok_or_else(|| invalid().hint("the descriptor has no line 'CID=...'"))?;
        Ok(found)
    }

    /// Refuses a disk that is only the difference to another one which it does not name: what is missing
    /// would read as zeroes, and nobody would notice.
    pub(super) fn check_parent(&self) -> Result<()> {
        let named = self.parent.is_some();
        let cid = !matches!(self.parent_cid, NO_PARENT | 0);
        let which = match &self.parent_uuid {
            Some(uuid) if !named => format!("UUID {uuid}"),
            None if !named && cid => format!("content id {:08x}", self.parent_cid),
            _ => return Ok(()),
        };
        Err(Error::unsupported(format!(
            "The disk holds only the differences to a parent disk ({which}) that it does not name"
        ))
        .hint("add a line parentFileNameHint=\"FILE\" with the parent's file to the descriptor, or merge the disks with the product that made them"))
    }

    /// Refuses a disk that QEMU does not read as a descriptor in a file of its own.
    pub(super) fn check_create_type(&self) -> Result<()> {
        const KNOWN: [&str; 6] = [
            "monolithicFlat",
            "vmfs",
            "vmfsSparse",
            "seSparse",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
        ];
        let Some(kind) = &self.create_type else {
            return Err(invalid().hint("the descriptor has no line 'createType=...'"));
        };
        if KNOWN.contains(&kind.as_str()) {
            return Ok(());
        }
        Err(Error::unsupported(format!("Unsupported image type '{kind}'")))
    }
}

fn hex(word: &str) -> Result<u32> {
    u32::from_str_radix(word, 16)
        .map_err(|_| invalid().hint(format!("'{word}' is not a content id of 32 bits")))
}

/// The extents, in the order of the disk.
pub(super) fn extents(text: &str) -> Result<Vec<ExtentLine>> {
    let mut all = Vec::new();
    let mut total = 0u64;
    for line in text.lines() {
        let Some(extent) = extent(line.trim())? else { continue };
        total = total.checked_add(extent.len).filter(|&t| i64::try_from(t).is_ok()).ok_or_else(
            || Error::new(ErrorKind::TooLarge, "the extents add up to more than 8 EiB"),
        )?;
        if all.len() == MAX_EXTENTS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the descriptor names more than {MAX_EXTENTS} extents"),
            ));
        }
        all.push(extent);
    }
    if all.is_empty() {
        return Err(invalid().hint("the descriptor names no extent"));
    }
    Ok(all)
}

/// `access sectors type ["file" [offset]]`; `None` for any other line.
fn extent(line: &str) -> Result<Option<ExtentLine>> {
    let bad = || Error::corrupt(format!("Invalid extent line: {}", shorten(line)));
    let (access, rest) = word(line);
    let access = match access.to_ascii_uppercase().as_str() {
        "RW" => ExtentAccess::ReadWrite,
        "RDONLY" => ExtentAccess::ReadOnly,
        "NOACCESS" => {
            return Err(Error::unsupported(format!(
                "The extent '{}' is marked as not accessible",
                shorten(line)
            )));
        }
        _ => return Ok(None),
    };
    let (sectors, rest) = word(rest);
    let len = sectors
        .parse::<u64>()
        .ok()
        .and_then(|s| s.checked_mul(SECTOR))
        .filter(|&l| i64::try_from(l).is_ok())
        .ok_or_else(bad)?;
    let (kind, rest) = word(rest);
    if ["VMFSRDM", "VMFSRDMP", "VMFSRAW"].iter().any(|r| r.eq_ignore_ascii_case(kind)) {
        return Err(Error::unsupported(format!("Unsupported extent type '{kind}'")).hint(
            "the extent stands for a raw device of an ESX host; convert from that device itself",
        ));
    }
    let kind = ExtentKind::parse(kind).ok_or_else(bad)?;
    let (file, rest) = if kind == ExtentKind::Zero && rest.is_empty() {
        (String::new(), rest)
    } else {
        let inner = rest.strip_prefix('"').ok_or_else(bad)?;
        let (file, rest) = inner.split_once('"').ok_or_else(bad)?;
        (file.to_owned(), rest.trim())
    };
    let (offset, rest) = word(rest);
    let offset = match (kind, offset) {
        // Raw extents of devices may be followed by more words (a partition's UUID).
        (ExtentKind::Flat, word) => word
            .parse::<u64>()
            .ok()
            .and_then(|s| s.checked_mul(SECTOR))
            .filter(|o| o.checked_add(len).is_some_and(|e| i64::try_from(e).is_ok()))
            .ok_or_else(bad)?,
        (_, "" | "0") if rest.is_empty() => 0,
        _ => return Err(bad()),
    };
    if kind != ExtentKind::Zero && file.is_empty() {
        return Err(bad());
    }
    if len == 0 {
        return Ok(None);
    }
    Ok(Some(ExtentLine { access, len, kind, file, offset }))
}

/// The first word and what follows it.
fn word(line: &str) -> (&str, &str) {
    match line.split_once([' ', '\t']) {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (line, ""),
    }
}

/// For messages: no screen full of garbage.
fn shorten(line: &str) -> String {
    line.chars().take(200).collect::<String>()
}
