//! The master file table: records by their numbers, and attributes gathered from all records that hold parts
//! of them.

use super::layout::{ATTRIBUTE_LIST, DATA, Layout};
use super::record::{self, Record};
use super::stream::{Stream, join, of_record, whole};
use crate::guest::files::VolumeReader;
use crate::num::len_u64;
use crate::{Error, Result};

/// The longest list of attributes that Windows allows.
const MAX_LIST: u64 = 256 << 10;

/// The table of a volume.
pub(super) struct Table {
    pub source: VolumeReader,
    pub layout: Layout,
    pub mft: Stream,
}

impl Table {
    /// Reads the boot sector and the table's own record.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let layout = Layout::parse(&source.bytes(0, 512)?)?;
        let at = layout.mft.saturating_mul(layout.cluster);
        let first = Record::new(source.bytes(at, layout.record)?, layout.sector)?;
        // The table's own record is in its first run; a list of further runs is inside of what is known.
        let mft = of_record(&first, DATA, "")?
            .ok_or_else(|| Error::corrupt("NTFS's file table has no data"))?;
        let mut table = Table { source, layout, mft };
        if let Some(mft) = table.stream(&first, DATA, "")? {
            table.mft = mft;
        }
        Ok(table)
    }

    /// A file that is in use.
    pub fn record(&self, number: u64) -> Result<Record> {
        let mut raw = vec![0; self.layout.record];
        let at = number.saturating_mul(len_u64(raw.len()));
        if self.mft.read(self, at, &mut raw)? != raw.len() {
            return Err(Error::corrupt(format!("NTFS has no file {number}")));
        }
        Record::new(raw, self.layout.sector)
    }

    /// A stream of a file, gathered from all records that hold parts of it.
    pub fn stream(&self, base: &Record, kind: u32, name: &str) -> Result<Option<Stream>> {
        let list = match base.attribute(ATTRIBUTE_LIST, "")? {
            None => return of_record(base, kind, name),
            Some(attribute) => whole(&attribute)?,
        };
        let list = list.all(self, MAX_LIST)?;
        let mut parts: Vec<Stream> = Vec::new();
        for reference in record::references(&list, kind, name)? {
            let found = if reference == base.number {
                of_record(base, kind, name)?
            } else {
                of_record(&self.record(reference)?, kind, name)?
            };
            parts.extend(found);
        }
        Ok(join(parts))
    }
}
