//! Windows' registry files, read cell by cell (Maxim Suhanov, "Windows registry file format specification").
//!
//! A hive is a header of 4 KiB and cells; keys, their lists of subkeys, values and data are cells that
//! name each other by offset. Hives of systems that were switched off may have their last changes in log
//! files beside them; those are not played back, and [`Hive::dirty`] says that they are needed.
//!
//! The crates for this were not taken: `nt-hive` and `nt_hive2` are under the GPL, `notatin` brings
//! dozens of dependencies for forensic work.

use crate::guest::fields::{Fields, utf16};
use crate::guest::files::{FileId, FileSystem};
use crate::num::{len_u64, small};
use crate::{Error, ErrorKind, Result};

const HEADER: u64 = 4096;
/// Largest cell that is read: data of values are longer only by parts.
const MAX_CELL: usize = 1 << 20;
/// Subkeys of one key.
const MAX_KEYS: usize = 100_000;
/// Values of one key.
const MAX_VALUES: usize = 10_000;
/// Lists of lists of subkeys.
const MAX_DEPTH: u32 = 4;

/// An open hive.
pub struct Hive<'a> {
    fs: &'a dyn FileSystem,
    file: FileId,
    root: u32,
    /// The last changes are in its log files.
    pub dirty: bool,
}

/// A key.
#[derive(Clone, Debug)]
pub struct Key {
    subkeys: u32,
    subkey_list: u32,
    values: u32,
    value_list: u32,
    /// Its name.
    pub name: String,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `REG_SZ`, `REG_EXPAND_SZ`
    Text(String),
    /// `REG_DWORD`
    Number(u32),
    /// `REG_MULTI_SZ`
    Texts(Vec<String>),
    /// All others.
    Bytes(Vec<u8>),
}

impl<'a> Hive<'a> {
    /// Opens a hive.
    ///
    /// # Errors
    /// When its header is damaged, or cannot be read.
    pub fn open(fs: &'a dyn FileSystem, file: FileId) -> Result<Self> {
        let mut head = [0; 64];
        if fs.read(file, 0, &mut head)? != head.len() || !head.starts_with(b"regf") {
            return Err(Error::corrupt("the file is no registry hive"));
        }
        let f = Fields(&head);
        let dirty = f.le32(4)? != f.le32(8)?;
        Ok(Hive { fs, file, root: f.le32(0x24)?, dirty })
    }

    /// The data of a cell, at most [`MAX_CELL`] bytes. A cell in use has its length written negative.
    fn cell(&self, offset: u32) -> Result<Vec<u8>> {
        let bad = || Error::corrupt("the registry hive refers to a cell that is not there");
        let at = HEADER + u64::from(offset);
        let mut head = [0; 4];
        if self.fs.read(self.file, at, &mut head)? != 4 {
            return Err(bad());
        }
        let len = i32::from_le_bytes(head).checked_neg().and_then(|l| usize::try_from(l).ok());
        let len = len.filter(|l| *l > 4).ok_or_else(bad)?;
        if len > MAX_CELL {
            return Err(Error::new(ErrorKind::TooLarge, "a cell of the registry hive is too long"));
        }
        let mut data = vec![0; len - 4];
        if self.fs.read(self.file, at + 4, &mut data)? != data.len() {
            return Err(bad());
        }
        Ok(data)
    }

