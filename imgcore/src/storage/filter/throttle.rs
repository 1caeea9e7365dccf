//! A storage whose requests count for a group of limits.

use std::sync::Arc;

use super::FilterView;
use crate::Result;
use crate::num::len_u64;
use crate::storage::{HostExtent, Limits, Preallocation, Storage, ZeroMode};
use crate::throttle::{Direction, ThrottleGroup};

/// A storage whose requests count for a group.
#[derive(Debug)]
pub struct ThrottleStorage {
    below: Arc<dyn Storage>,
    group: Arc<ThrottleGroup>,
    shown: String,
}

impl ThrottleStorage {
    /// Over another storage; `shown` is the filter's own name.
    pub fn new(below: Arc<dyn Storage>, group: Arc<ThrottleGroup>, shown: String) -> Self {
        ThrottleStorage { below, group, shown }
    }
}

impl Storage for ThrottleStorage {
    fn name(&self) -> &str {
        &self.shown
    }

    fn filter(&self) -> Option<FilterView<'_>> {
        Some(FilterView {
            driver: "throttle",
            name: &self.shown,
            child: "file",
            below: &*self.below,
        })
    }

    fn identity(&self) -> Option<String> {
        self.below.identity()
    }

    fn len(&self) -> Result<u64> {
        self.below.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.group.wait(Direction::Read, len_u64(buf.len()));
        self.below.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.group.wait(Direction::Write, len_u64(buf.len()));
        self.below.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.group.wait(Direction::Write, len);
        self.below.write_zeroes(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.group.wait(Direction::Write, len);
        self.below.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.below.flush()
    }

    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.below.set_len(len, how)
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.below.status(offset, len)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.below.allocated()
    }

    fn limits(&self) -> Limits {
        self.below.limits()
    }

    fn read_only(&self) -> bool {
        self.below.read_only()
    }

    fn zero_init(&self) -> bool {
        self.below.zero_init()
    }

    fn set_sharing(&self, write: bool) -> Result<()> {
        self.below.set_sharing(write)
    }
}
