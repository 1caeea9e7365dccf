//! A file's record in the file table: a header, and attributes one after the other.

use super::layout::NUMBER;
use crate::guest::fields::{Fields, utf16};
use crate::num::small;
use crate::{Error, Result};

/// Stands behind the last attribute.
const END: u32 = 0xffff_ffff;

/// A record with its sectors put right.
pub(super) struct Record {
    raw: Vec<u8>,
    first: usize,
    used: usize,
    /// Its own number, where it knows it.
    pub number: u64,
    /// It is a folder.
    pub folder: bool,
}

/// Puts back what the last two bytes of every sector were replaced by, and looks whether all sectors were
/// written ("Fixup").
pub(super) fn fix_up(raw: &mut [u8], magic: &[u8; 4], sector: usize) -> Result<()> {
    let f = Fields(raw);
    if f.array::<4>(0)? != *magic {
        return Err(Error::corrupt("a record of NTFS has no signature"));
    }
    let (offset, count) = (usize::from(f.le16(4)?), usize::from(f.le16(6)?));
    // The unit is 512 bytes also where sectors are longer.
    let unit = sector.min(512);
    let mark: [u8; 2] = f.array(offset)?;
    if count != raw.len() / unit + 1 {
        return Err(Error::corrupt("a record of NTFS has a damaged header"));
    }
    for i in 1..count {
        let original: [u8; 2] = Fields(raw).array(offset + 2 * i)?;
        let end = i * unit;
        let place = raw.get_mut(end - 2..end);
        let place = place.ok_or_else(|| Error::corrupt("a record of NTFS has a damaged header"))?;
        if place != mark {
            return Err(Error::corrupt("a record of NTFS was not written to its end"));
        }
        place.copy_from_slice(&original);
    }
    Ok(())
}

/// An attribute as it lies in its record.
#[derive(Clone, Copy)]
pub(super) struct Attribute<'a>(pub Fields<'a>);

impl<'a> Attribute<'a> {
    /// Its data are elsewhere.
    pub(super) fn nonresident(self) -> Result<bool> {
        Ok(self.0.u8(8)? != 0)
    }

    /// Its data, when they are here.
    pub(super) fn value(self) -> Result<&'a [u8]> {
        let (len, at) = (self.0.le32(0x10)?, self.0.le16(0x14)?);
        self.0.slice(usize::from(at), small(u64::from(len)))
    }

    /// Its type.
    pub(super) fn kind(self) -> Result<u32> {
        self.0.le32(0)
    }

    fn is(self, kind: u32, name: &str) -> Result<bool> {
        let len = usize::from(self.0.u8(9)?) * 2;
        if self.0.le32(0)? != kind || len != name.encode_utf16().count() * 2 {
            return Ok(false);
        }
        Ok(len == 0 || utf16(self.0.slice(usize::from(self.0.le16(0xa)?), len)?) == name)
    }
}

impl Record {
    pub(super) fn new(mut raw: Vec<u8>, sector: usize) -> Result<Self> {
        fix_up(&mut raw, b"FILE", sector)?;
        let f = Fields(&raw);
        let flags = f.le16(0x16)?;
        if flags & 1 == 0 {
            return Err(Error::corrupt("a file of NTFS is not in use"));
        }
        let first = usize::from(f.le16(0x14)?);
        let used = small(u64::from(f.le32(0x18)?)).min(raw.len());
        let number = u64::from(f.le32(0x2c)?);
        Ok(Record { first, used, number, folder: flags & 2 != 0, raw })
    }

    /// All attributes.
    pub(super) fn all(&self) -> Result<Vec<Attribute<'_>>> {
        let f = Fields(&self.raw[..self.used]);
        let mut all = Vec::new();
        let mut at = self.first;
        loop {
            if f.le32(at)? == END {
                return Ok(all);
            }
            let len = small(u64::from(f.le32(at + 4)?));
            if len < 0x18 {
                return Err(Error::corrupt(
                    "a file of NTFS has an attribute of an impossible length",
                ));
            }
            all.push(Attribute(f.part(at, len)?));
            at += len;
        }
    }

    /// All attributes of a kind and name.
    pub(super) fn attributes(&self, kind: u32, name: &str) -> Result<Vec<Attribute<'_>>> {
        let mut all = Vec::new();
        for attribute in self.all()? {
            if attribute.is(kind, name)? {
                all.push(attribute);
            }
        }
        Ok(all)
    }

    /// The first attribute of a kind and name.
    pub(super) fn attribute(&self, kind: u32, name: &str) -> Result<Option<Attribute<'_>>> {
        Ok(self.attributes(kind, name)?.into_iter().next())
    }

    /// The data of an attribute that is kept in the record.
    pub(super) fn resident(&self, kind: u32) -> Result<Option<&[u8]>> {
        match self.attribute(kind, "")? {
            Some(attribute) if !attribute.nonresident()? => attribute.value().map(Some),
            _ => Ok(None),
        }
    }
}

/// The records that hold parts of an attribute, in the order of its list.
pub(super) fn references(list: &[u8], kind: u32, name: &str) -> Result<Vec<u64>> {
    let f = Fields(list);
    let mut all = Vec::new();
    let mut at = 0;
    while at + 0x1a <= list.len() {
        let len = usize::from(f.le16(at + 4)?);
        if len < 0x1a {
            return Err(Error::corrupt("a list of attributes of NTFS is damaged"));
        }
        let (name_len, name_at) = (usize::from(f.u8(at + 6)?) * 2, usize::from(f.u8(at + 7)?));
        let same = f.le32(at)? == kind
            && (if name_len == 0 {
                String::new()
            } else {
                utf16(f.slice(at + name_at, name_len)?)
            }) == name;
        let reference = f.le64(at + 0x10)? & NUMBER;
        if same && !all.contains(&reference) {
            all.push(reference);
        }
        at += len;
    }
    Ok(all)
}
