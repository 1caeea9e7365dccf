//! What the log would change, in memory: a file that is open for reading is not written to.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::layout::LOG_SECTOR;
use super::log::{Sector, Sink};
use crate::num::{len_u64, small};
use crate::storage::{HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, ErrorKind, Result};

/// Most memory for sectors.
const MAX_BYTES: usize = 128 << 20;

/// Most ranges of zeroes: every read looks at all of them.
const MAX_ZEROES: usize = 1 << 12;

/// Changes on top of a file.
#[derive(Debug)]
pub(super) struct Overlay {
    base: Arc<dyn Storage>,
    sectors: BTreeMap<u64, Box<Sector>>,
    /// Start and end of ranges that are zero unless a sector says otherwise.
    zeroes: Vec<(u64, u64)>,
    len: u64,
}

impl Overlay {
    pub fn new(base: Arc<dyn Storage>) -> Result<Self> {
        let len = base.len()?;
        Ok(Overlay { base, sectors: BTreeMap::new(), zeroes: Vec::new(), len })
    }

    fn too_long(&self) -> Error {
        Error::new(
            ErrorKind::TooLarge,
            "the log of this image is too long to be replayed in memory",
        )
        .at_path(self.base.name())
        .hint("'check -r all' replays it on disk")
    }
}

impl Sink for Overlay {
    fn data(&mut self, offset: u64, sector: &Sector) -> Result<()> {
        if self.sectors.len() * sector.len() >= MAX_BYTES {
            return Err(self.too_long());
        }
        self.sectors.insert(offset, Box::new(*sector));
        self.len = self.len.max(offset + LOG_SECTOR);
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        if self.zeroes.len() >= MAX_ZEROES {
            return Err(self.too_long());
        }
        let inside: Vec<u64> =
            self.sectors.range(offset..offset + len).map(|(&at, _)| at).collect();
        for at in inside {
            self.sectors.remove(&at);
        }
        self.zeroes.push((offset, offset + len));
        self.len = self.len.max(offset + len);
        Ok(())
    }

    fn length(&mut self, len: u64) -> Result<()> {
        self.len = self.len.max(len);
        Ok(())
    }
}

fn refused() -> Error {
    Error::errno(libc::EROFS)
}

impl Storage for Overlay {
    fn name(&self) -> &str {
        self.base.name()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.base.read_at(offset, buf)?;
        let end = offset.saturating_add(len_u64(buf.len()));
        for &(from, to) in &self.zeroes {
            let (from, to) = (from.max(offset), to.min(end));
            if from < to {
                buf[small(from - offset)..small(to - offset)].fill(0);
            }
        }
        let first = offset.saturating_sub(LOG_SECTOR - 1);
        for (&at, sector) in self.sectors.range(first..end) {
            let (from, to) = (at.max(offset), (at + LOG_SECTOR).min(end));
            if from < to {
                buf[small(from - offset)..small(to - offset)]
                    .copy_from_slice(&sector[small(from - at)..small(to - at)]);
            }
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> Result<()> {
        Err(refused())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _mode: ZeroMode) -> Result<()> {
        Err(refused())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(refused())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, _len: u64, _how: Preallocation) -> Result<()> {
        Err(refused())
    }

    fn status(&self, _offset: u64, len: u64) -> Result<HostExtent> {
        // What lies over a hole is not worth finding out.
        Ok(HostExtent { kind: HostKind::Data, len })
    }

    fn limits(&self) -> Limits {
        self.base.limits()
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.base.allocated()
    }

    fn read_only(&self) -> bool {
        true
    }
}

/// Carries the log out on disk.
pub(super) struct OnDisk<'a>(pub &'a dyn Storage);

impl Sink for OnDisk<'_> {
    fn data(&mut self, offset: u64, sector: &Sector) -> Result<()> {
        self.0.write_at(offset, sector)
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        self.0.write_zeroes(offset, len, ZeroMode::MayUnmap)
    }

    fn length(&mut self, len: u64) -> Result<()> {
        if self.0.len()? < len { self.0.set_len(len, Preallocation::Off) } else { Ok(()) }
    }
}