    /// The key that contains all.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn root(&self) -> Result<Key> {
        self.key_at(self.root)
    }

    fn key_at(&self, offset: u32) -> Result<Key> {
        let cell = self.cell(offset)?;
        let f = Fields(&cell);
        if f.array::<2>(0)? != *b"nk" {
            return Err(Error::corrupt(
                "the registry hive has something else where a key should be",
            ));
        }
        let name = f.slice(0x4c, usize::from(f.le16(0x48)?))?;
        // KEY_COMP_NAME: one byte a character.
        let name = if f.le16(2)? & 0x20 != 0 {
            name.iter().map(|b| char::from(*b)).collect()
        } else {
            utf16(name)
        };
        Ok(Key {
            subkeys: f.le32(0x14)?,
            subkey_list: f.le32(0x1c)?,
            values: f.le32(0x24)?,
            value_list: f.le32(0x28)?,
            name,
        })
    }

    /// The subkeys of a key.
    ///
    /// # Errors
    /// When their lists are damaged.
    pub fn subkeys(&self, key: &Key) -> Result<Vec<Key>> {
        let mut offsets = Vec::new();
        if key.subkeys > 0 {
            self.list(key.subkey_list, MAX_DEPTH, &mut offsets)?;
        }
        offsets.into_iter().map(|o| self.key_at(o)).collect()
    }

    fn list(&self, offset: u32, depth: u32, all: &mut Vec<u32>) -> Result<()> {
        let cell = self.cell(offset)?;
        let f = Fields(&cell);
        let count = usize::from(f.le16(2)?);
        let kind: [u8; 2] = f.array(0)?;
        for i in 0..count {
            match &kind {
                b"lf" | b"lh" => all.push(f.le32(4 + 8 * i)?),
                b"li" => all.push(f.le32(4 + 4 * i)?),
                b"ri" if depth > 0 => self.list(f.le32(4 + 4 * i)?, depth - 1, all)?,
                _ => return Err(Error::corrupt("a list of keys in the registry hive is damaged")),
            }
            if all.len() > MAX_KEYS {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    "a key of the registry has too many subkeys",
                ));
            }
        }
        Ok(())
    }

    /// The key at a path from the root, parts divided by `\`; `None` when it is not there.
    ///
    /// # Errors
    /// When a key on the way is damaged.
    pub fn key(&self, path: &str) -> Result<Option<Key>> {
        let mut here = self.root()?;
        for part in path.split('\\').filter(|p| !p.is_empty()) {
            let all = self.subkeys(&here)?;
            match all.into_iter().find(|k| k.name.eq_ignore_ascii_case(part)) {
                Some(key) => here = key,
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// A value of a key; `None` when it is not there.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn value(&self, key: &Key, name: &str) -> Result<Option<Value>> {
        if key.values == 0 {
            return Ok(None);
        }
        let list = self.cell(key.value_list)?;
        let f = Fields(&list);
        for i in 0..small(u64::from(key.values)).min(MAX_VALUES) {
            let cell = self.cell(f.le32(4 * i)?)?;
            let v = Fields(&cell);
            let raw = v.slice(0x14, usize::from(v.le16(2)?))?;
            let found = if v.le16(0x10)? & 1 != 0 {
                raw.iter().map(|b| char::from(*b)).collect()
            } else {
                utf16(raw)
            };
            if found.eq_ignore_ascii_case(name) {
                return self.data(v).map(Some);
            }
        }
        Ok(None)
    }

    fn data(&self, v: Fields<'_>) -> Result<Value> {
        let (len, kind) = (v.le32(4)?, v.le32(0xc)?);
        // Up to four bytes lie where the offset would.
        let bytes = if len & 0x8000_0000 != 0 {
            let n = small(u64::from(len & 0x7fff_ffff)).min(4);
            v.slice(8, n)?.to_vec()
        } else if len_u64(MAX_CELL) < u64::from(len) {
            return Err(Error::new(ErrorKind::TooLarge, "a value of the registry is too long"));
        } else {
            let mut data = self.cell(v.le32(8)?)?;
            data.truncate(small(u64::from(len)));
            data
        };
        let text = |bytes: &[u8]| utf16(bytes).trim_end_matches('\0').to_owned();
        Ok(match (kind, bytes.as_slice()) {
            (1 | 2, bytes) => Value::Text(text(bytes)),
            (4, [a, b, c, d]) => Value::Number(u32::from_le_bytes([*a, *b, *c, *d])),
            (7, bytes) => {
                let all = utf16(bytes);
                Value::Texts(all.split('\0').filter(|t| !t.is_empty()).map(str::to_owned).collect())
            }
            _ => Value::Bytes(bytes),
        })
    }

    /// A text at a path and name; what cannot be read is not there.
    pub fn text(&self, path: &str, name: &str) -> Option<String> {
        match self.value(&self.key(path).ok()??, name).ok()?? {
            Value::Text(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// A number, likewise.
    pub fn number(&self, path: &str, name: &str) -> Option<u32> {
        match self.value(&self.key(path).ok()??, name).ok()?? {
            Value::Number(number) => Some(number),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}
