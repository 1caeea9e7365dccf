//! Offsets as types of their own, and arithmetic that cannot wrap silently.

use crate::{Error, Result};

/// A byte offset on the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// A byte offset in a storage (the file or device below an image).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

impl std::fmt::Display for GuestOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl std::fmt::Display for HostOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Rounds down to a multiple of `unit`, which must not be zero.
pub const fn round_down(value: u64, unit: u64) -> u64 {
    value - value % unit
}

/// Rounds up to a multiple of `unit`; `None` when that does not fit.
pub const fn checked_round_up(value: u64, unit: u64) -> Option<u64> {
    match value % unit {
        0 => Some(value),
        rest => value.checked_add(unit - rest),
    }
}

/// Rounds up to a multiple of `unit`, staying at the largest multiple where it would not fit.
pub const fn round_up(value: u64, unit: u64) -> u64 {
    match checked_round_up(value, unit) {
        Some(v) => v,
        None => round_down(u64::MAX, unit),
    }
}

/// A `u64` as an index; an error where the machine's words are smaller.
pub fn to_usize(value: u64) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Error::new(crate::ErrorKind::TooLarge, "number too large for this machine"))
}

/// A length in memory as `u64`; always fits on the machines Rust supports.
pub const fn len_u64(len: usize) -> u64 {
    len as u64
}

/// A length that is known to fit in memory because it was compared with a buffer's length or with a
/// small constant before. Saturates otherwise, so that a mistake ends in an index error, not in wrap.
pub fn small(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
