//! Port and memory-mapped dispatch.
//!
//! A bus maps address ranges to devices. Ranges never overlap, so an access has at most one device;
//! bytes nobody claims read as ones and swallow writes, as on real buses. The table sits behind a
//! read-write lock that is held only to look up the device, never during the access, so a device may
//! be moved (a PCI BAR) while another is at work.

use std::fmt;
use std::sync::{Arc, RwLock};

use crate::{Error, Result};

/// What an access wants of the machine. A device holds no handle to the machine; it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    #[default]
    None,
    /// Reset the machine.
    Reset,
    /// Power off.
    PowerOff,
    /// End the process with this exit status (isa-debug-exit).
    Exit(u8),
    /// The guest says that it has crashed; it may still want to write a dump.
    Panicked(PanicKind),
    /// Address ranges of a PCI device changed: map them anew before the guest goes on.
    Layout,
}

/// What pvpanic reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicKind {
    /// The guest has panicked.
    Panicked,
    /// The guest has panicked and loads its crash kernel.
    CrashLoaded,
    /// The guest shuts down.
    Shutdown,
}

/// Something on a bus. Offsets are relative to the range it was put at. Called from any vCPU thread.
pub trait Device: Send + Sync {
    /// The guest reads `data.len()` bytes.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]) -> Effect;
}

struct Range {
    base: u64,
    len: u64,
    name: String,
    device: Arc<dyn Device>,
}

impl Range {
    fn end(&self) -> u64 {
        self.base.saturating_add(self.len)
    }
}

/// One address space: ports or memory.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<Vec<Range>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.layout()).finish()
    }
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Bus::default()
    }

    fn table(&self) -> std::sync::RwLockReadGuard<'_, Vec<Range>> {
        self.ranges.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn table_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Range>> {
        self.ranges.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts a device at `base..base + len`.
    ///
    /// # Errors
    /// When the range is empty, wraps, or overlaps another one (which the message names).
    pub fn insert(&self, name: &str, base: u64, len: u64, device: Arc<dyn Device>) -> Result<()> {
        if len == 0 || base.checked_add(len - 1).is_none() {
            return Err(Error::invalid(format!("{name}: {len:#x} bytes at {base:#x} is no range")));
        }
        let mut table = self.table_mut();
        let at = table.partition_point(|r| r.base < base);
        let clash = [at.checked_sub(1), Some(at)]
            .into_iter()
            .flatten()
            .filter_map(|i| table.get(i))
            .find(|r| r.base <= base + (len - 1) && base < r.end());
        if let Some(other) = clash {
            return Err(Error::invalid(format!(
                "{name} at {base:#x}-{:#x} overlaps {} at {:#x}-{:#x}",
                base + (len - 1),
                other.name,
                other.base,
                other.end() - 1
            )));
        }
        table.insert(at, Range { base, len, name: name.to_owned(), device });
        Ok(())
    }

    /// Takes away whatever begins at `base`; false when nothing does.
    pub fn remove(&self, base: u64) -> bool {
        let mut table = self.table_mut();
        match table.binary_search_by_key(&base, |r| r.base) {
            Ok(i) => {
                table.remove(i);
                true
            }
            Err(_) => false,
        }
    }

    /// The ranges in order: base, length, name (`info mtree`).
    pub fn layout(&self) -> Vec<(u64, u64, String)> {
        self.table().iter().map(|r| (r.base, r.len, r.name.clone())).collect()
    }

    /// The device at `addr`, the offset within it, and how many of `len` bytes are inside.
    fn find(&self, addr: u64, len: usize) -> Option<(Arc<dyn Device>, u64, usize)> {
        let table = self.table();
        let i = table.partition_point(|r| r.base <= addr).checked_sub(1)?;
        let range = &table[i];
        let offset = addr - range.base;
        let left = range.len.checked_sub(offset).filter(|l| *l > 0)?;
        let inside = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        Some((Arc::clone(&range.device), offset, inside))
    }

    /// A guest's read. Unclaimed bytes become ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset, inside)) = self.find(addr, data.len()) {
            device.read(offset, &mut data[..inside]);
        }
    }

    /// A guest's write. Unclaimed bytes are dropped.
    pub fn write(&self, addr: u64, data: &[u8]) -> Effect {
        match self.find(addr, data.len()) {
            Some((device, offset, inside)) => device.write(offset, &data[..inside]),
            None => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0x7f).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) -> Effect {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            Effect::Reset
        }
    }

    #[test]
    fn dispatches_and_clips() {
        let bus = Bus::new();
        let d = Arc::new(Recorder::default());
        bus.insert("d", 0x10, 4, d.clone()).unwrap();
        let mut b = [0; 4];
        bus.read(0x12, &mut b);
        assert_eq!(b, [2, 2, 0xff, 0xff]);
        bus.read(0x14, &mut b);
        assert_eq!(b, [0xff; 4]);
        bus.read(0, &mut b);
        assert_eq!(b, [0xff; 4]);
        assert_eq!(bus.write(0x13, &[7, 8]), Effect::Reset);
        assert_eq!(bus.write(0x20, &[7]), Effect::None);
        assert_eq!(*d.0.lock().unwrap(), [(3, vec![7])]);
    }

    #[test]
    fn refuses_overlap_and_nonsense() {
        let bus = Bus::new();
        let d = Arc::new(Recorder::default());
        bus.insert("a", 0x10, 4, d.clone()).unwrap();
        for (base, len) in [(0x10, 1), (0xf, 2), (0x13, 1), (0, 0x100), (0x11, 2)] {
            let e = bus.insert("b", base, len, d.clone()).unwrap_err();
            assert!(e.to_string().contains("overlaps a"), "{e}");
        }
        assert!(bus.insert("b", 0, 0, d.clone()).is_err());
        assert!(bus.insert("b", u64::MAX, 2, d.clone()).is_err());
        bus.insert("b", 0xc, 4, d.clone()).unwrap();
        bus.insert("top", u64::MAX, 1, d).unwrap();
        assert!(bus.remove(0x10) && !bus.remove(0x10));
        assert_eq!(bus.layout().len(), 2);
    }
}
