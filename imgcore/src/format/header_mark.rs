//! A word in an image's header that is written once before the first change of an opening: that the image
//! is in use, or that its content is another one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Result;

/// Whether the header on disk carries the mark. Asking is cheap, so every change may begin with
/// [`HeaderMark::raise`].
#[derive(Debug)]
pub(super) struct HeaderMark(AtomicBool);

impl HeaderMark {
    /// As the header was found.
    pub fn new(raised: bool) -> Self {
        HeaderMark(AtomicBool::new(raised))
    }

    /// Carries the mark out to the header with `write`, if it is not there yet. `turn` is the lock of
    /// whoever writes the header; it must not be held by the caller.
    ///
    /// # Errors
    /// Those of `write`; the mark then counts as not there.
    pub fn raise(&self, turn: &Mutex<()>, write: impl FnOnce() -> Result<()>) -> Result<()> {
        self.change(true, turn, write)
    }

    /// Takes the mark from the header with `write`, if it is there. Everything that it stands for must be
    /// on disk.
    ///
    /// # Errors
    /// Those of `write`; the mark then counts as still there.
    pub fn lower(&self, turn: &Mutex<()>, write: impl FnOnce() -> Result<()>) -> Result<()> {
        self.change(false, turn, write)
    }

    fn change(&self, to: bool, turn: &Mutex<()>, write: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.0.load(Ordering::Acquire) == to {
            return Ok(());
        }
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been faster.
        if self.0.load(Ordering::Acquire) == to {
            return Ok(());
        }
        write()?;
        self.0.store(to, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn written_once_each_way_and_again_after_an_error() {
        let (turn, mark) = (Mutex::new(()), HeaderMark::new(false));
        let mut writes = 0;
        let mut count = || {
            writes += 1;
            Ok(())
        };
        mark.lower(&turn, &mut count).unwrap();
        assert!(mark.raise(&turn, || Err(Error::errno(libc::EIO))).is_err());
        mark.raise(&turn, &mut count).unwrap();
        mark.raise(&turn, &mut count).unwrap();
        mark.lower(&turn, &mut count).unwrap();
        mark.lower(&turn, &mut count).unwrap();
        assert_eq!(writes, 2);
    }
}
