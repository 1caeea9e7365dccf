//! A storage that remembers every write, so that a test can look at what a crash would leave.
//!
//! Two kinds of crash: the process dies ([`History::prefix`]: everything up to a point happened, in
//! order), or the power fails ([`History::power_loss`]: everything before the last flush is there, and any
//! part of what came after it, sector by sector, in any order).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{HostExtent, Limits, MemoryStorage, Preallocation, Storage, ZeroMode};
use crate::Result;
use crate::num::{len_u64, small};

/// What the hardware writes whole or not at all.
const SECTOR: u64 = 512;

/// Something that happened to a storage.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were written.
    Write(u64, Vec<u8>),
    /// A range became zero.
    Zero(u64, u64),
    /// A range was given back; it may read as anything, here as `0xdd`.
    Discard(u64, u64),
    /// The length changed.
    Len(u64),
    /// Everything before is stable.
    Flush,
    /// A point named by the test.
    Mark(u32),
}

/// Memory that remembers.
#[derive(Debug)]
pub struct CrashStorage {
    inner: MemoryStorage,
    events: Mutex<Vec<Event>>,
}

impl CrashStorage {
    /// Over `bytes`.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        CrashStorage { inner: MemoryStorage::new(name, bytes), events: Mutex::new(Vec::new()) }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a point.
    pub fn mark(&self, point: u32) {
        self.events().push(Event::Mark(point));
    }

    /// The bytes now.
    pub fn to_vec(&self) -> Vec<u8> {
        self.inner.to_vec()
    }

    /// What happened since the storage was made over `base`.
    pub fn history(&self, base: Vec<u8>) -> History {
        History { base, events: self.events().clone() }
    }
}

/// Everything that happened.
#[derive(Debug)]
pub struct History {
    base: Vec<u8>,
    /// In order.
    pub events: Vec<Event>,
}

fn put(bytes: &mut Vec<u8>, at: u64, len: u64, fill: impl FnOnce(&mut [u8])) {
    let (start, end) = (small(at), small(at + len));
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    fill(&mut bytes[start..end]);
}

fn apply(bytes: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(at, data) => {
            put(bytes, *at, len_u64(data.len()), |to| to.copy_from_slice(data));
        }
        Event::Zero(at, len) => put(bytes, *at, *len, |to| to.fill(0)),
        Event::Discard(at, len) => {
            let end = (*at + *len).min(len_u64(bytes.len()));
            if *at < end {
                put(bytes, *at, end - *at, |to| to.fill(0xdd));
            }
        }
        Event::Len(len) => bytes.resize(small(*len), 0),
        Event::Flush | Event::Mark(_) => {}
    }
}

impl History {
    /// Whether the test's point was passed before event `n`.
    pub fn passed(&self, point: u32, n: usize) -> bool {
        self.events.iter().take(n).any(|e| matches!(e, Event::Mark(p) if *p == point))
    }

    /// The process died after `n` events.
    pub fn prefix(&self, n: usize) -> Vec<u8> {
        let mut bytes = self.base.clone();
        for event in self.events.iter().take(n) {
            apply(&mut bytes, event);
        }
        bytes
    }

    /// The power failed after `n` events: of what came after the last flush, `keep` says for each sector
    /// whether it got there.
    pub fn power_loss(&self, n: usize, mut keep: impl FnMut() -> bool) -> Vec<u8> {
        let events = &self.events[..n.min(self.events.len())];
        let stable = events.iter().rposition(|e| matches!(e, Event::Flush)).map_or(0, |i| i + 1);
        let mut bytes = self.prefix(stable);
        for event in &events[stable..] {
            match event {
                Event::Write(at, data) => {
                    let mut done = 0;
                    while done < len_u64(data.len()) {
                        let here = at + done;
                        let len = (SECTOR - here % SECTOR).min(len_u64(data.len()) - done);
                        if keep() {
                            let part = data[small(done)..small(done + len)].to_vec();
                            apply(&mut bytes, &Event::Write(here, part));
                        }
                        done += len;
                    }
                }
                other if keep() => apply(&mut bytes, other),
                _ => {}
            }
        }
        bytes
    }
}

impl Storage for CrashStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.events().push(Event::Write(offset, buf.to_vec()));
        self.inner.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.events().push(Event::Zero(offset, len));
        self.inner.write_zeroes(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.events().push(Event::Discard(offset, len));
        let end = offset.saturating_add(len).min(self.inner.len()?);
        if offset < end {
            self.inner.write_at(offset, &vec![0xdd; small(end - offset)])?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.events().push(Event::Flush);
        Ok(())
    }

    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.events().push(Event::Len(len));
        self.inner.set_len(len, how)
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.inner.status(offset, len)
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn read_only(&self) -> bool {
        false
    }
}
