//! Borrowing file descriptors from types that know only numbers.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of an event, borrowed.
pub fn of(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// A descriptor that the caller knows to be open for as long as it uses the result. A mistake can make
/// calls fail or reach another file of this process; it cannot touch memory.
pub(crate) fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    let fd = if fd < 0 { i32::MAX } else { fd };
    // SAFETY: not -1, which is all that the type itself needs; see above for the rest.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
