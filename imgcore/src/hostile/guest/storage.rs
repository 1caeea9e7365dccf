//! A sample with changes: copied page by page, counted, and never written to by what is tested.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::sample::{PAGE, Page, Sample};
use crate::Result;
use crate::num::{len_u64, small};
use crate::storage::{HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};

/// A sample, changed.
#[derive(Debug)]
pub(super) struct Changed {
    sample: Arc<Sample>,
    pages: BTreeMap<u64, Box<Page>>,
    len: u64,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Changed {
    /// Not changed yet.
    pub fn new(sample: Arc<Sample>) -> Self {
        let len = sample.len;
        Changed {
            sample,
            pages: BTreeMap::new(),
            len,
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Cuts it off.
    pub fn truncate(&mut self, len: u64) {
        self.len = self.len.min(len);
    }

    /// How often and how much was read.
    pub fn counted(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Counts anew.
    pub fn start_over(&self) {
        self.reads.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Some bytes, not counted.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(at, &mut bytes);
        bytes
    }

    /// Changes bytes; what lies past the end is left out.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, &byte) in (at..self.len).zip(bytes) {
            let number = at / len_u64(PAGE);
            let page = self
                .pages
                .entry(number)
                .or_insert_with(|| self.sample.pages.get(&number).cloned().unwrap_or_else(zeroes));
            page[small(at % len_u64(PAGE))] = byte;
        }
    }

    /// Whether it holds what the sample does.
    pub fn is_as_made(&self) -> bool {
        let made = |number| self.sample.pages.get(number).cloned().unwrap_or_else(zeroes);
        self.len == self.sample.len && self.pages.iter().all(|(n, page)| made(n) == *page)
    }

    fn fill(&self, at: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let place = at + len_u64(done);
            let (number, inside) = (place / len_u64(PAGE), small(place % len_u64(PAGE)));
            let n = (PAGE - inside).min(buf.len() - done);
            let out = &mut buf[done..done + n];
            match self.pages.get(&number).or_else(|| self.sample.pages.get(&number)) {
                Some(page) => out.copy_from_slice(&page[inside..inside + n]),
                None => out.fill(0),
            }
            done += n;
        }
    }
}

fn zeroes() -> Box<Page> {
    Box::new([0; PAGE])
}

impl Storage for Changed {
    fn name(&self) -> &'static str {
        "sample"
    }
    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len_u64(buf.len()), Ordering::Relaxed);
        self.fill(offset, buf);
        Ok(())
    }
    fn write_at(&self, offset: u64, _: &[u8]) -> Result<()> {
        panic!("a write at {offset:#x}");
    }
    fn write_zeroes(&self, offset: u64, _: u64, _: ZeroMode) -> Result<()> {
        panic!("zeroes at {offset:#x}");
    }
    fn discard(&self, offset: u64, _: u64) -> Result<()> {
        panic!("a discard at {offset:#x}");
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn set_len(&self, len: u64, _: Preallocation) -> Result<()> {
        panic!("a new length, {len}");
    }
    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let kind = if offset < self.len { HostKind::Data } else { HostKind::Hole };
        Ok(HostExtent { kind, len: len.min(self.len.saturating_sub(offset)).max(1) })
    }
    fn limits(&self) -> Limits {
        Limits { request_alignment: 1, discard_alignment: 1, opt_transfer: 0, block_device: false }
    }
    fn read_only(&self) -> bool {
        true
    }
}
