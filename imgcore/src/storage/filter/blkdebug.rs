//! Errors where somebody wants them, and limits that the storage below does not have.

use std::sync::{Arc, Mutex, PoisonError};

use super::FilterView;
use crate::num::{len_u64, round_down, round_up, small};
use crate::opts::filter::{BlkDebug, Event, Inject, IoType};
use crate::storage::{HostExtent, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

#[derive(Debug)]
struct State {
    number: u32,
    /// Rules that are left.
    inject: Vec<Inject>,
}

/// A storage that fails as its rules say.
///
/// A request looks at the rules in order: those whose event it is, whose state is the present one, and whose kind of
/// request and sector fit; the first one that fits decides. Changes of state happen after that.
#[derive(Debug)]
pub struct BlkDebugStorage {
    below: Arc<dyn Storage>,
    rules: BlkDebug,
    name: String,
    state: Mutex<State>,
    /// Serialises read-modify-write of requests that are smaller than `align`.
    bounce: Mutex<()>,
}

impl BlkDebugStorage {
    /// Over another storage.
    pub fn new(below: Arc<dyn Storage>, rules: BlkDebug, name: String) -> Self {
        let state = State { number: 1, inject: rules.inject.clone() };
        BlkDebugStorage { below, rules, name, state: Mutex::new(state), bounce: Mutex::default() }
    }

    /// Whether a request may go on.
    fn check(&self, io: IoType, offset: u64, len: u64) -> Result<()> {
        let event = match io {
            IoType::Read => Event::Read,
            IoType::Write => Event::Write,
            IoType::WriteZeroes => Event::Zero,
            IoType::Flush => Event::Flush,
            IoType::Discard | IoType::BlockStatus => Event::None,
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state.number;
        let fits = |rule: &Inject| {
            (rule.event == Event::None || rule.event == event)
                && (rule.state == 0 || rule.state == now)
                // Without a kind, a rule of every request is about data only.
                && rule.io.map_or(io != IoType::BlockStatus, |wanted| wanted == io)
                && rule.sector.is_none_or(|s| {
                    let byte = s.saturating_mul(512);
                    io == IoType::Flush || (offset / 512 * 512 <= byte && byte < offset.saturating_add(len))
                })
        };
        let mut errno = 0;
        if let Some(at) = state.inject.iter().position(fits) {
            errno = state.inject[at].errno;
            if state.inject[at].once {
                state.inject.remove(at);
            }
        }
        let change = self.rules.set_state.iter().find(|rule| {
            (rule.event == Event::None || rule.event == event)
                && (rule.state == 0 || rule.state == now)
        });
        if let Some(rule) = change {
            state.number = rule.new_state;
        }
        match errno {
            0 => Ok(()),
            n => Err(Error::errno(n).at_path(&self.name).at_offset(offset)),
        }
    }

    fn align(&self) -> u64 {
        self.rules.align.unwrap_or(1).into()
    }
}

/// Pieces of at most `max` bytes.
fn pieces(offset: u64, len: u64, max: Option<u32>) -> impl Iterator<Item = (u64, u64)> {
    let max = max.map_or(u64::MAX, u64::from);
    let count = if len == 0 { 1 } else { len.div_ceil(max) };
    (0..count).map(move |n| (offset + n * max, (len - n * max).min(max)))
}

impl Storage for BlkDebugStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn filter(&self) -> Option<FilterView<'_>> {
        Some(FilterView {
            driver: "blkdebug",
            name: &self.name,
            child: "image",
            below: &*self.below,
        })
    }

    fn len(&self) -> Result<u64> {
        self.below.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(len_u64(buf.len()));
        let start = round_down(offset, self.align());
        let len = round_up(end, self.align()) - start;
        for (at, len) in pieces(start, len, self.rules.max_transfer) {
            self.check(IoType::Read, at, len)?;
            let (from, to) = (at.max(offset), (at + len).min(end));
            if from < to {
                self.below.read_at(from, &mut buf[small(from - offset)..small(to - offset)])?;
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let end = offset.saturating_add(len_u64(buf.len()));
        let start = round_down(offset, self.align());
        let last = round_up(end, self.align());
        let _turn = (start < offset || end < last)
            .then(|| self.bounce.lock().unwrap_or_else(PoisonError::into_inner));
        // What is not a whole block is read before.
        for edge in [(start, offset), (end, last)] {
            if edge.0 < edge.1 {
                self.check(IoType::Read, round_down(edge.0, self.align()), self.align())?;
            }
        }
        for (at, len) in pieces(start, last - start, self.rules.max_transfer) {
            self.check(IoType::Write, at, len)?;
            let (from, to) = (at.max(offset), (at + len).min(end));
            if from < to {
                self.below.write_at(from, &buf[small(from - offset)..small(to - offset)])?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        for (at, len) in pieces(offset, len, self.rules.max_write_zero) {
            self.check(IoType::WriteZeroes, at, len)?;
            self.below.write_zeroes(at, len, mode)?;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        for (at, len) in pieces(offset, len, self.rules.max_discard) {
            self.check(IoType::Discard, at, len)?;
            self.below.discard(at, len)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.check(IoType::Flush, 0, 0)?;
        self.below.flush()
    }

    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.below.set_len(len, how)
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.check(IoType::BlockStatus, offset, len)?;
        self.below.status(offset, len)
    }

    fn limits(&self) -> Limits {
        let below = self.below.limits();
        Limits {
            request_alignment: below.request_alignment.max(self.rules.align.unwrap_or(1)),
            discard_alignment: below.discard_alignment.max(self.rules.opt_discard.unwrap_or(1)),
            ..below
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn debug(config: &str) -> BlkDebugStorage {
        let mut rules =
            BlkDebug { max_transfer: Some(4096), align: Some(1024), ..BlkDebug::default() };
        rules.add_config(config).unwrap();
        let below = MemoryStorage::new("m", vec![0; 1 << 20]);
        BlkDebugStorage::new(Arc::new(below), rules, "x".into())
    }

    fn errno(result: Result<()>) -> i32 {
        result.map_or_else(|e| e.raw_errno().unwrap_or(-1), |()| 0)
    }

    #[test]
    fn rules_by_event_sector_and_kind() {
        let s = debug(
            "[inject-error]\nevent=\"read_aio\"\nsector=\"16\"\nerrno=\"28\"\n\
             [inject-error]\nevent=\"none\"\niotype=\"flush\"\nonce=\"on\"\n\
             [inject-error]\nevent=\"none\"\niotype=\"block-status\"\nerrno=\"22\"\n",
        );
        assert_eq!(errno(s.read_at(0, &mut [0; 8192])), 0);
        assert_eq!(errno(s.read_at(8191, &mut [0; 2])), 28);
        assert_eq!(errno(s.read_at(9216, &mut [0; 1])), 0, "another block");
        assert_eq!(errno(s.write_at(0, &[1; 100_000])), 0, "writes are not reads");
        assert_eq!(errno(s.write_at(8200, &[1; 10])), 28, "but they read around them");
        assert_eq!((errno(s.flush()), errno(s.flush())), (5, 0));
        assert_eq!(errno(s.status(0, 10).map(drop)), 22);
        let mut buf = [0; 3000];
        s.read_at(20_000, &mut buf).unwrap();
        assert_eq!(buf, [1; 3000]);
        assert_eq!((s.limits().request_alignment, s.filter().unwrap().child), (1024, "image"));
    }

    #[test]
    fn states() {
        let s = debug(
            "[set-state]\nevent=\"write_aio\"\nstate=\"1\"\nnew_state=\"2\"\n\
             [inject-error]\nevent=\"write_aio\"\nstate=\"2\"\nonce=\"on\"\n",
        );
        let write = || errno(s.write_at(0, &[1; 1024]));
        assert_eq!((write(), write(), write()), (0, 5, 0));
    }
}
